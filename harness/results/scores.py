"""Whether scores and their intervals follow from the per-picture tables.

Scores are computed at once. Intervals wait for those of the same pictures, so that the 2,000 draws
of them are made once for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import aggregates
from harness.aggregates import Column, Weights
from harness.schema import Metric, Record
from harness.stats import Score, bootstrap_together

_CLOSE = 1e-6
"""How far apart, of their size, two computations of one number may be."""
_MOST_HELD = 128 * 2**20

Key = tuple[int, int, bytes]


@dataclass
class _Waiting:
    path: Path
    name: str
    metric: Metric
    columns: list[Column]


@dataclass
class Intervals:
    """Metrics whose intervals are still to be computed."""

    _groups: dict[Key, list[_Waiting]] = field(default_factory=dict)
    _scenes: dict[Key, Column | None] = field(default_factory=dict)
    _held: int = 0

    def add(self, waiting: _Waiting, seed: int, scenes: Column | None) -> None:
        marks = b"" if scenes is None else hashlib.sha256(scenes.tobytes()).digest()
        key = seed, len(waiting.columns[0]), marks
        self._groups.setdefault(key, []).append(waiting)
        self._scenes[key] = scenes
        self._held += sum(column.nbytes for column in waiting.columns)

    @property
    def full(self) -> bool:
        return self._held > _MOST_HELD

    def wrong(self) -> Iterator[tuple[Path, str]]:
        """The paths of records whose intervals do not follow, and what is wrong with them; none is
        waiting then."""
        groups, self._groups, self._held = self._groups, {}, 0
        for key, group in groups.items():
            seed, count, _ = key
            means = [each for each in group if each.metric.aggregate == "mean"]
            others = [each for each in group if each.metric.aggregate != "mean"]
            scores = [_means(means, count), *map(_score, others)]
            found = bootstrap_together(scores, count, seed, clusters=self._scenes[key])
            pairs = [*found[0].T, *found[1:]]
            for each, (low, high) in zip([*means, *others], pairs, strict=True):
                told = each.metric.low, each.metric.high
                if not all(map(close, (low, high), told)):
                    yield (
                        each.path,
                        f"the interval of {each.name} is {told[0]:.6g} to {told[1]:.6g}, but its "
                        f"pictures give {low:.6g} to {high:.6g}",
                    )


def wrong_scores(
    path: Path, record: Record, table: Mapping[str, Column], intervals: Intervals
) -> Iterator[str]:
    """What the scores of a record have that its ``table`` does not give. The intervals of those
    that follow are left with ``intervals``."""
    numbers, seed = aggregates.scenes(table), int(record.dataset.fingerprint[:8], 16)
    for name, metric in record.metrics.items():
        if metric.column is None:
            continue
        columns = [table[each] for each in (metric.column, *metric.others)]
        together = columns if numbers is None else [*columns, numbers]
        together = aggregates.complete(together)
        columns = together[: len(columns)]
        scenes = None if numbers is None else together[-1]
        value = value_of(metric, columns)
        if not close(value, metric.value):
            yield f"{name} is {metric.value:.6g}, but its pictures give {value:.6g}"
            continue
        intervals.add(_Waiting(path, name, metric, columns), seed, scenes)


def value_of(metric: Metric, columns: Sequence[Column]) -> float:
    """What the columns of a metric, without pictures that have no value, give; NaN of nothing."""
    if not len(columns[0]):
        return np.nan
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite values
        parts = aggregates.values(metric.aggregate, columns)
        return float(metric.scale * aggregates.mean_of_parts(parts[None])[0])


def close(ours: float, theirs: float) -> bool:
    """Whether two scores are the same but for rounding."""
    return bool(np.isclose(ours, theirs, rtol=_CLOSE, atol=1e-9))


def _means(waiting: list[_Waiting], count: int) -> Score:
    """The means of the metrics' columns, ``[b, metrics]``."""
    columns = np.zeros((count, len(waiting)))
    for place, each in enumerate(waiting):
        columns[:, place] = each.columns[0].astype(np.float64) * each.metric.scale

    def of(weights: Weights) -> NDArray[np.float64]:
        weighing = weights.astype(np.float64)
        found: NDArray[np.float64] = weighing @ columns / weighing.sum(axis=1, keepdims=True)
        return found

    return of


def _score(waiting: _Waiting) -> Score:
    parts, scale = aggregates.find(waiting.metric.aggregate), waiting.metric.scale
    return lambda weights: scale * aggregates.mean_of_parts(parts(waiting.columns, weights))
