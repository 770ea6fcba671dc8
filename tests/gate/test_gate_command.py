"""``harness regress`` as it is typed: exit statuses, and folders that are not as they should be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gated import Folders, moved
from made_records import hits, made

from harness import records
from harness.cli import main


def test_the_exit_status_is_the_verdict(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.both(hits(0.5), hits(0.5))
    assert folders.typed() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "passed: 1 cell: 1 unchanged"
    folders.both(*moved(40, 0), dataset="coco20k")
    assert folders.typed() == 1
    shown = capsys.readouterr().out
    assert shown.startswith("regressed\n") and "coco20k" in shown
    assert shown.splitlines()[-1] == "failed: 2 cells: 1 regressed, 1 unchanged"
    assert folders.typed("--dataset", "voc07") == 0


def test_json_has_the_numbers_of_every_cell(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.both(*moved(40, 0))
    made(folders.candidate, "vitb", hits(0.5))
    found = folders.facts(capsys)
    assert found["passed"] is False and found["verdict"].startswith("failed: 2 cells")
    new, cell = found["cells"]
    assert (new["state"], new["baseline"], new["p"]) == ("new", None, None)
    assert (cell["difference"], cell["tolerance"], cell["pictures"]) == (-4.0, 0.5, 1000)
    assert cell["low"] < -4 < cell["high"] < -0.5 and cell["p"] == cell["p_holm"]
    assert folders.typed("--json") == 1 and json.loads(capsys.readouterr().out) == found


def test_a_file_is_written_whole_and_the_verdict_told(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.both(hits(0.5), hits(0.5))
    out = folders.folder / "new" / "gate.json"
    assert folders.typed("--format", "json", "--out", out) == 0
    assert capsys.readouterr().out == "passed: 1 cell: 1 unchanged\n"
    assert json.loads(out.read_text())["passed"] and len(list(out.parent.iterdir())) == 1
    table = folders.folder / "gate.txt"
    assert folders.typed("--out", table) == 0
    assert table.read_text() == "passed: 1 cell: 1 unchanged\n"
    blocked = table / "gate.json"
    capsys.readouterr()
    assert folders.typed("--out", blocked) == 2
    assert "cannot be written" in capsys.readouterr().err


def complaint(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main(["regress", *map(str, command)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("harness: ")
    return captured.err


def test_folders_that_are_missing_empty_or_one_are_bad_input(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    there, none = folders.baseline, folders.folder / "none"
    made(there, "vits", hits(0.5))
    both = ("--baseline", there, "--candidate")
    assert "none: no such folder" in complaint(capsys, *both, none)
    assert "none: no such folder" in complaint(capsys, "--baseline", none, "--candidate", there)
    none.mkdir()
    assert "no result in" in complaint(capsys, *both, none)
    assert "no result in" in complaint(capsys, "--baseline", none, "--candidate", there)
    assert "are the same folder" in complaint(capsys, *both, there / ".." / "baseline")
    made(none, "vits", hits(0.5), dataset="two")
    assert "of what was asked for" in complaint(capsys, *both, none, "--dataset", "voc07")
    assert "no such file" in complaint(capsys, *both, none, "--gate", none / "gate.yaml")
    assert "--speed" in complaint(capsys, *both, none, "--speed", "nan")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema_version": 1, "task', "not strict JSON"),
        ("NaN", "NaN is not JSON"),
        ("later", "of schema 2"),
        ("climbing", "dataset.name"),
    ],
)
def test_a_damaged_or_later_candidate_is_a_damaged_cell_and_not_a_missing_one(
    folders: Folders, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    _, path = folders.both(hits(0.5), hits(0.5))
    folders.both(hits(0.5), hits(0.5), dataset="two")
    record = path.read_text()
    if text == "NaN":
        value = json.loads(record)["metrics"]["corloc"]["value"]
        text = record.replace(f'"value": {value}', '"value": NaN')
    elif text == "climbing":
        text = record.replace('"name": "voc07"', '"name": "../voc07"')
    elif text == "later":
        text = record.replace('"schema_version": 1', '"schema_version": 2')
    assert text != record
    path.write_text(text)
    states = {cell["dataset"]: cell for cell in folders.facts(capsys)["cells"]}
    assert (states["voc07"]["state"], states["voc07"]["action"]) == ("damaged", "fail")
    assert says in states["voc07"]["reason"] and "the candidate's" in states["voc07"]["reason"]
    assert states["two"]["state"] == "unchanged"
    assert folders.typed() == 1
    assert folders.typed("--gate", folders.gate("states: {damaged: warn}")) == 0


def test_a_damaged_baseline_is_told_too(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = folders.both(hits(0.5), hits(0.5))
    folders.both(hits(0.5), hits(0.5), dataset="two")
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    (_, cell) = folders.facts(capsys)["cells"]
    assert cell["state"] == "damaged" and "the baseline's" in cell["reason"]


def test_what_is_damaged_in_both_folders_has_a_line(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folders.both(hits(0.5), hits(0.5)):
        path.write_text("{}")
    folders.both(hits(0.5), hits(0.5), dataset="two")
    found = {cell["dataset"]: cell for cell in folders.facts(capsys)["cells"]}
    assert found["voc07"]["state"] == "damaged" and found["voc07"]["metric"] == "every metric"
    for path in (folders.baseline, folders.candidate):
        (path / "two" / "lost" / "vits" / "lost.json").write_text("{}")
    assert folders.typed() == 2
    assert "no whole result in" in capsys.readouterr().err


def test_a_table_of_other_pictures_than_its_record_is_damaged(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = folders.both(hits(0.5), hits(0.5))
    other = folders.folder / "other"
    ids = np.array([f"elsewhere-{place}" for place in range(400)])
    elsewhere = made(other, "vits", {**hits(0.5), "image_id": ids})
    record = records.read(path)
    mine = records.read(elsewhere).per_picture
    records_json = json.loads(path.read_text())
    assert mine is not None and record.per_picture is not None
    records_json["per_picture"]["sha256"] = mine.sha256
    path.write_text(json.dumps(records_json))
    path.with_suffix(".parquet").write_bytes(elsewhere.with_suffix(".parquet").read_bytes())
    (cell,) = folders.facts(capsys)["cells"]
    assert cell["state"] == "damaged" and "no picture in common" in cell["reason"]


def test_help_and_a_wrong_format_need_no_numpy() -> None:
    script = (
        "import sys; from harness.arguments import parser; parser(); print('numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_second_run_says_the_same(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.both(*moved(33, 12))
    assert folders.facts(capsys) == folders.facts(capsys)


def test_nothing_is_written_into_either_folder(folders: Folders) -> None:
    folders.both(hits(0.5), hits(0.5))
    before = {path: path.stat().st_mtime_ns for path in folders.folder.rglob("*")}
    folders.typed()
    assert {path: path.stat().st_mtime_ns for path in folders.folder.rglob("*")} == before


def test_a_result_that_was_copied_to_another_models_folder_is_damaged(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = folders.both(hits(0.5), hits(0.5))
    shutil.copytree(path.parent, path.parent.with_name("vitb"))
    found = {cell["model"]: cell for cell in folders.facts(capsys)["cells"]}
    assert found["vits"]["state"] == "unchanged" and found["vitb"]["state"] == "damaged"
    assert "wrong place; it is the result of voc07/lost/vits/lost.json" in found["vitb"]["reason"]


def test_the_status_is_the_verdict_where_the_reader_has_gone(folders: Folders) -> None:
    folders.both(*moved(40, 0))
    command = (
        f"{sys.executable} -m harness.cli regress --baseline {folders.baseline} "
        f"--candidate {folders.candidate} | true; exit ${{PIPESTATUS[0]}}"
    )
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")


def test_an_interrupt_leaves_no_file(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folders.both(hits(0.5), hits(0.5))
    monkeypatch.setattr("harness.gate.command.judge", interrupted)
    out = folders.folder / "verdict.md"
    assert folders.typed("--format", "github", "--out", out) == 130
    assert not out.exists() and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "aggregate", "says"),
    [
        (np.array(["yes"] * 400), "mean", "not numbers"),
        (np.ones((400, 2)), "mean", "not one number a picture"),
        (np.ones(400), "mean_of_tomorrow", "no aggregate 'mean_of_tomorrow'"),
    ],
)
def test_values_that_are_none_of_the_metrics_are_damaged(
    folders: Folders,
    capsys: pytest.CaptureFixture[str],
    column: np.ndarray[Any, Any],
    aggregate: str,
    says: str,
) -> None:
    for path in folders.both(hits(1.0), hits(1.0)):
        record = records.read(path)
        metric = record.metrics["corloc"].model_copy(update={"aggregate": aggregate})
        ids = [f"{place:05d}" for place in range(400)]
        changed = record.model_copy(update={"metrics": {"corloc": metric}})
        records.write(path, changed, {"image_id": ids, "hit": column})
    (cell,) = folders.facts(capsys)["cells"]
    assert cell["state"] == "damaged" and says in cell["reason"]


def test_results_without_a_score_are_not_judged(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folders.both(hits(0.5), hits(0.5)):
        record = json.loads(path.read_text())
        record["metrics"] = {}
        path.write_text(json.dumps(record))
    assert folders.typed() == 2
    assert "it has no score" in capsys.readouterr().err
