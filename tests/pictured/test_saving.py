"""--save-predictions from the command line to the PNGs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictured_task import Norms, NormsEvaluation
from PIL import Image

from harness import evaluate, plan
from harness.backbone.vit import Backbone
from harness.cli import main
from harness.data.dataset import Sample
from harness.errors import BadPicture, HarnessError
from harness.nano import scenes
from harness.options import Options
from harness.pictured import choice, saving
from harness.pictured.contract import Shown
from harness.records import finished, read, read_columns
from harness.task import Batch
from harness.task_names import find_task

Go = Callable[..., tuple[int, Path]]


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> Norms:
    task = Norms()
    for module in (plan, choice):
        monkeypatch.setattr(
            module, "find_task", lambda name: task if name == "norms" else find_task(name)
        )
    monkeypatch.setattr(choice, "task_names", lambda: ("lost", "norms"))
    return task


@pytest.fixture
def headings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Of pictures that are noted in place of being drawn."""
    seen: list[tuple[str, ...]] = []

    def note(picture: Any, shown: Shown, classes: Any, heading: Sequence[str]) -> bytes:
        seen.append(tuple(heading))
        return repr((heading, shown.prediction.sum())).encode()

    monkeypatch.setattr(saving, "draw", note)
    return seen


@pytest.fixture
def go(norms: Norms, tiny_models: Path, tmp_path: Path) -> Go:
    """Run the command; its status, and the record's path."""

    def run(*more: str, protocol: str = "windows", limit: int = 7) -> tuple[int, Path]:
        out = tmp_path / "out"
        fixed = ["--model", "tiny-reg4", "--dataset", "scenes", "--models", str(tiny_models)]
        fixed += ["--task", "norms", "--protocol", protocol, "--limit", str(limit)]
        fixed += ["--workers", "0", "--device", "cpu", "--out", str(out)]
        status = main(["run", *fixed, *more])
        (path,) = list(out.glob(f"scenes/norms/tiny-reg4/{protocol}~*.json")) or [out]
        return status, path

    return run


def pictures(path: Path) -> list[Path]:
    folder = path.with_suffix(".pictures")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def ids(path: Path) -> dict[str, str]:
    """worst-1 and so on -> the picture's id."""
    found = {}
    for each in pictures(path):
        kind, number, rest = each.stem.split("-", 2)
        found[f"{kind}-{number}"] = rest
    return found


@pytest.mark.parametrize("protocol", ["windows", "depth"])
def test_the_worst_median_and_best_pictures_lie_beside_the_record(
    protocol: str, go: Go, norms: Norms, capsys: pytest.CaptureFixture[str]
) -> None:
    status, path = go("--save-predictions", "2", protocol=protocol)
    assert status == 0 and finished(path) is not None
    folder = path.with_suffix(".pictures")
    assert f"record: {path}\npictures: {folder}\n" in capsys.readouterr().out
    columns = read_columns(path)
    ranked = [name for _, name in sorted(zip(columns["score"], columns["image_id"], strict=True))]
    assert ids(path) == {
        "worst-1": ranked[0],
        "worst-2": ranked[1],
        "median-1": ranked[2],
        "median-2": ranked[3],
        "best-1": ranked[6],
        "best-2": ranked[5],
    }
    for each in pictures(path):
        with Image.open(each) as image:
            image.load()
            assert image.format == "PNG" and image.width > 1000


@pytest.mark.parametrize(
    ("protocol", "batch_size"),
    [("windows", "3"), ("depth", "8"), ("stored", "8"), ("stored", "1"), ("steps", "8")],
)
def test_what_is_shown_is_what_was_scored(
    protocol: str,
    batch_size: str,
    go: Go,
    norms: Norms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: dict[str, Shown] = {}
    sizes: list[int] = []

    def spied(picture: Any, each: Shown, *rest: Any) -> bytes:
        shown[each.id] = each
        return b""

    show = NormsEvaluation.shown

    def sized(self: NormsEvaluation, batch: Batch) -> Iterator[Shown]:
        sizes.append(len(batch.ids))
        yield from show(self, batch)

    monkeypatch.setattr(saving, "draw", spied)
    monkeypatch.setattr(NormsEvaluation, "shown", sized)
    assert go("--save-predictions", "1", "--batch-size", batch_size, protocol=protocol)[0] == 0
    (evaluation,) = norms.started
    assert len(shown) == 3
    for name, each in shown.items():
        told = evaluation.told[name]
        if protocol == "depth":
            assert np.allclose(each.prediction, told, rtol=1e-3)
        else:
            assert (each.prediction == told).mean() > 0.999
    if protocol == "steps":
        assert sizes == [2, 1]


def test_pictures_move_no_number_and_no_name(
    go: Go, headings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    original = Backbone.__call__

    def counted(self: Backbone, batch: torch.Tensor, *rest: Any) -> Any:
        passes.append(len(batch))
        return original(self, batch, *rest)

    monkeypatch.setattr(Backbone, "__call__", counted)
    _, path = go()
    without, first = read(path), sum(passes)
    assert pictures(path) == []
    _, again = go("--overwrite", "--save-predictions", "1")
    record = read(again)
    assert again == path and record.metrics == without.metrics
    assert record.variant == without.variant and record.protocol == without.protocol
    assert record.cost.forward_passes == without.cost.forward_passes == first
    assert sum(passes) == 2 * first + first * 3 // 7, "three of seven pictures again"


def test_a_done_cell_is_left_alone_and_the_notice_says_what_makes_pictures(
    go: Go, norms: Norms, headings: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = go()
    capsys.readouterr()
    assert go("--save-predictions", "1")[0] == 0
    assert pictures(path) == [] and len(norms.started) == 1
    assert f"{path}: done already: --overwrite makes its pictures anew" in capsys.readouterr().err
    go("--overwrite", "--save-predictions", "1")
    before = {each: each.stat().st_mtime_ns for each in pictures(path)}
    capsys.readouterr()
    assert go("--save-predictions", "1", "--json")[0] == 0
    assert {each: each.stat().st_mtime_ns for each in pictures(path)} == before
    folder = path.with_suffix(".pictures")
    assert json.loads(capsys.readouterr().out)[0]["pictures"] == str(folder)
    go("--save-predictions", "1")
    assert f"its pictures of then are in {folder}; --overwrite" in capsys.readouterr().err


def test_a_new_record_replaces_the_pictures_of_the_old_one(go: Go, headings: list[Any]) -> None:
    _, path = go("--save-predictions", "2")
    old = {each.name: each.read_bytes() for each in pictures(path)}
    assert len(old) == 6
    go("--save-predictions", "2", "--overwrite")
    assert {each.name: each.read_bytes() for each in pictures(path)} == old, "to the byte"
    folder = path.with_suffix(".pictures")
    (folder / ".worst-1-x.png.1.tmp").write_bytes(b"of a run that was killed")
    (folder / "mine.txt").write_text("a note")
    go("--save-predictions", "1", "--overwrite")
    names = sorted(name for name in old if name.split("-")[1] == "1" and "median" not in name)
    found = [each.name for each in pictures(path)]
    assert len(found) == 4 and "mine.txt" in found and set(names) < set(found)
    (folder / "mine.txt").unlink()
    go("--overwrite")
    assert not folder.exists(), "none are wanted, and those there were of another record"


def test_few_pictures_are_shown_once(go: Go, headings: list[Any]) -> None:
    _, path = go("--save-predictions", "9", limit=2)
    assert list(ids(path)) == ["best-1", "worst-1"]


def test_ids_of_any_kind_stay_inside_the_folder(
    go: Go, headings: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = ["../../../evil", "/etc/x", "训练/图🐶", "a" * 300, "$x_1^{", "a\nb\0c", "..", "~/x"]
    plain = scenes._Samples.__getitem__

    def renamed(self: Any, index: Any) -> Any:
        sample = plain(self, index)
        if not isinstance(sample, Sample):
            return sample
        return dataclasses.replace(sample, id=hostile[index])

    monkeypatch.setattr(scenes._Samples, "__getitem__", renamed)
    status, path = go("--save-predictions", "3", limit=len(hostile))
    assert status == 0 and len(pictures(path)) == len(hostile)
    assert all(choice.FILE_NAME.fullmatch(each.name) for each in pictures(path))
    beside = {each for each in tmp_path.rglob("*") if each.is_file()} - set(pictures(path))
    assert {each.suffix for each in beside} <= {".json", ".parquet", ".lock", ""}


def test_a_folder_that_cannot_be_written_costs_no_record(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = go()
    path.with_suffix(".pictures").write_text("in the way")
    before = read(path).provenance.ended
    status, path = go("--overwrite", "--save-predictions", "1")
    assert status == 2
    record = finished(path)
    assert record is not None and record.provenance.ended > before
    said = capsys.readouterr().err
    assert f"{path.with_suffix('.pictures')}" in said and "cannot be written" in said
    assert "Traceback" not in said


def test_pictures_that_cannot_be_made_cost_no_neighbour_its_record(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(picture: Any, shown: Shown, classes: Any, heading: Sequence[str]) -> bytes:
        if shown.kind == "classes":
            raise ValueError("what cannot be drawn")
        return b"drawn"

    monkeypatch.setattr(saving, "draw", draw)
    status, path = go("--protocol", "depth", "--save-predictions", "1", limit=3)
    assert status == 1 and "shows what cannot be drawn" in capsys.readouterr().err
    (neighbour,) = path.parent.glob("depth~*.json")
    assert finished(path) is not None and pictures(path) == []
    assert finished(neighbour) is not None and len(pictures(neighbour)) == 3


def test_bad_pictures_are_left_out(
    go: Go, headings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scenes.ScenesDataset.picture

    def torn(self: Any, index: int) -> Any:
        if index == 1:
            raise BadPicture("torn")
        return plain(self, index)

    monkeypatch.setattr(scenes.ScenesDataset, "picture", torn)
    status, path = go("--save-predictions", "3", "--on-bad-image", "skip", limit=5)
    assert status == 0 and [bad.id for bad in read(path).bad_pictures] == ["test-000001"]
    assert sorted(ids(path).values()) == [f"test-00000{number}" for number in (0, 2, 3, 4)]


def test_of_several_seeds_the_last_is_shown(
    go: Go, headings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    standing = NormsEvaluation.standing

    def noted(self: NormsEvaluation) -> Any:
        asked.append(self.seed)
        return standing(self)

    monkeypatch.setattr(NormsEvaluation, "standing", noted)
    status, path = go("--save-predictions", "1", "--seeds", "3", "--seed", "4", limit=3)
    assert status == 0 and asked == [6] and len(pictures(path)) == 3
    assert all(lines[-1].endswith(" · seed 6") for lines in headings) and len(headings) == 3
    (worst,) = (lines for lines in headings if lines[1] == ids(path)["worst-1"])
    assert worst[0].startswith("worst 1: score -0.") and "1 of 3 from the worst" in worst[0]


def test_a_task_that_shows_nothing_is_named(
    go: Go,
    headings: list[Any],
    tiny_models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, path = go("--task", "lost", "--protocol", "lost", "--save-predictions", "1", limit=3)
    assert status == 0 and len(pictures(path)) == 3
    said = capsys.readouterr().err
    assert said.count("not for lost, which says nothing of single pixels") == 1
    alone = ["run", "--task", "lost", "--model", "tiny-reg4", "--dataset", "scenes"]
    alone += ["--models", str(tiny_models), "--out", str(tmp_path / "none")]
    alone += ["--save-predictions", "1"]
    for more in ([], ["--dry-run"]):
        assert main([*alone, *more]) == 2
        said = capsys.readouterr().err
        assert "lost says nothing of single pixels that could be shown" in said
        assert "(of the tasks, norms can)" in said
    assert not (tmp_path / "none").exists()
    with pytest.raises(HarnessError, match="lost says nothing of single pixels"):
        evaluate("lost", "tiny-reg4", "scenes", model_files=[tiny_models], save_predictions=1)


@pytest.mark.parametrize("given", [-1, "three", 2**63])
def test_the_number_is_checked(given: Any) -> None:
    with pytest.raises(HarnessError, match="--save-predictions"):
        Options(["lost"], ["tiny"], save_predictions=given)


def broken(kind: str) -> Any:
    plain = NormsEvaluation.shown

    def shown(self: NormsEvaluation, batch: Batch) -> Iterator[Shown]:
        for each in plain(self, batch):
            if kind == "nothing":
                continue
            if kind == "another":
                yield dataclasses.replace(each, id="elsewhere")
            elif kind == "size":
                yield dataclasses.replace(each, prediction=each.prediction[:9])
            else:
                raise RuntimeError("CUDA out of memory: can't allocate memory")

    return shown


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("nothing", "task norms: shows nothing of 'test-00000"),
        ("another", "task norms: shows 'elsewhere', which it was not given"),
        ("size", "shows a prediction [9, 128] and a truth [128, 128]"),
        ("memory", "is written, but not all of its pictures: out of memory"),
    ],
)
def test_an_evaluation_that_shows_something_else_is_an_error_and_costs_no_record(
    kind: str,
    complaint: str,
    go: Go,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(NormsEvaluation, "shown", broken(kind))
    status, path = go("--save-predictions", "1", limit=3)
    assert status == 1 and finished(path) is not None and pictures(path) == []
    assert complaint in capsys.readouterr().err


def test_a_standing_of_unknown_pictures_is_an_error(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NormsEvaluation, "standing", lambda self: {"elsewhere": 1.0})
    assert go("--save-predictions", "1", limit=3)[0] == 1
    assert "'elsewhere' is none of its test pictures" in capsys.readouterr().err
