"""What stands in results/ and in README.md is what the commands say of the committed records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / "results" / "baseline"


@pytest.fixture
def output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What a command prints that is typed in results/, where the links of its page begin."""

    def of(*arguments: str) -> str:
        monkeypatch.chdir(ROOT / "results")
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return of


def test_the_leaderboard_is_that_of_the_baseline(output: Callable[..., str]) -> None:
    page = output("leaderboard", "--all", "--results", "baseline")
    assert (ROOT / "results" / "LEADERBOARD.md").read_text() == page


def test_the_table_in_the_readme_is_that_of_the_baseline(output: Callable[..., str]) -> None:
    said = output("compare", "nano", "nano-reg4", "--results", "baseline", "--format", "markdown")
    differences = said.partition("## what it costs")[0].partition("\n")[2].strip()
    assert len(differences.splitlines()) > 30
    assert differences in (ROOT / "README.md").read_text()


def test_the_baseline_is_the_whole_suite_with_the_weights_and_protocols_of_today(
    output: Callable[..., str],
) -> None:
    """A plan finds every cell done: none has to be run for a digest that has changed."""
    plan = json.loads(output("run", "--suite", "demo", "--out", "baseline", "--dry-run", "--json"))
    cells = [cell for cell in plan if cell["state"] != "not applicable"]
    assert len(cells) == len(list(BASELINE.glob("*/*/*/*.json")))
    assert {cell["state"] for cell in cells} == {"done"}
