"""The tables of docs/scale.md, line by line, as the code computes them: ``python
tests/scale_tables.py`` prints them."""

from __future__ import annotations

from functools import cache
from typing import Any

from harness.backbone.sources import architecture
from harness.classification import request_of, selector_of
from harness.collected import NOTED
from harness.console import size
from harness.features.select import row_bytes
from harness.forecast import _ROW
from harness.linear_grid import selectors_of
from harness.probes.log_losses import block_bytes, fit_bytes
from harness.probes.logistic import solver_bytes
from harness.registry import Registry
from harness.task import TokenRequest
from harness.task_names import find_task
from harness.timing.command import duration

PICTURES = (1_281_167, 14_197_122)  # train of ImageNet-1k and ImageNet-22k
CLASSES = (1_000, 21_841)
MODELS = ("vits", "vitb", "vitl", "vitg")
_DISK = 2**30  # bytes a second


@cache
def _requests(model: str) -> tuple[Any, TokenRequest, TokenRequest]:
    """The architecture, and what kNN (or logistic) and linear read of a picture."""
    facts = architecture(Registry.load([]).entry(model))
    knn: Any = find_task("knn").protocols["dinov2-knn"]
    linear: Any = find_task("linear").protocols["linear"]
    one = request_of(knn, facts, [selector_of(knn, facts)])
    return facts, one, request_of(linear, facts, selectors_of(linear, facts))


def stored(model: str) -> str:
    facts, *requests = _requests(model)
    cells = []
    for request in requests:
        row = sum(row_bytes(each, facts, request.view) + _ROW for each in request.select)
        assert row == request.bytes_per_picture + _ROW * len(request.select)  # "the same numbers"
        cells += [size(row * pictures) for pictures in PICTURES]
    return f"| `{model}` | {facts.width:,} | {' | '.join(cells)} |"


def kept(model: str) -> str:
    _, one, five = _requests(model)
    each = one.bytes_per_picture
    cells = [size(row * n) for row in (each, five.bytes_per_picture) for n in PICTURES]
    fits = [each + fit_bytes(each, classes) for classes in CLASSES]
    cells += [size(row * n) for row, n in zip(fits, PICTURES, strict=True)]
    return f"| `{model}` | {' | '.join(cells)} |"


def streamed(model: str) -> str:
    facts, one, five = _requests(model)
    cells = [size(NOTED * len(each.select) * PICTURES[1]) for each in (one, five)]
    cells += [
        size(NOTED * n + block_bytes(facts.width, k) + solver_bytes(facts.width, k))
        for n, k in zip(PICTURES, CLASSES, strict=True)
    ]
    cells += [duration(one.bytes_per_picture * n / _DISK) for n in PICTURES]
    return f"| `{model}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    for table in (stored, kept, streamed):
        print(*map(table, MODELS), sep="\n")
        print()
