"""A model against its baseline, picture by picture, where one run has both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.aggregates import difference
from harness.documents import canonical_json
from harness.plan import Cell
from harness.records import read_columns
from harness.tables.paired import paired


@dataclass(frozen=True)
class Difference:
    """A metric of a model less that of its baseline, in the metric's unit, over the ``pictures``
    that both scored. ``low`` to ``high`` is the 95 % paired interval."""

    model: str
    baseline: str
    task: str
    dataset: str
    protocol: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    pictures: int


def differences(cells: Sequence[Cell]) -> list[Difference]:
    """Every difference from a baseline that the finished ones among ``cells`` have, in their order.

    Two results are compared where task, protocol hash and the fingerprints of the pictures agree.
    A metric without a column is left out. Raises ``HarnessError`` for a damaged table.
    """
    done = {(cell.entry.name, _what(cell)): cell for cell in cells if cell.done is not None}
    found = []
    for cell in done.values():
        baseline = done.get((cell.entry.baseline or "", _what(cell)))
        if baseline is not None:
            found += _pair(cell, baseline)
    return found


def _what(cell: Cell) -> tuple[str, str, str, bytes]:
    fingerprints = canonical_json(cell.fingerprints)
    return cell.task.name, cell.dataset.name, cell.protocol.hash(), fingerprints


def _pair(cell: Cell, baseline: Cell) -> list[Difference]:
    assert cell.done is not None
    ours, theirs = read_columns(cell.path), read_columns(baseline.path)
    found = []
    for each in paired(ours, theirs, cell.done.metrics):
        value, interval = difference(
            each.metric.aggregate,
            each.first,
            each.second,
            each.metric.scale,
            int(cell.done.dataset.fingerprint[:8], 16),
            each.scenes,
        )
        if np.isnan(value):
            continue
        found.append(
            Difference(
                model=cell.entry.name,
                baseline=baseline.entry.name,
                task=cell.task.name,
                dataset=cell.dataset.name,
                protocol=cell.path.stem,
                metric=each.name,
                unit=each.metric.unit,
                value=value,
                low=interval.low,
                high=interval.high,
                pictures=len(each.ids),
            )
        )
    return found
