"""Two models, cell by cell: how far apart they are, how sure that is, and what it costs.

Both scored the same pictures, so everything is paired. Pictures (or the scenes that they are of)
are drawn once for all cells of the same pictures: 2,000 draws give the intervals; p-values come of
McNemar's test where a picture is a hit or a miss, and else of a permutation test, and are adjusted
for how many there are in the table (Holm).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness import aggregates
from harness.aggregates import Weights
from harness.errors import HarnessError
from harness.records import read_columns
from harness.schema import Cost
from harness.significance import FEWEST_DISCORDANT, Flips, holm, mcnemar, permutation, sign_flips
from harness.stats import bootstrap_together
from harness.tables.rows import Pair, Paired, Result, common, paired

FEW_PICTURES = 200
"""Below which a percentile interval is too short to be trusted, and is flagged."""
LEVEL = 0.05
_FIRST, _MEAN, _OTHER = 1_999, 9_999, 1_999
_PER_CELL = 25
"""Draws of a permutation test for each cell of the table, at least: the smallest p there is can
then stand Holm's adjustment for all of them."""

_NOTHING_SHARED = "no picture or class has a value of both"

Verdict = Literal["better", "worse", "no difference shown", "too few", "not comparable"]


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell: ``second`` against ``first``, in the metric's unit.

    ``difference`` is second less first, over the ``pictures`` that both scored; ``low`` to ``high``
    its 95 % paired bootstrap interval. ``p`` decides (McNemar's mid-p, or the permutation's);
    ``p_exact`` is McNemar's exact one; ``p_holm`` is ``p`` adjusted for the table. Numbers are None
    where the two are not comparable: ``reason`` then says which fields differ.
    """

    dataset: str
    task: str
    protocol: str
    metric: str
    unit: str
    higher_is_better: bool
    first: Result
    second: Result
    verdict: Verdict
    first_value: float | None = None
    second_value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    pictures: int = 0
    scenes: int | None = None
    test: Literal["mcnemar", "permutation"] | None = None
    discordant: int | None = None
    p: float | None = None
    p_exact: float | None = None
    p_holm: float | None = None
    reason: str | None = None

    @property
    def few_pictures(self) -> bool:
        return self.difference is not None and self.pictures < FEW_PICTURES

    @property
    def costs(self) -> tuple[Cost, Cost]:
        return self.first.record.cost, self.second.record.cost


@dataclass
class _Cell:
    """A metric being compared, with all that its pictures were worth."""

    pair: Pair
    data: Paired
    row: Comparison
    mean: NDArray[np.float64] | None
    """Second less first, ``[n]``, of a metric that is the mean of a column."""


def compare(
    pairs: Iterable[Pair],
    protocols: Callable[[Result], str],
    metrics: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """A row for each metric of each pair: those shown in tables, or the named ``metrics``.

    A pair whose table is damaged, or is of other pictures than its record says, is left out and
    told. ``protocols`` words the protocol of a result.
    """
    rows: list[Comparison | _Cell] = []
    for pair in pairs:
        try:
            rows += _of_pair(pair, protocols(pair.second), metrics)
        except HarnessError as error:
            tell(f"left out: {error}")
    cells = [row for row in rows if isinstance(row, _Cell)]
    tested = sum(cell.row.test is not None for cell in cells)
    cells.sort(key=_pictures)
    for _, same in groupby(cells, key=_pictures):
        _measure(list(same), max(1, tested))
    found = [row.row if isinstance(row, _Cell) else row for row in rows]
    adjusted = iter(holm([row.p for row in found if row.p is not None]))
    return [row if row.p is None else _judged(row, float(next(adjusted))) for row in found]


def _judged(row: Comparison, p_holm: float) -> Comparison:
    verdict: Verdict = "no difference shown"
    if p_holm < LEVEL and row.difference:
        verdict = "better" if (row.difference > 0) == row.higher_is_better else "worse"
    return replace(row, p_holm=p_holm, verdict=verdict)


def _of_pair(pair: Pair, protocol: str, wanted: Collection[str]) -> Iterator[Comparison | _Cell]:
    own, its = pair.first.record, pair.second.record
    metrics = {
        name: metric
        for name, metric in its.metrics.items()
        if name in own.metrics and (name in wanted if wanted else metric.shown)
    }
    blank = {
        name: Comparison(
            dataset=its.dataset.name,
            task=its.task,
            protocol=protocol,
            metric=name,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            first=pair.first,
            second=pair.second,
            verdict="not comparable",
        )
        for name, metric in metrics.items()
    }
    if pair.apart:
        reason = "; ".join(pair.apart)
        yield from (replace(row, reason=reason) for row in blank.values())
        return
    needed = {"image_id", aggregates.SCENE}.union(
        *({metric.column or "", *metric.others} for metric in metrics.values())
    )
    tables = [read_columns(each.path, each.record, needed) for each in (pair.first, pair.second)]
    for result, table in zip((pair.first, pair.second), tables, strict=True):
        _check(result, table)
    if not len(common(tables[0]["image_id"], tables[1]["image_id"])[0]):
        raise HarnessError(
            f"{pair.first.path.with_suffix('.parquet')} and "
            f"{pair.second.path.with_suffix('.parquet')} have no picture in common, though their "
            "records say that both scored the same: one is of another data set"
        )
    compared = {each.name: each for each in paired(tables[0], tables[1], metrics)}
    for name, row in blank.items():
        if own.metrics[name].aggregate != metrics[name].aggregate:
            yield replace(row, reason="what the metric is made of")
        elif name not in compared:
            yield replace(row, reason=_NOTHING_SHARED)
        else:
            yield _cell(pair, compared[name], row)


def _check(result: Result, table: Mapping[str, aggregates.Column]) -> None:
    """That a table gives the scores of its record, and each picture one row."""
    path = result.path.with_suffix(".parquet")
    ids = table.get("image_id")
    if ids is None or len(set(ids.tolist())) != len(ids):
        raise HarnessError(f"{path}: damaged: not one row for each picture (image_id)")
    for name, metric in result.record.metrics.items():
        if metric.aggregate != "mean" or metric.column is None or metric.column not in table:
            continue
        (column,) = aggregates.complete([table[metric.column]])
        score = metric.scale * column.astype(np.float64).mean() if len(column) else np.nan
        if not np.isclose(score, metric.value, rtol=1e-6, atol=1e-9):
            raise HarnessError(
                f"{path}: its pictures give {name} {score:.4g}, the record says "
                f"{metric.value:.4g}: it is of another run or data set; run the cell again"
            )


def _cell(pair: Pair, data: Paired, row: Comparison) -> _Cell:
    scale, aggregate = data.metric.scale, data.metric.aggregate
    ours, theirs = (aggregates.values(aggregate, each) for each in (data.first, data.second))
    row = replace(
        row,
        first_value=_mean(ours) * scale,
        second_value=_mean(theirs) * scale,
        pictures=len(data.ids),
        scenes=None if data.scenes is None else len(np.unique(data.scenes)),
        verdict="no difference shown",
        test="permutation",
    )
    if aggregate != "mean":
        return _Cell(pair, data, row, None)
    first, second = (each[0].astype(np.float64) for each in (data.first, data.second))
    cell = _Cell(pair, data, row, (second - first) * scale)
    hits = all(np.isin(each, (0.0, 1.0)).all() for each in (first, second))
    if hits and (row.scenes is None or row.scenes == row.pictures):
        test = mcnemar((first > second).sum(), (second > first).sum())
        discordant = int(test.first + test.second)
        few = discordant < FEWEST_DISCORDANT
        cell.row = replace(
            row,
            test="mcnemar",
            discordant=discordant,
            verdict="too few" if few else row.verdict,
            p=None if few else float(test.mid),
            p_exact=float(test.exact),
        )
    return cell


def _mean(parts: NDArray[np.float64]) -> float:
    return float(aggregates.mean_of_parts(parts[None])[0])


def _pictures(cell: _Cell) -> tuple[int, bytes]:
    """Cells in which this agrees draw the same pictures."""
    digest = hashlib.sha256(np.ascontiguousarray(cell.data.ids).tobytes())
    if cell.data.scenes is not None:
        digest.update(np.ascontiguousarray(cell.data.scenes).tobytes())
    return cell.pair.second.seed, digest.digest()


def _measure(cells: list[_Cell], tested: int) -> None:
    """Differences, intervals and permutation tests of cells of the same pictures, all from the
    same draws. ``tested`` is how many tests there are in the whole table."""
    first = cells[0]
    count, seed, clusters = len(first.data.ids), first.pair.second.seed, first.data.scenes
    means = [cell for cell in cells if cell.mean is not None]
    others = [cell for cell in cells if cell.mean is None]
    columns = np.zeros((count, len(means)))
    for place, cell in enumerate(means):
        columns[:, place] = cell.mean
    once = np.ones((1, count), np.int64)

    def mean_of(weights: Weights) -> NDArray[np.float64]:
        weighing = weights.astype(np.float64)
        found: NDArray[np.float64] = weighing @ columns / weighing.sum(axis=1, keepdims=True)
        return found

    scores = [mean_of, *(_difference(cell.data) for cell in others)]
    intervals = bootstrap_together(scores, count, seed, clusters=clusters)
    values = mean_of(once)[0]
    for place, cell in enumerate(means):
        low, high = intervals[0][:, place]
        cell.row = replace(
            cell.row, difference=float(values[place]), low=float(low), high=float(high)
        )
    for cell, score, (low, high) in zip(others, scores[1:], intervals[1:], strict=True):
        value = float(score(once)[0])
        cell.row = (
            replace(cell.row, verdict="not comparable", reason=_NOTHING_SHARED, test=None)
            if np.isnan(value)
            else replace(cell.row, difference=value, low=float(low), high=float(high))
        )

    units, by_unit = np.arange(count), columns
    if clusters is not None:
        units = np.unique(clusters, return_inverse=True)[1]
        by_unit = np.zeros((int(units.max()) + 1, len(means)))
        np.add.at(by_unit, units, columns)
    ours = [place for place, cell in enumerate(means) if cell.row.test == "permutation"]
    p_values = _in_two_steps(by_unit[:, ours], seed, max(_MEAN, _PER_CELL * tested - 1))
    for place, p in zip(ours, p_values, strict=True):
        means[place].row = replace(means[place].row, p=float(p))
    draws = max(_OTHER, _PER_CELL * tested - 1)
    for cell in others:
        if cell.row.difference is not None:
            cell.row = replace(cell.row, p=_swapped(cell, units, seed, draws))


def _in_two_steps(sums: NDArray[np.float64], seed: int, draws: int) -> NDArray[np.float64]:
    """Of sums over units ``[units, m]``. The p of those that few draws already show to be well
    above the level is left at that: more draws would not bring them below it."""
    slack = 1e-12 * np.abs(sums).sum(axis=0)
    total = sums.sum(axis=0)

    def test(places: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        those = sums[:, places]
        return permutation(sign_flips(those), len(sums), total[places], seed, count, slack[places])

    every = np.arange(sums.shape[1])
    if not len(every):
        return np.zeros(0)
    p_values = test(every, _FIRST)
    open_ = np.flatnonzero(p_values < 2 * LEVEL)
    if len(open_):
        p_values[open_] = test(open_, draws)
    return p_values


def _swapped(cell: _Cell, units: NDArray[np.int64], seed: int, draws: int) -> float:
    """The permutation test of a metric that is no mean: two models' rows of a picture change
    places. Both scores are those of all rows of both, each weighed 1 or 0."""
    data = cell.data
    parts, scale = aggregates.find(data.metric.aggregate), data.metric.scale
    both = [np.concatenate(pair) for pair in zip(data.first, data.second, strict=True)]

    def statistic(flips: Flips) -> NDArray[np.float64]:
        kept = (~flips[:, units]).astype(np.int64)
        first = parts(both, np.concatenate([kept, 1 - kept], axis=1))
        second = parts(both, np.concatenate([1 - kept, kept], axis=1))
        return scale * aggregates.mean_of_parts(second - first)[:, None]

    target = np.array([cell.row.difference])
    slack, count = 1e-9 * scale, int(units.max()) + 1
    p = float(permutation(statistic, count, target, seed, _FIRST, slack)[0])
    if draws > _FIRST and p < 2 * LEVEL:
        p = float(permutation(statistic, count, target, seed, draws, slack)[0])
    return p


def _difference(data: Paired) -> Callable[[Weights], NDArray[np.float64]]:
    parts, scale = aggregates.find(data.metric.aggregate), data.metric.scale

    def of(weights: Weights) -> NDArray[np.float64]:
        apart = parts(data.second, weights) - parts(data.first, weights)
        return scale * aggregates.mean_of_parts(apart)

    return of
