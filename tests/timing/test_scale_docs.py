"""The tables and numbers of docs/scale.md are what the code computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scale_tables import CLASSES, MODELS, PICTURES, kept, stored, streamed

from harness.backbone.sources import architecture
from harness.collected import NOTED
from harness.console import size
from harness.forecast import _ROW
from harness.linear_grid import selectors_of
from harness.memory import _BLOCKS, LARGEST_BLOCK, SHARE
from harness.probes.logistic import solver_bytes
from harness.probes.neighbours import _ALL, _TRAINED_ON
from harness.registry import Registry
from harness.task_names import find_task

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("table", [stored, kept, streamed])
@pytest.mark.parametrize("model", MODELS)
def test_the_tables_are_computed(table: Callable[[str], str], model: str) -> None:
    assert table(model) in DOCS.splitlines()


def test_the_numbers_in_the_text_are_the_codes() -> None:
    text = " ".join(DOCS.split())
    facts = architecture(Registry.load([]).entry("vits"))
    linear: Any = find_task("linear").protocols["linear"]
    assert len(selectors_of(linear, facts)) == 5
    assert "five vectors a picture" in text and f"and {_ROW} of geometry" in text
    assert all(f"{n:,}" in text for n in (*PICTURES, *CLASSES))
    assert f"keep {NOTED} bytes a vector" in text
    assert SHARE == 0.5 and "half of what is free" in text
    assert _BLOCKS == 16 and f"a sixteenth of `--memory` ({size(LARGEST_BLOCK)[:3]} MiB" in text
    assert solver_bytes(9, 1) == 51 * 8 * 10 and "51 times the weights" in text
    assert f"{_TRAINED_ON} vectors a cell, or all of {_ALL:,}" in text
    assert size(50_000 * 4 * 1024) == "195.3 MiB" and "are 195 MiB" in text
    assert min(LARGEST_BLOCK, 2**33 / _BLOCKS) > 50_000 * 4 * 1024, "one block"
    step: Any = linear.batch_size
    assert size(step * 5 * 4 * 1024) == "20.0 MiB" and "are 20.0 MiB" in text
    assert f"in {5 * step:,} places" in text and math.isclose(step, 1024)
