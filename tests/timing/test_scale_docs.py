"""The table of docs/scale.md is what the code computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.backbone.sources import architecture
from harness.classification import request_of, selector_of
from harness.console import size
from harness.features.select import row_bytes
from harness.forecast import _ROW
from harness.linear_grid import selectors_of
from harness.registry import Registry
from harness.task import find_task

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()
PICTURES = (1_281_167, 14_197_122)  # train of ImageNet-1k and ImageNet-22k


def line(model: str) -> str:
    facts = architecture(Registry.load([]).entry(model))
    knn: Any = find_task("knn").protocols["dinov2-knn"]
    linear: Any = find_task("linear").protocols["linear"]
    requests = (
        request_of(knn, facts, [selector_of(knn, facts)]),
        request_of(linear, facts, selectors_of(linear, facts)),
    )
    cells = []
    for request in requests:
        row = sum(row_bytes(each, facts, request.view) + _ROW for each in request.select)
        assert row == request.bytes_per_picture + _ROW * len(request.select)  # "the same numbers"
        cells += [size(row * pictures) for pictures in PICTURES]
    return f"| `{model}` | {facts.width:,} | {' | '.join(cells)} |"


@pytest.mark.parametrize("model", ["vits", "vitb", "vitl", "vitg"])
def test_bytes_of_features_are_computed(model: str) -> None:
    assert line(model) in DOCS.splitlines()


def test_a_vector_has_53_bytes_of_geometry_and_linear_reads_five() -> None:
    assert f"and {_ROW} of geometry" in DOCS
    facts = architecture(Registry.load([]).entry("vits"))
    linear: Any = find_task("linear").protocols["linear"]
    assert len(selectors_of(linear, facts)) == 5
