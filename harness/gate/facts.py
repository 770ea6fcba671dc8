"""What a gate found, for a program."""

from __future__ import annotations

from typing import Any

from harness.gate.cells import Cell
from harness.gate.judge import Report
from harness.printable import json_text

_CELL = (
    *("dataset", "task", "protocol", "model", "metric", "unit", "higher_is_better"),
    *("state", "action", "baseline", "candidate", "difference", "low", "high", "tolerance"),
    *("p", "p_holm", "pictures", "scenes", "few_pictures", "lost", "reason", "ignored"),
)
_PACE = ("dataset", "task", "protocol", "model", "baseline", "candidate", "ratio", "slow")


def as_json(report: Report) -> str:
    facts = {
        "passed": report.passed,
        "verdict": report.verdict,
        "baseline": str(report.baseline),
        "candidate": str(report.candidate),
        "level": report.gate.level,
        "cells": [_facts(cell) for cell in report.cells],
        "speed": [{name: getattr(each, name) for name in _PACE} for each in report.paces],
        "notes": report.notes,
    }
    return json_text(facts) + "\n"


def _facts(cell: Cell) -> dict[str, Any]:
    found = {name: getattr(cell, name) for name in _CELL}
    found["lost_pictures"] = found.pop("lost")
    return found
