"""Two models, cell by cell: how far apart they are, how sure that is, and what it costs.

Both scored the same pictures, so everything is paired. Pictures (or the scenes that they are of)
are drawn once for all cells of the same pictures: 2,000 draws give the intervals; p-values come of
McNemar's test where a picture is a hit or a miss, and else of a permutation test, and are adjusted
for how many there are in the table (Holm).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness import aggregates
from harness.errors import HarnessError
from harness.schema import Cost
from harness.significance import FEWEST_DISCORDANT, Flips, holm, mcnemar, permutation, sign_flips
from harness.tables.paired import NOTHING_SHARED, Paired, drawn, read_paired
from harness.tables.rows import Pair, Result

FEW_PICTURES = 200
"""Below which a percentile interval is too short to be trusted, and is flagged."""
LEVEL = 0.05
_FIRST, _MEAN, _OTHER = 1_999, 9_999, 1_999
_PER_CELL = 25
"""Draws of a permutation test for each cell of the table, at least: the smallest p there is can
then stand Holm's adjustment for all of them."""

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
    """A metric being compared."""

    pair: Pair
    data: Paired
    row: Comparison


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
    compared = read_paired(pair, metrics)
    for name, row in blank.items():
        if own.metrics[name].aggregate != metrics[name].aggregate:
            yield replace(row, reason="what the metric is made of")
        elif name not in compared:
            yield replace(row, reason=NOTHING_SHARED)
        else:
            yield _cell(pair, compared[name], row)


def _cell(pair: Pair, data: Paired, row: Comparison) -> _Cell:
    first_value, second_value = data.values()
    row = replace(
        row,
        first_value=first_value,
        second_value=second_value,
        pictures=len(data.ids),
        scenes=None if data.scenes is None else len(np.unique(data.scenes)),
        verdict="no difference shown",
        test="permutation",
    )
    cell = _Cell(pair, data, row)
    if data.change is not None and data.hits and row.scenes in (None, row.pictures):
        test = mcnemar((data.change < 0).sum(), (data.change > 0).sum())
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


def _pictures(cell: _Cell) -> tuple[int, bytes]:
    """Cells in which this agrees draw the same pictures."""
    return cell.pair.second.seed, cell.data.pictures


def _measure(cells: list[_Cell], tested: int) -> None:
    """Differences, intervals and permutation tests of cells of the same pictures, all from the
    same draws. ``tested`` is how many tests there are in the whole table."""
    first = cells[0]
    count, seed, clusters = len(first.data.ids), first.pair.second.seed, first.data.scenes
    for cell, found in zip(cells, drawn([each.data for each in cells], seed), strict=True):
        cell.row = (
            replace(cell.row, verdict="not comparable", reason=NOTHING_SHARED, test=None)
            if np.isnan(found.difference)
            else replace(cell.row, difference=found.difference, low=found.low, high=found.high)
        )

    units = np.arange(count)
    if clusters is not None:
        units = np.unique(clusters, return_inverse=True)[1]
    means = [
        each for each in cells if each.data.change is not None and each.row.test == "permutation"
    ]
    by_unit = np.zeros((int(units.max()) + 1, len(means)))
    for place, cell in enumerate(means):
        by_unit[:, place] = np.bincount(units, cell.data.change)
    p_values = _in_two_steps(by_unit, seed, max(_MEAN, _PER_CELL * tested - 1))
    for cell, p in zip(means, p_values, strict=True):
        cell.row = replace(cell.row, p=float(p))
    draws = max(_OTHER, _PER_CELL * tested - 1)
    for cell in cells:
        if cell.data.change is None and cell.row.difference is not None:
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
