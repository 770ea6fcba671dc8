"""What two results made of the same pictures, row for row, and how far apart their scores are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import aggregates
from harness.aggregates import Column, Weights, complete, scenes
from harness.errors import HarnessError
from harness.records import read_columns
from harness.results.scores import close, value_of
from harness.schema import Metric
from harness.stats import bootstrap_scores, quantiles
from harness.tables.rows import Pair, Result

NOTHING_SHARED = "no picture or class has a value of both"


@dataclass(frozen=True)
class Paired:
    """A metric's columns of the same pictures, row for row, from two results: ``first`` and
    ``second``, each ``[n]`` or ``[n, k]``. ``ids [n]``; ``scenes [n]`` numbers what they are of.
    ``lost`` is how many further pictures have a value of the first and none of the second."""

    name: str
    metric: Metric
    ids: Column
    first: list[Column]
    second: list[Column]
    scenes: Column | None
    lost: int = 0

    @cached_property
    def same(self) -> bool:
        """Whether no picture's value moved."""
        return all(map(np.array_equal, self.first, self.second))

    @cached_property
    def change(self) -> NDArray[np.float64] | None:
        """Second less first, ``[n]``, of a metric that is the mean of a column; else None."""
        if self.metric.aggregate != "mean":
            return None
        first, second = (each[0].astype(np.float64) for each in (self.first, self.second))
        found: NDArray[np.float64] = (second - first) * self.metric.scale
        return found

    @property
    def hits(self) -> bool:
        """Whether each picture is a hit or a miss, for both."""
        both = (self.first[0], self.second[0])
        return self.change is not None and all(np.isin(each, (0.0, 1.0)).all() for each in both)

    @cached_property
    def pictures(self) -> bytes:
        """Cells in which this agrees are of the same pictures, of the same scenes."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids).tobytes())
        if self.scenes is not None:
            digest.update(np.ascontiguousarray(self.scenes).tobytes())
        return digest.digest()

    def values(self) -> tuple[float, float]:
        """Both scores, in the metric's unit."""
        name, scale = self.metric.aggregate, self.metric.scale
        ours, theirs = (aggregates.values(name, each) for each in (self.first, self.second))
        both = (float(aggregates.mean_of_parts(each[None])[0]) for each in (ours, theirs))
        first, second = both
        return first * scale, second * scale


def paired(
    first: Mapping[str, Column], second: Mapping[str, Column], metrics: Mapping[str, Metric]
) -> Iterator[Paired]:
    """``metrics`` that both tables have columns for, of the pictures that both scored.

    Which pictures were scored may differ: a bad one may be skipped by one run and not the other. A
    picture without a value (NaN) in either is left out of that metric; of several draws or seeds,
    where the one has more than the other, each is held against each.
    """
    ids, rows, others = common(first["image_id"], second["image_id"])
    numbers = scenes(first)
    for name, metric in metrics.items():
        if metric.column is None:
            continue
        names = [metric.column, *metric.others]
        if any(each not in table for each in names for table in (first, second)):
            continue
        ours, theirs = [first[n][rows] for n in names], [second[n][others] for n in names]
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.ndim == 2:
                width = np.lcm(one.shape[1], other.shape[1])
                ours[place] = np.tile(one, (1, width // one.shape[1]))
                theirs[place] = np.tile(other, (1, width // other.shape[1]))
        *kept, places = complete([*ours, *theirs, np.arange(len(ids))])
        if not len(places):
            continue
        lost = 0
        if len(places) < len(first["image_id"]):
            lost = len(complete([first[each] for each in names])[0]) - len(places)
        yield Paired(
            name,
            metric,
            ids[places],
            kept[: len(names)],
            kept[len(names) :],
            None if numbers is None else numbers[rows][places],
            lost,
        )


def common(first: Column, second: Column) -> tuple[Column, NDArray[np.intp], NDArray[np.intp]]:
    """The ids in both, sorted, and their places in each. Sorting text is slow, and most tables are
    sorted alike."""
    if np.array_equal(first, second) and bool(np.greater(first[1:], first[:-1]).all()):
        places = np.arange(len(first))
        return first, places, places
    ids, rows, others = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return ids, rows, others


def read_paired(pair: Pair, metrics: Mapping[str, Metric]) -> dict[str, Paired]:
    """The per-picture values that both results of a pair have, of those of ``metrics`` that have
    any, by name.

    Raises ``HarnessError`` for a table that is damaged, or of other pictures than its record says.
    """
    needed = {"image_id", aggregates.SCENE}.union(
        *({metric.column or "", *metric.others} for metric in metrics.values())
    )
    tables = [read_columns(each.path, each.record, needed) for each in (pair.first, pair.second)]
    for result, table in zip((pair.first, pair.second), tables, strict=True):
        check_table(result, table)
    if not len(common(tables[0]["image_id"], tables[1]["image_id"])[0]):
        raise HarnessError(
            f"{pair.first.path.with_suffix('.parquet')} and "
            f"{pair.second.path.with_suffix('.parquet')} have no picture in common, though their "
            "records say that both scored the same: one is of another data set"
        )
    return {each.name: each for each in paired(tables[0], tables[1], metrics)}


def check_table(result: Result, table: Mapping[str, aggregates.Column]) -> None:
    """That a table gives the scores of its record, and each picture one row."""
    path = result.path.with_suffix(".parquet")
    ids = table.get("image_id")
    if ids is None or len(set(ids.tolist())) != len(ids):
        raise HarnessError(f"{path}: damaged: not one row for each picture (image_id)")
    for name, metric in result.record.metrics.items():
        aggregates.find(metric.aggregate)
        made_of = [metric.column or "", *metric.others]
        if any(each not in table for each in made_of):
            continue
        columns = aggregates.complete([table[each] for each in made_of])
        score = value_of(metric, columns)
        if not close(score, metric.value):
            raise HarnessError(
                f"{path}: its pictures give {name} {score:.4g}, the record says "
                f"{metric.value:.4g}: it is of another run or data set, "
                "or the score is made otherwise now; run the cell again"
            )


class Drawn(NamedTuple):
    """How much the second's score is above the first's: its 95 % interval, and the standard
    deviation over the draws. NaN where no draw has a score."""

    difference: float
    low: float
    high: float
    error: float


def drawn(cells: Sequence[Paired], seed: int, draws: int = 2000) -> list[Drawn]:
    """Of cells of the same pictures (``Paired.pictures``), all from the same draws of these."""
    count, clusters = len(cells[0].ids), cells[0].scenes
    means = [cell.change for cell in cells if cell.change is not None]
    columns = np.stack(means, axis=1) if means else np.zeros((count, 0))
    others = [_difference(cell) for cell in cells if cell.change is None]
    once = np.ones((1, count), np.int64)

    def mean_of(weights: Weights) -> NDArray[np.float64]:
        weighing = weights.astype(np.float64)
        found: NDArray[np.float64] = weighing @ columns / weighing.sum(axis=1, keepdims=True)
        return found

    scores = [mean_of, *others]
    found = bootstrap_scores(scores, count, seed, draws, clusters=clusters)
    values = [score(once)[0] for score in scores]
    places = iter(range(len(means)))
    further = iter(range(1, len(scores)))
    result = []
    for cell in cells:
        if cell.change is not None:
            place = next(places)
            value, those = values[0][place], found[0][:, place]
        else:
            place = next(further)
            value, those = values[place], found[place]
        there = those[~np.isnan(those)]
        error = float(there.std(ddof=1)) if len(there) > 1 else float("nan")
        low, high = quantiles(those)
        result.append(Drawn(float(value), float(low), float(high), error))
    return result


def _difference(data: Paired) -> Callable[[Weights], NDArray[np.float64]]:
    parts, scale = aggregates.find(data.metric.aggregate), data.metric.scale

    def of(weights: Weights) -> NDArray[np.float64]:
        apart = parts(data.second, weights) - parts(data.first, weights)
        return scale * aggregates.mean_of_parts(apart)

    return of
