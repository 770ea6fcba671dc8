"""Whether two outcomes are the same, to the bit or but for rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness import aggregates
from harness.aggregates import Column
from harness.contract.findings import Failed
from harness.task import MetricSpec, Outcome

NEAR = 2e-4
"""Scores as far apart as this, as a share or of the unit of a column, differ by rounding: a forward
pass of another batch rounds the last bits otherwise, and what is trained or counted follows. A
picture's own values may be ten times as far apart."""


def columns_of(outcome: Outcome, spec: MetricSpec) -> list[Column]:
    """What a metric is made of, without the pictures that have no value where it is partial."""
    columns = [np.asarray(outcome.columns[name]) for name in (spec.column, *spec.others)]
    return aggregates.complete(columns) if spec.partial else columns


def value_of(outcome: Outcome, spec: MetricSpec) -> float:
    """The score, as a record has it; NaN where there is none."""
    columns = columns_of(outcome, spec)
    if not len(columns[0]):
        return float("nan")
    parts = aggregates.values(spec.aggregate, columns)
    return spec.scale * float(aggregates.mean_of_parts(parts[None])[0])


def must_agree(first: Outcome, second: Outcome, when: str, exact: bool) -> None:
    """Raises ``Failed`` where the ``second`` outcome, got ``when``, is not the ``first``: in its
    pictures, its metrics, or the columns that they are made of; where ``exact``, to the bit."""
    if list(first.columns["image_id"]) != list(second.columns["image_id"]):
        raise Failed(
            "rows of the same pictures in the same order",
            f"{_ids(second)} in place of {_ids(first)} {when}",
        )
    if dict(first.metrics).keys() != dict(second.metrics).keys():
        raise Failed(
            f"the metrics {', '.join(first.metrics)}", f"{', '.join(second.metrics)} {when}"
        )
    for name, spec in first.metrics.items():
        ours, theirs = value_of(first, spec), value_of(second, second.metrics[name])
        off = NEAR * max(abs(ours), abs(spec.scale))
        if not _equal(np.array(ours), np.array(theirs), 0.0, 0.0 if exact else off):
            raise Failed(f"{name} {ours:.6g}", f"{theirs:.6g} {when}")
    used = {c for spec in first.metrics.values() for c in (spec.column, *spec.others)}
    names = [name for name in first.columns if name != "image_id"] if exact else sorted(used)
    for name in names:
        mine = np.asarray(first.columns[name])
        its = np.asarray(second.columns[name]) if name in second.columns else np.empty(0)
        share, most = (0.0, 0.0) if exact else (10 * NEAR, 10 * NEAR * _largest(mine))
        if mine.shape != its.shape or not _equal(mine, its, share, most):
            raise Failed(f"the same column {name} for every picture", f"another {when}")


def _equal(first: NDArray[np.generic], second: NDArray[np.generic], rel: float, off: float) -> bool:
    if first.dtype.kind in "fiub" and second.dtype.kind in "fiub" and (rel or off):
        mine, its = first.astype(np.float64), second.astype(np.float64)
        return bool(np.allclose(its, mine, rtol=rel, atol=off, equal_nan=True))
    numbers = first.dtype.kind in "fc" and second.dtype.kind in "fc"
    return bool(np.array_equal(first, second, equal_nan=numbers))


def _largest(column: NDArray[np.generic]) -> float:
    if column.dtype.kind not in "fiub" or not column.size:
        return 0.0
    finite = np.abs(column.astype(np.float64))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size else 0.0


def _ids(outcome: Outcome) -> str:
    ids = [str(each) for each in outcome.columns["image_id"]]
    return f"{len(ids)} ({', '.join(ids[:3])}{' …' if len(ids) > 3 else ''})"
