"""Folders of results for the tests of the gate, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import made
from numpy.typing import NDArray

from harness.cli import main
from harness.gate.gate_file import Gate
from harness.gate.judge import Report, judge
from harness.tables.rows import Chosen


class Folders:
    """``baseline`` and ``candidate`` below a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.baseline, self.candidate = folder / "baseline", folder / "candidate"

    def both(
        self,
        first: dict[str, NDArray[Any]],
        second: dict[str, NDArray[Any]],
        *args: Any,
        **how: Any,
    ) -> tuple[Path, Path]:
        """The same cell in both, of other columns; the model is vits."""
        return (
            made(self.baseline, how.get("model", "vits"), first, *args, **_rest(how)),
            made(self.candidate, how.get("model", "vits"), second, *args, **_rest(how)),
        )

    def gate(self, text: str) -> Path:
        path = self.folder / "gate.yaml"
        path.write_text(text)
        return path

    def judged(self, text: str | None = None, **how: Any) -> Report:
        gate = Gate.load(None if text is None else self.gate(text), **how)
        return judge(self.baseline, self.candidate, gate, Chosen())

    def typed(self, *more: object) -> int:
        """The exit status of the command."""
        folders = ("--baseline", self.baseline, "--candidate", self.candidate)
        return main(["regress", *map(str, (*folders, *more))])

    def facts(self, capsys: pytest.CaptureFixture[str], *more: object) -> Any:
        self.typed("--format", "json", *more)
        return json.loads(capsys.readouterr().out)


def _rest(how: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in how.items() if key != "model"}


def moved(
    lost: int, gained: int, count: int = 1000, seed: int = 0
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Hits of ``count`` pictures, half of them, and the same with so many lost and gained."""
    first = np.arange(count) % 2 == 0
    second = first.copy()
    generator = np.random.default_rng(seed)
    second[generator.choice(np.flatnonzero(first), lost, replace=False)] = False
    second[generator.choice(np.flatnonzero(~first), gained, replace=False)] = True
    return {"hit": first}, {"hit": second}
