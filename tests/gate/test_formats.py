"""The verdict as GitHub, JUnit readers and programs take it, with names that mean harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from defusedxml import ElementTree
from gated import Folders, moved
from made_records import hits, made

from harness.gate.cells import Cell
from harness.gate.facts import as_json
from harness.gate.gate_file import Gate
from harness.gate.github import LIMIT, as_markdown
from harness.gate.judge import Report
from harness.gate.junit import as_xml
from harness.gate.pace import Pace
from harness.printable import printable

HOSTILE = (
    "<script>alert(1)</script> | a\r\nb `c` ]]> & \"q\" 'r' \x00\x1b[31m @org/team **x** \ud800"
)


def report(*cells: Cell, paces: tuple[Pace, ...] = (), path: str = "baseline") -> Report:
    return Report(Path(path), Path("candidate"), Gate.load(speed=0.8), cells, paces)


def cell(state: Any = "regressed", action: Any = "fail", **facts: Any) -> Cell:
    whole: dict[str, Any] = {
        "dataset": "voc07", "task": "lost", "protocol": "lost", "protocol_name": "lost",
        "model": "vits", "metric": "corloc", "unit": "%", "higher_is_better": True,
        "baseline": 50.0, "candidate": 47.0, "difference": -3.0, "low": -4.0, "high": -2.0,
        "tolerance": 0.5, "p": 1e-4, "p_holm": 1e-3, "pictures": 1000,
    }  # fmt: skip
    return Cell(**{**whole, "state": state, "action": action, **facts})


@pytest.fixture
def hostile() -> Report:
    names = dict.fromkeys(("dataset", "task", "protocol", "model", "metric", "unit"), HOSTILE)
    pace = Pace(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 10.0, 5.0, True)
    cells = [cell(state, action, **names, reason=HOSTILE, ignored=ignored)
             for state, action, ignored in (("regressed", "fail", None), ("damaged", "warn", None),
                                            ("new", "ignore", HOSTILE), ("unchanged", "pass", None))
             ]  # fmt: skip
    return report(*cells, paces=(pace,), path=HOSTILE)


def test_no_name_breaks_the_markdown(hostile: Report) -> None:
    text = as_markdown(hostile)
    assert "<script" not in text.replace("\\<script", "") and "@org" not in text
    lines = text.replace("\\|", "").split("\n")
    for row in (line for line in lines if line.startswith("|")):
        assert row.endswith("|") and row.count("|") in {5, 8, 13}, row
    assert all(character not in text for character in "\r\x85\u2028")
    assert text.count("<details>") == text.count("</details>") == 3


def test_no_name_breaks_the_xml(hostile: Report) -> None:
    text = as_xml(hostile)
    root = ElementTree.fromstring(text.encode())
    cases = root.findall(".//testcase")
    assert len(cases) == 5 and root.attrib["tests"] == "5" and root.attrib["failures"] == "2"
    assert cases[0].attrib["name"].count(printable(HOSTILE)) == 3


def test_no_name_breaks_the_json_and_there_is_no_nan(
    hostile: Report, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    text = as_json(hostile).encode("utf-8", "backslashreplace").decode()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["cells"][0]["dataset"] == HOSTILE and found["passed"] is False
    folders.both(*moved(40, 0))
    made(folders.baseline, "vitb", hits(0.5))
    folders.typed("--format", "json")
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_markdown_tells_the_verdict_first_and_folds_what_does_not_fail() -> None:
    text = as_markdown(report(cell(), cell("within noise", "pass"), cell("unchanged", "pass"),
                              cell("missing", "fail", low=None, high=None, p=None)))  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == (
        "## harness regress failed: 4 cells: 1 regressed, 1 within noise, 1 unchanged, 1 missing"
    )
    assert text.index("### regressed (1)") < text.index("**regressed**") < text.index("<details>")
    assert "<summary>fails for another reason (1)</summary>" in text
    assert "<summary>moved, or only told (1)</summary>" in text
    assert "<summary>unchanged (1)</summary>" in text and "-4.0 … -2.0" in text
    passed = as_markdown(report(cell("unchanged", "pass")))
    assert passed.startswith("## harness regress passed: 1 cell: 1 unchanged\n")
    assert "###" not in passed


def test_markdown_keeps_within_a_comment_and_says_what_was_cut() -> None:
    cells = [cell(model=f"vit-{place}") for place in range(500)]
    cells += [cell("within noise", "pass", model=f"vit-{place}ü") for place in range(1000)]
    text = as_markdown(report(*cells))
    assert len(text.encode()) <= LIMIT < 65_536
    shown = sum(line.startswith("| voc07") for line in text.splitlines())
    assert text.splitlines()[-1] == (
        f"{1500 - shown:,} rows do not fit here; `--format json` has them all."
    )
    assert "vit-499" in text or shown < 500
    assert text.count("<details>") == text.count("</details>")
    short = as_markdown(report(*cells[:20]))
    assert "do not fit" not in short


def test_a_reason_without_end_is_shortened_and_leaves_room() -> None:
    text = as_markdown(report(cell(reason="x" * LIMIT), cell(model="vitb")))
    assert "| vitb |" in text and f"({LIMIT:,} characters)" in text
    assert len(text.encode()) <= LIMIT and "do not fit" not in text


def test_junit_has_a_case_for_each_cell_and_a_message_for_each_failure() -> None:
    slow = Pace("voc07", "lost", "lost", "vits", 100.0, 50.0, True)
    text = as_xml(
        report(cell(), cell("new", "ignore"), cell("untested", "warn"), cell("unchanged", "pass"),
               cell(dataset="two"), paces=(slow,))
    )  # fmt: skip
    root = ElementTree.fromstring(text.encode())
    assert [suite.attrib["name"] for suite in root] == ["two", "voc07"]
    assert {name: root.attrib[name] for name in ("tests", "failures", "skipped")} == {
        "tests": "6", "failures": "3", "skipped": "1"
    }  # fmt: skip
    failure = root.find(".//failure")
    assert failure is not None and failure.attrib["type"] == "regressed"
    assert failure.attrib["message"] == (
        "regressed: baseline 50.0, candidate 47.0, difference -3.0, 95 % interval -4.0 … -2.0, "
        "tolerance 0.5, p Holm 0.001"
    )
    assert root.findall(".//failure")[-1].attrib["message"] == "50.0 images/s of 100.0: 0.50"


@pytest.mark.parametrize("format_", ["table", "github", "junit", "json"])
def test_every_format_can_be_printed_and_written(
    folders: Folders, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    folders.both(*moved(40, 0))
    assert folders.typed("--format", format_) == 1
    printed = capsys.readouterr().out
    out = folders.folder / "verdict"
    assert folders.typed("--format", format_, "--out", out) == 1
    assert out.read_text() == printed and "regressed" in printed
