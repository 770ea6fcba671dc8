"""Trainings that are killed, and what they have written."""

from __future__ import annotations

import json
from pathlib import Path

from harness.progress import Silent


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class KilledAfter(Silent):
    """Ends the process, as it were, once ``steps`` batches are done."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def advance(self, pictures: int) -> None:
        self._left -= 1
        if not self._left:
            raise Killed


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
