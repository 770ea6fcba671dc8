"""``harness compare`` and ``harness leaderboard`` as they are typed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import hits, made

from harness.cli import main
from harness.registry import Registry
from harness.tables.rows import family


def entries(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert main([*command, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two pairs, a model alone, a floor, and what is kept out: random weights, a changed k."""
    folder = tmp_path / "results"
    for model, share in (("vits", 0.30), ("vits-reg4", 0.34), ("vitb", 0.5), ("vitb-reg4", 0.48),
                         ("mae-vitb16", 0.31), ("pixels", 0.2)):  # fmt: skip
        made(folder, model, hits(share))
    made(folder, "vitl", hits(0.9), variant={"weights": "random"})
    made(folder, "vitg", hits(0.9), variant={"set": {"k": 50}}, settings={"k": 50})
    return folder


def test_compare_says_what_is_better_by_how_much_and_beside_what_was_published(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "vits", "vits-reg4", "--results", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "vits-reg4 against vits" in shown and "better" in shown
    assert "DINOv2 ViT-L + reg" in shown and "reference line" in shown
    found = entries(capsys, "compare", "vits", "vits-reg4", "--results", str(out))
    (row,) = found["comparisons"]
    assert row["verdict"] == "better" and row["low"] < row["difference"] < row["high"]
    assert row["second_images_per_second"] == 2 and row["second_gigaflops"] is None
    assert main(["compare", "vits", "vits-reg4", "--results", str(out), "--format", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert line["verdict"] == "better" and float(line["difference"]) == row["difference"]
    assert (
        main(["compare", "vits", "vits-reg4", "--results", str(out), "--format", "markdown"]) == 0
    )
    assert "| voc07 | lost, lost | corloc % ↑ |" in capsys.readouterr().out


def test_pairs_are_every_model_with_its_baseline(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = entries(capsys, "compare", "--pairs", "--results", str(out))["comparisons"]
    assert {(row["first"], row["second"]) for row in found} == {
        ("vits", "vits-reg4"), ("vitb", "vitb-reg4")}  # fmt: skip


def test_the_leaderboard_ranks_with_ties_and_keeps_floors_and_runs_apart(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = entries(capsys, "leaderboard", "--results", str(out))
    measured = [each for each in found if each["kind"] == "measured"]
    ranks = {each["model"]: (each["rank"], each["tied"]) for each in measured}
    assert ranks == {
        "vitb": (1, True), "vitb-reg4": (1, True),
        "vits-reg4": (3, True), "mae-vitb16": (3, True), "vits": (3, True),
    }  # fmt: skip
    assert [each["model"] for each in found if each["kind"] == "floor"] == ["pixels"]
    gains = {each["model"]: each["gain"] for each in measured if each["gain"] is not None}
    assert gains.keys() == {"vits-reg4", "vitb-reg4"} and gains["vitb-reg4"] < 0
    assert {each["kind"] for each in found} >= {"target", "reference line"}
    everything = entries(capsys, "leaderboard", "--results", str(out), "--all")
    assert {"vitl", "vitg"} <= {each["model"] for each in everything}


def test_pairs_stand_together_with_the_paired_interval_of_the_gain(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = entries(capsys, "leaderboard", "--results", str(out), "--pairs")
    measured = [each for each in found if each["kind"] == "measured"]
    assert [each["model"] for each in measured] == ["vitb", "vitb-reg4", "vits", "vits-reg4"]
    (row,) = entries(capsys, "compare", "vits", "vits-reg4", "--results", str(out))["comparisons"]
    last = measured[-1]
    assert [last["gain"], last["gain_low"], last["gain_high"]] == pytest.approx(
        [row["difference"], row["low"], row["high"]]
    )


def test_markdown_has_the_best_in_bold_the_protocol_and_links_that_lead_to_records(
    out: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page" / "LEADERBOARD.md"
    assert main(["leaderboard", "--results", str(out), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count("**") == 2 and "| 1= | vitb | 0 | **" in text
    assert "protocol lost 1.0" in text and "k 100" in text
    links = [part.partition(")")[0] for part in text.split("[record](")[1:]]
    assert len(links) == 6 and all((page.parent / link).is_file() for link in links)


def test_task_data_set_and_family_choose(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = entries(capsys, "leaderboard", "--results", str(out), "--family", "mae")
    assert {each["model"] for each in found if each["kind"] == "measured"} == {"mae-vitb16"}
    assert main(["leaderboard", "--results", str(out), "--task", "depth"]) == 2
    assert "is of what was asked for" in capsys.readouterr().err


def test_a_family_is_what_a_name_begins_with() -> None:
    families = {name: family(name) for name in Registry.load().names()}
    assert families["vitg-reg4"] == families["vits"] == "dinov2"
    assert families["openclip-vitb16-ttr1"] == "openclip" and families["nano-reg4"] == "nano"


def complaint(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main([str(part) for part in command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("harness: ") for line in lines)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "command", [["leaderboard"], ["compare", "a", "b"], ["compare", "--pairs"]]
)
def test_a_folder_that_is_empty_or_missing_is_said_so(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no result" in complaint(capsys, *command, "--results", tmp_path)
    assert "no such folder" in complaint(capsys, *command, "--results", tmp_path / "none")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["compare"], "name two models, or --pairs"),
        (["compare", "vits"], "name two models, or --pairs"),
        (["compare", "vits", "vits"], "with another"),
        (["compare", "vits", "vits-reg4", "--pairs"], "name two models, or --pairs"),
        (["compare", "vits", "dino-vits8"], "no result of dino-vits8"),
        (["compare", "vits", "vits-reg4", "--metric", "speed"], "no pair has such a metric"),
    ],
)
def test_wrong_use_is_explained(
    command: list[str], says: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in complaint(capsys, *command, "--results", out)


def spoil(path: Path, how: str) -> None:
    text = path.read_text()
    if how == "truncated":
        path.write_text(text[: len(text) // 2])
    elif how == "NaN":
        value = json.loads(text)["metrics"]["corloc"]["value"]
        path.write_text(text.replace(f'"value": {value}', '"value": NaN', 1))
    elif how == "schema":
        path.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    else:
        made(path.parents[4] / "other", "vits", hits(0.3, seed=9), dataset="voc12")
        other = path.parents[4] / "other/voc12/lost/vits/lost.parquet"
        path.with_suffix(".parquet").write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "damaged, not strict JSON"),
        ("NaN", "NaN is not JSON"),
        ("schema", "of schema 2; this harness reads up to 1"),
        ("table of another data set", "not the table that lost.json was made of"),
    ],
)
def test_a_damaged_result_is_told_in_a_line_and_left_out(
    how: str, says: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(out / "voc07/lost/vits/lost.json", how)
    assert main(["leaderboard", "--results", str(out), "--format", "json"]) == 0
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("harness: left out: ") and says in line
    found = {each["model"] for each in json.loads(shown.out)}
    assert "vits-reg4" in found
    assert "no result of vits in" in complaint(
        capsys, "compare", "vits", "vits-reg4", "--results", out
    )


@pytest.mark.parametrize("command", ["leaderboard", "report"])
def test_a_record_without_a_metric_is_told_and_left_out(
    command: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (made(tmp_path / "one", "vits", hits(0.3)), out / "voc07/lost/vits/lost.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "metrics": {}}))
    common = "--out", tmp_path / "page"
    told = complaint(capsys, command, "--results", tmp_path / "one", *common)
    assert "vits/lost.json: it has no score" in told
    assert main([command, "--results", str(out), "--out", str(tmp_path / "page")]) == 0
    assert "vits/lost.json: it has no score" in capsys.readouterr().err
    assert "vitb-reg4" in (tmp_path / "page").read_text()


def test_two_results_of_one_cell_that_differ_are_refused(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "again", "vits", hits(0.35))
    told = complaint(capsys, "leaderboard", "--results", out, "--results", tmp_path / "again")
    assert "two results of vits" in told and str(other) in told


def test_neither_command_imports_torch(out: Path) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main(['compare', '--pairs', '--results', {str(out)!r}])\n"
        f"main(['leaderboard', '--pairs', '--results', {str(out)!r}])\n"
        "print(sorted({'torch', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_says_what_a_picture_costs_in_operations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--task", "lost", "--model", "nano", "--dataset", "generated", "--limit", "2"]
    assert (
        main([*command, "--out", str(tmp_path), "--workers", "0", "--device", "cpu", "--json"]) == 0
    )
    (record,) = json.loads(capsys.readouterr().out)
    assert record["cost"]["gigaflops"] == pytest.approx(0.544, abs=0.001)
    assert np.isfinite(record["cost"]["images_per_second"])
