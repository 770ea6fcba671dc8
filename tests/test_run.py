from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from PIL import Image

from harness import evaluate, plan, run
from harness.data.dataset import Dataset, First, Role
from harness.data.generated import GeneratedDataset
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.options import Options
from harness.records import finished, read, read_columns, record_path
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

MAIN = [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())"]


def options(models_file: Path, out: Path, /, **changes: Any) -> Options:
    given: dict[str, Any] = {
        "tasks": ["lost"],
        "models": ["tiny-reg4"],
        "datasets": ["generated"],
        "model_files": [models_file],
        "out": out,
        "workers": 0,
        "device": "cpu",
    }
    return Options(**{**given, **changes})


def test_a_record_says_what_ran_on_what_and_what_it_cost(tiny_models: Path, tmp_path: Path) -> None:
    (record,) = evaluate(
        "lost",
        "tiny-reg4",
        "generated",
        model_files=[tiny_models],
        out=tmp_path,
        workers=0,
        device="cpu",
    )
    path = tmp_path / "generated" / "lost" / "tiny-reg4" / "lost.json"
    assert read(path) == record
    assert record.model.registers == 4 and record.model.weights == "checkpoint"
    assert record.protocol.settings["facet"] == "key"
    assert record.protocol.resolved["layer"] == 3
    assert record.dataset.pictures == record.cost.pictures == record.cost.forward_passes == 12
    assert record.cost.dtype == "fp32" and record.cost.device.startswith("cpu")
    assert record.provenance.seed == 0 and "torch" in record.provenance.versions
    assert record.complete
    columns = read_columns(path)
    assert list(columns) == [
        "image_id",
        "x0",
        "y0",
        "x1",
        "y1",
        "seed",
        "hit",
        "tied",
        "degenerate",
    ]
    corloc = record.metrics["corloc"]
    assert corloc.unit == "%" and corloc.higher_is_better
    assert corloc.value == pytest.approx(100 * columns["hit"].mean())
    assert corloc.low <= corloc.value <= corloc.high
    samples = {sample.id: sample for sample in GeneratedDataset("generated").samples}
    for image, x1, y1 in zip(columns["image_id"], columns["x1"], columns["y1"], strict=True):
        assert x1 <= samples[image].size[0] and y1 <= samples[image].size[1]


def test_protocols_of_one_model_share_one_pass(
    tiny_models: Path, tmp_path: Path, passes: list[int]
) -> None:
    wanted = options(
        tiny_models,
        tmp_path,
        protocols=["lost", "lost-swept", "lost-swept-on-test"],
    )
    results = list(run.run(plan.plan(wanted), wanted))
    assert len(results) == 3
    assert sum(passes) == 12
    assert all(record.cost.forward_passes == 12 for _, record in results)


def test_a_protocol_of_another_view_gets_its_own_pass(
    tiny_models: Path, tmp_path: Path, passes: list[int]
) -> None:
    wanted = options(tiny_models, tmp_path, protocols=["lost", "lost-swept-on-test"])
    cells = plan.plan(wanted)
    other = options(tiny_models, tmp_path, settings={"max_patches": 9999})
    list(run.run(cells[:1] + plan.plan(other), wanted))
    assert sum(passes) == 24


def test_a_finished_cell_is_not_run_again_unless_asked(
    tiny_models: Path, tmp_path: Path, passes: list[int]
) -> None:
    wanted = options(tiny_models, tmp_path)
    ((path, first),) = run.run(plan.plan(wanted), wanted)
    (cell,) = plan.plan(wanted)
    assert cell.state == "done" and cell.done == first
    assert list(run.run([cell], wanted)) == []
    assert sum(passes) == 12
    again = options(tiny_models, tmp_path, overwrite=True)
    ((_, second),) = run.run(plan.plan(again), again)
    assert sum(passes) == 24
    assert read(path) == second and second.metrics == first.metrics


def test_a_damaged_cell_is_run_again(tiny_models: Path, tmp_path: Path) -> None:
    wanted = options(tiny_models, tmp_path)
    ((path, _),) = run.run(plan.plan(wanted), wanted)
    table = path.with_suffix(".parquet")
    table.write_bytes(table.read_bytes()[:-7])
    (cell,) = plan.plan(wanted)
    assert cell.state == "damaged, to be run again"
    list(run.run([cell], wanted))
    assert finished(path) is not None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"datasets": ["generated"], "dataset_files": True}, "another data set"),
        ({"model_files": True}, "another model entry and another checkpoint"),
    ],
)
def test_a_result_of_something_else_is_not_replaced(
    change: dict[str, Any], complaint: str, tiny_models: Path, tmp_path: Path
) -> None:
    wanted = options(tiny_models, tmp_path / "out")
    ((path, record),) = run.run(plan.plan(wanted), wanted)
    if "dataset_files" in change:
        file = tmp_path / "data.yaml"
        file.write_text("generated: {format: generated, count: 5}\n")
        change = {"dataset_files": [file]}
    else:
        from tiny import entry

        file = tmp_path / "models.yaml"
        file.write_text(entry("tiny-reg4", 0))
        change = {"model_files": [file]}
    with pytest.raises(HarnessError, match=complaint):
        plan.plan(options(tiny_models, tmp_path / "out", **change))
    assert read(path) == record


def test_every_variant_has_its_own_file(tiny_models: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"limit": 5},
        {"limit": 6},
        {"settings": {"facet": "value"}},
        {"seed": 3},
        {"weights": "random"},
        {"weights": "random", "seed": 3},
        {"settings": {"k": 50}},
    ]
    paths = [plan.plan(options(tiny_models, tmp_path, **change))[0].path for change in changes]
    assert len(set(paths)) == len(paths)
    assert paths[0].name == "lost.json"
    assert all(path.name.startswith("lost~") for path in paths[1:])


def test_setting_a_field_to_its_own_value_is_no_variant(tiny_models: Path, tmp_path: Path) -> None:
    (cell,) = plan.plan(options(tiny_models, tmp_path, settings={"facet": "key"}))
    assert cell.path.name == "lost.json"


def test_a_limit_takes_the_first_pictures(tiny_models: Path, tmp_path: Path) -> None:
    wanted = options(tiny_models, tmp_path, limit=5)
    ((path, record),) = run.run(plan.plan(wanted), wanted)
    ids = [sample.id for sample in GeneratedDataset("generated").samples]
    assert list(read_columns(path)["image_id"]) == ids[:5]
    assert record.limit == 5 and not record.complete
    assert (record.dataset.pictures, record.cost.pictures) == (12, 5)


def test_random_weights_are_marked_and_follow_the_seed(tiny_models: Path, tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        wanted = options(tiny_models, tmp_path, weights="random", seed=seed, overwrite=True)
        ((_, record),) = run.run(plan.plan(wanted), wanted)
        assert record.model.weights == "random" and not record.complete
        assert record.model.checkpoint_sha256 is None
        digests.append(record.model.weights_digest)
    assert digests[0] == digests[1] != digests[2]


def folder_of_pictures(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(root / split / "cat" / "a.png")
    file = root.parent / "folder.yaml"
    file.write_text(f"cats: {{format: folder, root: {root}}}\n")
    return file


def test_a_task_that_makes_no_sense_is_listed_and_the_rest_is_run(
    tiny_models: Path, tmp_path: Path
) -> None:
    file = folder_of_pictures(tmp_path / "cats")
    wanted = options(
        tiny_models,
        tmp_path / "out",
        datasets=["cats", "generated"],
        dataset_files=[file],
    )
    cells = plan.plan(wanted)
    assert [cell.state for cell in cells] == ["not applicable", "to do"]
    assert cells[0].reason == "the data set has no boxes"
    assert len(list(run.run(cells, wanted))) == 1


def voc(root: Path, broken: bool) -> Path:
    """Six generated pictures in VOC's layout; the third is no picture if ``broken``."""
    from harness.data.generated import paint

    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    dataset = GeneratedDataset("generated", 6)
    names = []
    for index, sample in enumerate(dataset.samples):
        assert sample.target.boxes is not None
        objects = "".join(
            f"<object><name>thing</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in sample.target.boxes.xyxy
        )
        width, height = sample.size
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        name = f"picture{index}"
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{size}{objects}</annotation>"
        )
        Image.fromarray(paint(index)).save(root / "JPEGImages" / f"{name}.jpg")
        names.append(name)
    if broken:
        (root / "JPEGImages" / "picture2.jpg").write_bytes(b"\xff\xd8 not a picture")
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(names) + "\n")
    file = root.parent / "voc.yaml"
    file.write_text(f"six: {{format: voc, root: {root}, split: trainval}}\n")
    return file


def test_skipped_pictures_make_another_variant_that_is_found_again(
    tiny_models: Path, tmp_path: Path
) -> None:
    file = voc(tmp_path / "VOC2007", broken=True)
    wanted = options(
        tiny_models,
        tmp_path / "out",
        datasets=["six"],
        dataset_files=[file],
        on_bad_picture="skip",
    )
    ((path, record),) = run.run(plan.plan(wanted), wanted)
    assert [bad.id for bad in record.bad_pictures] == ["picture2"]
    assert "not a picture" in record.bad_pictures[0].reason or record.bad_pictures[0].reason
    assert not record.complete and path.name.startswith("lost~")
    assert list(read_columns(path)["image_id"]) == [f"picture{i}" for i in (0, 1, 3, 4, 5)]
    (cell,) = plan.plan(wanted)
    assert cell.state == "done"


def test_the_command_prints_a_plan_and_runs_nothing(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], passes: list[int]
) -> None:
    from harness.cli import main

    command = [
        "run",
        "--task",
        "lost",
        "--model",
        "tiny,tiny-reg4",
        "--dataset",
        "generated",
        "--models",
        str(tiny_models),
        "--out",
        str(tmp_path),
        "--protocol",
        "lost,lost-swept",
        "--dry-run",
    ]
    assert main([*command, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert [(cell["model"], cell["protocol"]) for cell in cells] == [
        ("tiny", "lost"),
        ("tiny", "lost-swept"),
        ("tiny-reg4", "lost"),
        ("tiny-reg4", "lost-swept"),
    ]
    assert all(cell["forward_passes"] == cell["pictures"] == 12 for cell in cells)
    assert cells[1]["bytes"] == 12 * 504 * 32
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 to do: 24 forward passes" in shown
    assert not passes and not list(tmp_path.glob("**/*.json"))


class CountingProtocol(Protocol):
    name: str = "counting"
    version: str = "1.0"


class Counting(Evaluation):
    """Remembers what it was fed, role by role."""

    mergeable: bool = False
    fed: ClassVar[list[tuple[str, list[str]]]] = []

    def update(self, role: Role, batch: Batch) -> None:
        self.fed.append((role, list(batch.ids)))

    def end(self, role: Role) -> None:
        self.fed.append((f"end of {role}", []))

    def finish(self) -> Outcome:
        ids = [i for role, group in self.fed if role == "test" for i in group]
        return Outcome(
            {"image_id": ids, "one": np.ones(len(ids))}, {"share": MetricSpec("one", "", True)}
        )

    def state(self) -> object:
        return None

    def load(self, state: Any) -> None:
        raise NotImplementedError

    def merge(self, other: Self) -> None:
        raise NotImplementedError


class CountingTask(Task[CountingProtocol]):
    """Trains on shuffled steps, then tests once: what probes will do."""

    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "counts"
    protocols: Mapping[str, CountingProtocol] = {"counting": CountingProtocol()}

    def requests(
        self, architecture: Any, datasets: Any, protocol: CountingProtocol, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        view = WholePicture(architecture.patch, 10_000)
        return {
            "test": TokenRequest(view, (0,)),
            "train": TokenRequest(view, (0,), order="shuffled", steps=4, step_size=3),
        }

    def start(self, context: Context[CountingProtocol]) -> Counting:
        Counting.fed.clear()
        return Counting()


class Square(GeneratedDataset):
    """One picture over and over, so that all have one size."""

    def __init__(self, split: str, count: int) -> None:
        super().__init__("square", count)
        self.split = split
        first = self.samples[0]
        self.samples = [type(first)(f"{split}{i}", first.size, first.target) for i in range(count)]

    def read(self, index: int) -> bytes:
        return super().read(0)


def test_a_task_is_fed_train_in_shuffled_steps_then_test_once(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_task", lambda name: CountingTask())
    roles: dict[Role, Dataset] = {"train": Square("train", 5), "test": Square("test", 4)}
    monkeypatch.setattr(plan.Catalog, "open", lambda self, name: roles)
    fed = []
    for batch_size in (1, 2, 7):
        wanted = options(
            tiny_models,
            tmp_path,
            tasks=["counting"],
            batch_size=batch_size,
            overwrite=True,
        )
        ((_, record),) = run.run(plan.plan(wanted), wanted)
        assert record.dataset.split == "test" and record.dataset.pictures == 4
        assert record.cost.forward_passes == 4 * 3 + 4
        fed.append(list(Counting.fed))
    train = [group for role, group in fed[0] if role == "train"]
    assert [len(group) for group in train] == [3, 3, 3, 3]
    assert sorted(image for group in train for image in group)[:2] == ["train0", "train0"]
    roles_in_order = list(dict.fromkeys(role for role, _ in fed[0]))
    assert roles_in_order == ["train", "end of train", "test", "end of test"]
    assert [g for r, g in fed[1] if r == "train"] == train == [g for r, g in fed[2] if r == "train"]


def command(models: Path, out: Path, *more: str) -> list[str]:
    return [
        *MAIN,
        "run",
        "--task",
        "lost",
        "--model",
        "tiny,tiny-reg4",
        "--dataset",
        "many",
        "--models",
        str(models),
        "--out",
        str(out),
        "--workers",
        "1",
        "--device",
        "cpu",
        *more,
    ]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    file = tmp_path / "many.yaml"
    file.write_text("many: {format: generated, count: 60}\n")
    return file


def wait_for_first_record(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("**/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_keeps_its_finished_cells_and_is_resumed(
    kill: signal.Signals, many: Path, tiny_models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(tiny_models, out, "--datasets", str(many))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    wait_for_first_record(process, out)
    if kill == signal.SIGKILL:
        os.killpg(process.pid, kill)
    else:
        process.send_signal(kill)
    _, errors = process.communicate(timeout=60)
    if kill == signal.SIGINT:
        assert process.returncode == 130, errors.decode()
        assert b"Traceback" not in errors, errors.decode()
    path = record_path(out, "many", "lost", "tiny", "lost")
    first = path.read_bytes()
    assert finished(path) is not None
    done = subprocess.run(arguments, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert path.read_bytes() == first
    assert finished(record_path(out, "many", "lost", "tiny-reg4", "lost")) is not None
    assert not list(out.glob("**/.*.tmp"))


@pytest.mark.slow
def test_two_runs_at_once_on_one_folder_both_end_well(
    many: Path, tiny_models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(tiny_models, out, "--datasets", str(many), "--overwrite")
    runs = [subprocess.Popen(arguments, stderr=subprocess.PIPE) for _ in range(2)]
    for one in runs:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors.decode()
    for model in ("tiny", "tiny-reg4"):
        path = record_path(out, "many", "lost", model, "lost")
        assert finished(path) is not None
        assert len(read_columns(path)["image_id"]) == 60


def test_first_hides_what_lies_beyond_it() -> None:
    whole = GeneratedDataset("generated", 6)
    part = First(whole, 4)
    assert len(part.samples) == 4 and part.fingerprint() != whole.fingerprint()
    assert part.read(3) == whole.read(3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(
    shared_data: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """The 100 smallest raccoons, each linked twice under new ids, and twenty times. The large ones
    would take the time, and a peak of theirs would hide what the others leave behind.

    glibc keeps freed blocks of many sizes for reuse, which wobbles by 300 MB; told to give large
    blocks back at once, the peak is what the harness holds, to a percent.
    """
    frugal = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_ARENA_MAX": "1"}
    original = shared_data / "raccoon" / "VOCdevkit" / "VOC2007"
    pictures = original / "JPEGImages"
    names = (original / "ImageSets/Main/trainval.txt").read_text().split()

    def size(name: str) -> int:
        with Image.open(pictures / f"{name}.jpg") as picture:
            return math.prod(picture.size)

    names = sorted(names, key=size)[:100]
    peaks = []
    for copies in (2, 20):
        root = tmp_path / str(copies)
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        ids = []
        for copy in range(copies):
            for name in names:
                ids.append(f"{copy}-{name}")
                for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
                    link = root / folder / (ids[-1] + suffix)
                    link.symlink_to(original / folder / (name + suffix))
        (root / "ImageSets/Main/trainval.txt").write_text("\n".join(ids) + "\n")
        file = tmp_path / f"{copies}.yaml"
        file.write_text(f"raccoons: {{format: voc, root: {root}, split: trainval}}\n")
        out = tmp_path / f"out{copies}"
        arguments = [
            "run", "--task", "lost", "--model", "tiny-reg4", "--dataset", "raccoons", "--models",
            str(tiny_models), "--datasets", str(file), "--out", str(out), "--device", "cpu",
        ]  # fmt: skip
        subprocess.run(
            [*MAIN, *arguments], check=True, capture_output=True, timeout=900, env=frugal
        )
        record = read(record_path(out, "raccoons", "lost", "tiny-reg4", "lost"))
        assert record.cost.pictures == 100 * copies
        peaks.append(record.cost.peak_memory_bytes)
    assert peaks[1] <= 1.03 * peaks[0], [f"{peak / 2**20:.0f} MiB" for peak in peaks]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weights": "checkpoint"}, "weights: 'checkpoint' is none of released, random"),
        ({"on_bad_picture": "Skip"}, "on bad picture: 'Skip' is none of fail, skip"),
        ({"seed": 2**70}, "less than"),
        ({"limit": 2.0}, "a whole number"),
    ],
)
def test_options_that_do_not_exist_are_refused(
    change: dict[str, Any], complaint: str, tiny_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=complaint):
        options(tiny_models, tmp_path, **change)


def test_a_changed_training_split_is_another_data_set(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_task", lambda name: CountingTask())
    roles: dict[Role, Dataset] = {"train": Square("train", 5), "test": Square("test", 4)}
    monkeypatch.setattr(plan.Catalog, "open", lambda self, name: roles)
    wanted = options(tiny_models, tmp_path, tasks=["counting"])
    ((_, record),) = run.run(plan.plan(wanted), wanted)
    assert set(record.dataset.fingerprints) == {"train", "test"}
    assert plan.plan(wanted)[0].state == "done"
    roles["train"] = Square("train", 6)
    with pytest.raises(HarnessError, match="another data set"):
        plan.plan(wanted)


def test_a_shuffled_request_is_planned_by_its_steps(
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.terminal import show_plan

    monkeypatch.setattr(plan, "find_task", lambda name: CountingTask())
    roles: dict[Role, Dataset] = {"train": Square("train", 5), "test": Square("test", 4)}
    monkeypatch.setattr(plan.Catalog, "open", lambda self, name: roles)
    (cell,) = plan.plan(options(tiny_models, tmp_path, tasks=["counting"]))
    assert sum(cell.passes.values()) == 4 * 3 + 4
    show_plan([cell])
    assert "1 of 1 to do: 16 forward passes" in capsys.readouterr().out


def test_repaired_pictures_are_scored_again(tiny_models: Path, tmp_path: Path) -> None:
    file = voc(tmp_path / "VOC2007", broken=True)
    picture = tmp_path / "VOC2007" / "JPEGImages" / "picture2.jpg"
    wanted = options(
        tiny_models, tmp_path / "out", datasets=["six"], dataset_files=[file], on_bad_picture="skip"
    )
    ((path, _),) = run.run(plan.plan(wanted), wanted)
    (cell,) = plan.plan(wanted)
    assert (cell.state, cell.path) == ("done", path)
    picture.write_bytes((picture.parent / "picture1.jpg").read_bytes())
    (cell,) = plan.plan(wanted)
    assert cell.state == "to do"
    ((whole, record),) = run.run([cell], wanted)
    assert whole.name == "lost.json"
    assert not record.bad_pictures


def test_a_cell_that_cannot_finish_does_not_take_its_neighbours_with_it(
    tiny_models: Path, tmp_path: Path
) -> None:
    wanted = options(tiny_models, tmp_path, protocols=["lost-swept", "lost"], limit=1)
    cells = plan.plan(wanted)
    with pytest.raises(HarnessError, match="two pictures with boxes"):
        list(run.run(cells, wanted))
    assert [cell.done is not None for cell in cells] == [False, True]
    assert finished(cells[1].path) is not None


def test_records_come_in_the_order_asked_for_whatever_was_there(
    tiny_models: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model_files": str(tiny_models), "out": str(tmp_path), "workers": 0}
    evaluate("lost", "tiny-reg4", "generated", protocols="lost", **given)
    records = evaluate("lost", ["tiny", "tiny-reg4"], "generated", **given)
    assert [record.model.name for record in records] == ["tiny", "tiny-reg4"]


def test_evaluate_says_why_nothing_is_applicable(tiny_models: Path, tmp_path: Path) -> None:
    file = folder_of_pictures(tmp_path / "cats")
    with pytest.raises(HarnessError, match="the data set has no boxes"):
        evaluate("lost", "tiny", "cats", model_files=tiny_models, dataset_files=file, out=tmp_path)


def test_no_memory_left_for_a_task_is_an_error_with_advice(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    wanted = options(tiny_models, tmp_path)
    cells = plan.plan(wanted)
    monkeypatch.setattr("harness.tasks.lost.LostEvaluation.update", full)
    with pytest.raises(HarnessError, match=r"while lost scored a picture: a smaller --batch-size"):
        list(run.run(cells, wanted))


def factory(seed: str) -> torch.nn.Module:
    """A model that brings its own weights: those that the file ``seed`` stands for."""
    import timm

    torch.manual_seed(int(Path(seed).read_text()))
    arguments = {"img_size": 98, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model: torch.nn.Module = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, **arguments
    )
    return model


def test_a_factory_whose_weights_changed_is_another_model(tmp_path: Path) -> None:
    seed, file = tmp_path / "seed", tmp_path / "models.yaml"
    seed.write_text("1")
    file.write_text(f"own: {{factory: '{__name__}:factory', arguments: {{seed: {seed}}}}}\n")
    wanted = options(file, tmp_path / "out", models=["own"], allow_code=True)
    list(run.run(plan.plan(wanted), wanted))
    assert plan.plan(wanted)[0].state == "done"
    seed.write_text("2")
    with pytest.raises(HarnessError, match="another set of weights"):
        plan.plan(wanted)
