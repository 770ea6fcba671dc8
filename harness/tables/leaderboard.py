"""Models ranked on every data set, task and protocol that they have results for.

A table is of results that are comparable. Its first metric ranks: a model's rank is one more than
the number of models whose whole interval is better than its own, so that those whose intervals
overlap may share a rank. Floors and published numbers stand below and have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import HarnessError
from harness.registry import Registry
from harness.schema import Metric, Record
from harness.tables.compare import Comparison, compare
from harness.tables.published import Published, published
from harness.tables.rows import FLOORS, Pair, Result, pairs_of


@dataclass(frozen=True)
class Gain:
    """What a model has over its baseline in the metric that ranks; the interval is paired, and
    None where it was not asked for."""

    baseline: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Standing:
    """A result in a table. Floors have no ``rank``; ``tied`` shares it with another. ``base`` is
    the result of the model's baseline in the same table."""

    result: Result
    rank: int | None
    tied: bool
    gain: Gain | None
    base: Result | None = None


@dataclass(frozen=True)
class Board:
    """One table: comparable results, the best first; with pairs, each below its baseline."""

    metrics: Mapping[str, Metric]
    standings: Sequence[Standing]
    published: Sequence[Published] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """One for all: of what they have in common."""
        return self.standings[0].result.record


@dataclass(frozen=True)
class _Group:
    """Comparable results, those that are ranked in order, and of each that it is gained on."""

    metrics: Mapping[str, Metric]
    ranked: Sequence[Result]
    floors: Sequence[Result]
    bases: Sequence[Result | None]

    @property
    def first(self) -> str:
        return next(iter(self.metrics))


def boards(
    results: Sequence[Result],
    registry: Registry,
    everything: bool = False,
    pairs: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Board]:
    """Tables of ``results``, by data set, task and protocol.

    Unless ``everything`` is wanted, only runs of a named protocol on whole splits with the model's
    own weights. With ``pairs`` only models that have a baseline there, those, and floors; the gain
    then has its paired interval. Raises ``HarnessError`` where nothing is left.
    """
    kept = [each for each in results if everything or each.record.complete]
    if not kept:
        raise HarnessError(
            f"all {len(results)} results are of changed protocols, parts of a data set or random "
            "weights; --all ranks them too"
        )
    alike: dict[tuple[str, str, str, bytes], list[Result]] = {}
    for each in kept:
        key = (*each.place, each.record.protocol.name, each.comparable)
        alike.setdefault(key, []).append(each)
    groups = [_group(alike[key], registry, pairs) for key in sorted(alike)]
    if pairs:
        groups = [group for group in groups if group.ranked]
        if not groups:
            raise HarnessError("no model stands beside its baseline: --pairs has nothing to show")
    compared = _compared(groups, tell) if pairs else {}
    return [_board(group, compared, pairs) for group in groups if group.ranked or group.floors]


def _group(results: list[Result], registry: Registry, pairs: bool) -> _Group:
    record = results[0].record
    metrics = {name: metric for name, metric in record.metrics.items() if metric.shown}
    metrics = metrics or dict(record.metrics)
    first = next(iter(metrics))
    there = [each for each in results if first in each.record.metrics]
    sign = -1 if metrics[first].higher_is_better else 1
    there.sort(key=lambda each: (sign * value_of(each, first), each.model))
    ranked = [each for each in there if each.model not in FLOORS]
    couples = pairs_of(registry, {each.model for each in ranked})
    if pairs:
        ranked = [each for each in ranked if any(each.model in couple for couple in couples)]
    baselines = {model: baseline for baseline, model in couples}
    floors = [each for each in there if each.model in FLOORS]
    return _Group(metrics, ranked, floors, [_base(each, ranked, baselines) for each in ranked])


def _base(result: Result, ranked: Sequence[Result], baselines: Mapping[str, str]) -> Result | None:
    """The result of a model's baseline, the one that ran alike if there are several."""
    bases = [other for other in ranked if other.model == baselines.get(result.model)]
    alike = [other for other in bases if other.variant == result.variant]
    return next(iter([*alike, *bases]), None)


def _compared(
    groups: Sequence[_Group], tell: Callable[[str], None]
) -> dict[tuple[Path, str], Comparison]:
    """Every model with its baseline, by the path of its record and the metric."""
    pairs = [
        Pair(base, each, [])
        for group in groups
        for each, base in zip(group.ranked, group.bases, strict=True)
        if base is not None
    ]
    rows = compare(pairs, str, {group.first for group in groups}, tell)
    return {(row.second.path, row.metric): row for row in rows}


def _board(group: _Group, compared: Mapping[tuple[Path, str], Comparison], pairs: bool) -> Board:
    first, ranked = group.first, group.ranked
    up = group.metrics[first].higher_is_better
    ranks = [1 + sum(_better(other, each, first, up) for other in ranked) for each in ranked]
    standings = []
    for each, base, rank in zip(ranked, group.bases, ranks, strict=True):
        gain, row = None, compared.get((each.path, first))
        if row is not None and row.difference is not None and base is not None:
            gain = Gain(base.model, row.difference, row.low, row.high)
        elif base is not None and not pairs:  # a pair that could not be compared has none
            gain = Gain(base.model, value_of(each, first) - value_of(base, first))
        standings.append(Standing(each, rank, ranks.count(rank) > 1, gain, base))
    if pairs:
        bases = zip(ranked, group.bases, strict=True)
        baselines = {each.model: base.model for each, base in bases if base is not None}
        standings = _below_baselines(standings, baselines)
    standings += [Standing(each, None, False, None) for each in group.floors]
    return Board(group.metrics, standings, published(standings[0].result.record))


def value_of(result: Result, metric: str) -> float:
    return result.record.metrics[metric].value


def _better(other: Result, result: Result, metric: str, up: bool) -> bool:
    its, own = other.record.metrics[metric], result.record.metrics[metric]
    return its.low > own.high if up else its.high < own.low


def _below_baselines(standings: Sequence[Standing], baselines: Mapping[str, str]) -> list[Standing]:
    """Each baseline with what it is the baseline of, the group with the best of all first."""
    groups: dict[str, list[Standing]] = {}
    for each in standings:
        model = each.result.model
        while model in baselines:
            model = baselines[model]
        groups.setdefault(model, []).append(each)
    return [
        each
        for root, group in groups.items()
        for each in sorted(group, key=lambda one: one.result.model != root)
    ]
