"""Every command that reads results, on folders with things in them that no harness wrote.

Exit status 2, or the damaged one left out and told; never a traceback, never another's number,
and no control character on the terminal.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bad_results import BAD_TABLE, HOSTILE, LONG, NOT_READ, ODD
from made_records import hits, made
from resealed import changed, sealed

from harness import columns as table_columns
from harness.cli import main
from harness.results import check as results_check

COMMANDS = {
    "compare": ["compare", "vits", "vits-reg4", "--results"],
    "compare --pairs": ["compare", "--pairs", "--format", "markdown", "--results"],
    "leaderboard": ["leaderboard", "--results"],
    "leaderboard --pairs": ["leaderboard", "--pairs", "--format", "csv", "--results"],
    "leaderboard --json": ["leaderboard", "--all", "--json", "--results"],
    "check": ["results", "check"],
    "check --json": ["results", "check", "--json"],
}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "results"
    for model, share in (("vits", 0.3), ("vits-reg4", 0.6), ("vitb", 0.4), ("vitb-reg4", 0.5)):
        made(folder, model, hits(share, 40))
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "results"))


@pytest.fixture(autouse=True)
def no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes meanwhile, so that nobody need be waited for."""
    monkeypatch.setattr(results_check, "_BETWEEN_RENAMES", 0.0)


def record(out: Path, model: str = "vits-reg4") -> Path:
    return out / "voc07" / "lost" / model / "lost.json"


def typed(capsys: pytest.CaptureFixture[str], command: str, *folders: Path) -> tuple[int, str, str]:
    """Status, output and complaints of a command, without a raw control character in them."""
    words = COMMANDS[command]
    if words[-1] == "--results":
        words = [*words[:-1], *(word for each in folders for word in ("--results", str(each)))]
    else:
        words = [*words, *map(str, folders)]
    status = main(words)
    shown = capsys.readouterr()
    assert not CONTROL.search(shown.out) and not CONTROL.search(shown.err)
    assert "Traceback" not in shown.err
    if "--json" in words and shown.out:
        json.loads(shown.out, parse_constant=pytest.fail)
    return status, shown.out, shown.err


@pytest.mark.parametrize("damage", NOT_READ)
def test_a_record_that_cannot_be_read_is_left_out_and_told(
    out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    NOT_READ[damage](record(out))
    for command in COMMANDS:
        status, shown, told = typed(capsys, command, out)
        if "check" in command:
            assert status == 2 and "vits-reg4" in shown, command
        else:
            assert status == (2 if command == "compare" else 0), command
            assert "vits-reg4" in told and "vits-reg4" not in shown, command


@pytest.mark.parametrize("damage", BAD_TABLE)
def test_a_table_that_is_not_its_records_is_not_counted_on(
    out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads(record(out).read_text())["metrics"]["corloc"]["value"]
    BAD_TABLE[damage](record(out))
    for command in ("check", "compare", "compare --pairs", "leaderboard", "leaderboard --pairs"):
        status, shown, told = typed(capsys, command, out)
        if command == "leaderboard":  # which reads no table, and says what the record says
            assert status == 0 and f"{value:.1f}" in shown
            continue
        assert status == (2 if command in ("check", "compare") else 0), command
        assert "vits-reg4" in (shown if command == "check" else told)
        if command == "compare --pairs":
            assert "vits-reg4" not in shown
    board = [line for line in shown.splitlines() if ",vits-reg4," in line]
    assert board and all(",vits," not in line for line in board), "no gain without a comparison"


@pytest.mark.parametrize("damage", [*NOT_READ, *(f"table: {name}" for name in BAD_TABLE)])
def test_a_gate_fails_on_damage_on_either_side_and_a_page_is_made_without_it(
    whole: Path, out: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    {**NOT_READ, **{f"table: {name}": do for name, do in BAD_TABLE.items()}}[damage](record(out))
    for baseline, candidate in ((whole, out), (out, whole)):
        command = ["regress", "--baseline", str(baseline), "--candidate", str(candidate)]
        for form in ("table", "github", "junit", "json"):
            status = main([*command, "--format", form])
            shown = capsys.readouterr()
            assert status in (1, 2) and "reg4" in shown.out + shown.err, (baseline, form)
            assert not CONTROL.search(shown.out + shown.err)
    page = tmp_path / "page.html"
    assert main(["report", "--results", str(out), "--out", str(page)]) == 0
    assert "vits-reg4" in capsys.readouterr().err and page.exists()


@pytest.mark.parametrize("damage", ODD)
def test_a_gate_and_a_page_take_odd_records(
    whole: Path, out: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[damage](record(out))
    command = ["regress", "--baseline", str(whole), "--candidate", str(out)]
    for form in ("table", "github", "junit", "json"):
        assert main([*command, "--format", form]) in (0, 1, 2)
        shown = capsys.readouterr()
        assert not CONTROL.search(shown.out + shown.err), form
    page = tmp_path / "page.html"
    assert main(["report", "--results", str(out), "--out", str(page)]) == 0
    shown = capsys.readouterr()
    assert not CONTROL.search(shown.out + shown.err) and page.exists()


@pytest.mark.parametrize("damage", ODD)
def test_odd_records_reach_no_terminal_raw_and_take_no_time(
    out: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[damage](record(out))
    for command in COMMANDS:
        status, shown, _ = typed(capsys, command, out)
        assert status in (0, 2)
        if "csv" not in COMMANDS[command] and "--json" not in command:
            assert len(shown) < 100_000, command


@pytest.mark.parametrize("model", ["vitb", "vits-reg4"])
def test_a_record_without_a_score_is_left_out_wherever_it_stands(
    out: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(record(out, model), lambda facts: facts.update(metrics={}))
    for command in COMMANDS:
        status, shown, told = typed(capsys, command, out)
        if "check" in command:
            assert status == 2 and "it has no score" in shown
        elif command != "compare" or model == "vits-reg4":  # which reads only what is named
            assert "it has no score" in told and f"| {model} " not in shown


def test_two_results_of_a_cell_are_refused_with_both_named(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    made(other, "vits", hits(0.9, 40))
    for command in COMMANDS:
        status, shown, told = typed(capsys, command, out, other)
        assert status == 2
        text = shown + told
        assert str(record(other, "vits")) in text and str(record(out, "vits")) in text


def test_the_same_table_with_other_scores_is_another_result(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(out, tmp_path / "other"))
    changed(record(other, "vits"), lambda facts: facts["metrics"]["corloc"].update(value=35.0))
    for command in COMMANDS:
        status, _, _ = typed(capsys, command, out, other)
        assert status == 2, command


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["missing", "a file", "empty", "a link to itself", "hostile"])
def test_a_folder_without_results_is_bad_input(
    tmp_path: Path, command: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("folder" if what != "hostile" else HOSTILE.replace("\r", "") + "\udcff")
    if what == "a file":
        folder.write_text("{}")
    elif what == "empty":
        folder.mkdir()
    elif what == "a link to itself":
        folder.symlink_to(folder.name)
    status, _, told = typed(capsys, command, folder)
    assert status == 2 and str(tmp_path) in told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_may_not_be_read_is_told(
    out: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so that the refusal is made up."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == record(out):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    status, shown, told = typed(capsys, command, out)
    assert "Permission denied" in (shown if "check" in command else told)
    assert status == (2 if command in ("compare", "check", "check --json") else 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_read_is_told(
    out: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == record(out).parent:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    status, shown, told = typed(capsys, command, out)
    assert "Permission denied" in (shown if "check" in command else told)
    assert status == (2 if command in ("compare", "check", "check --json") else 0)


def test_a_hostile_folder_name_is_written_out_and_its_link_escaped(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "voc07").rename(out / "voc\x1b[31m)](x) \udcff")
    for command in COMMANDS:
        status, shown, _ = typed(capsys, command, out)
        assert status == (2 if "check" in command else 0), command
        shown.encode()
        if command == "leaderboard":
            assert "(results/" not in shown and "voc%1B%5B31m%29%5D%28x%29%20%FF/" in shown


def test_folders_that_lead_back_to_themselves_end(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("voc07/lost/again", "again", "voc07/lost/vits/again"):
        (out / name).symlink_to(out)
    for command in COMMANDS:
        status, _, _ = typed(capsys, command, out)
        assert status == (2 if "check" in command else 0), command


def test_long_texts_are_cut_on_a_terminal_and_whole_for_a_program(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ODD["a long unit"](record(out))
    _, shown, _ = typed(capsys, "compare", out)
    assert "(1,000,000 characters)" in " ".join(shown.split()) or len(shown) < 100_000
    _, shown, _ = typed(capsys, "leaderboard --json", out)
    assert LONG in shown


def test_a_text_that_would_take_all_memory_is_not_read(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy gives each of n texts the room of the longest."""
    ODD["a long id"](record(out))
    monkeypatch.setattr(table_columns, "_MOST_TEXT", 40 * 4 * 99_999)
    status, _, told = typed(capsys, "compare", out)
    assert status == 2 and "a text of 100,000 characters among 40 rows" in told


def test_no_byte_that_is_turned_or_cut_leads_to_a_traceback(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    files = [record(out), record(out).with_suffix(".parquet")]
    whole = {path: path.read_bytes() for path in files}
    for number in range(30):
        path = files[number % 2]
        data = bytearray(whole[path])
        if number % 5:
            data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        else:
            del data[generator.integers(len(data)) :]
        path.write_bytes(data)
        if path.suffix == ".parquet":
            sealed(record(out), shape=False)
        for command in ("compare", "check --json"):
            typed(capsys, command, out)
        for each, before in whole.items():
            each.write_bytes(before)
