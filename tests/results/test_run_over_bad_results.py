"""``harness run`` where results are already, and not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_results import HOSTILE, NOT_READ, ODD
from resealed import changed

from harness import records
from harness.cli import main

RUN = ["run", "--task", "lost", "--model", "pixels", "--dataset", "scenes-demo", "--limit", "3"]
REFUSED = {"a later schema", "a folder"}
"""Nobody's to run over: it may be whole, or something else altogether."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "results"
    assert main([*RUN, "--no-store", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "results"))


def record(out: Path) -> Path:
    (path,) = out.glob("*/*/*/*.json")
    return path


# Damage is to a metric of `corloc`, and to names of a made record: what else there is, is the same.
DAMAGE = {name: do for name, do in NOT_READ.items() if name != "no metric"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cell_is_run_again_and_what_may_be_whole_is_refused(
    out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(out)
    value = records.read(path).metrics["corloc"].value
    DAMAGE[damage](path)
    before = {each: each.read_bytes() for each in out.rglob("*") if each.is_file()}
    status = main([*RUN, "--no-store", "--out", str(out)])
    shown = capsys.readouterr()
    assert not re.search("[\x1b\x9b]", shown.out + shown.err)
    if damage in REFUSED:
        assert status == 2 and str(path) in shown.err
        assert before == {each: each.read_bytes() for each in out.rglob("*") if each.is_file()}
        return
    assert status == 0
    again = records.finished(path)
    assert again is not None and again.metrics["corloc"].value == value


@pytest.mark.parametrize("damage", ["cut short", "NaN", "an older schema", "a later schema"])
def test_a_plan_says_what_it_would_do(
    out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    NOT_READ[damage](record(out))
    status = main([*RUN, "--dry-run", "--json", "--out", str(out)])
    shown = capsys.readouterr()
    if damage == "a later schema":
        assert status == 2 and "of schema 2" in shown.err and "upgrade" in shown.err
    else:
        (cell,) = json.loads(shown.out)
        assert status == 0 and cell["state"] == "damaged, to be run again"


@pytest.mark.parametrize("damage", [name for name in ODD if "setting" not in name])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_finished_result_with_odd_texts_is_shown_without_a_raw_one(
    out: Path, damage: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[damage](record(out))
    assert main([*RUN, *form, "--out", str(out)]) in (0, 2)
    shown = capsys.readouterr()
    assert not re.search("[\x1b\x9b\u202e\r]", shown.out + shown.err)


def test_pictures_that_were_left_out_are_named_without_a_raw_one(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"id": HOSTILE, "reason": HOSTILE}]
    changed(record(out), lambda facts: facts.update(bad_pictures=bad))
    assert main([*RUN, "--out", str(out)]) == 0
    assert not re.search("[\x1b\x9b]", "".join(capsys.readouterr()))


Make = Callable[[Path], object]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text(""),
        lambda path: path.symlink_to(path.name),
        lambda path: (path.mkdir(), (path / "scenes-demo").write_text("")),
        lambda path: os.mkfifo(path),
    ],
)
def test_a_folder_for_results_that_cannot_be_one_is_told_before_anything_runs(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "out")
    assert main([*RUN, "--no-store", "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
