"""Leaderboard tables as the page shows them: every cell with its text and its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.console import size
from harness.report.pairs import PairRow, differences
from harness.report.scales import Scale, linear
from harness.schema import Metric
from harness.tables.compare import Comparison
from harness.tables.leaderboard import Board, Standing
from harness.tables.leaderboard_sheets import (
    best,
    cautions,
    published_rows,
    settings,
    title_words,
)
from harness.tables.rows import family, protocol_words
from harness.tables.sheet import heading, measured, span

STRIP = 150.0
"""The width of a plot beside a row."""
_EDGE = 6.0  # room for half a dot


class Score(NamedTuple):
    """A metric of a result. ``published`` tells of the numbers that stand beside it."""

    value: float
    text: str
    span: str
    best: bool
    published: list[str]


class Strip(NamedTuple):
    """An interval, its value, and published values, as places on the table's scale."""

    low: float
    high: float
    value: float
    published: list[float]


@dataclass(frozen=True)
class Row:
    """A result in a table. ``record`` numbers its details on the page; ``paired``: it or its
    baseline stands in the table of pairs below."""

    record: int
    model: str
    words: list[str]
    family: str
    registers: int
    paired: bool
    random: bool
    rank: str
    floor: bool
    scores: list[Score | None]
    strip: Strip | None
    gain: float | None
    gain_text: str
    images_per_second: float
    gigaflops: float | None
    memory: int
    memory_text: str


@dataclass(frozen=True)
class Table:
    """All of one data set, task and protocol. ``heads`` name the metrics and say which way is
    better; ``pairs`` are of the first, which ranks."""

    anchor: str
    dataset: str
    task: str
    words: list[str]
    heads: list[tuple[str, bool]]
    rows: list[Row]
    scale: Scale | None
    published: list[dict[str, str]]
    metrics: list[str]
    protocol: str
    version: str
    hash: str
    settings: dict[str, str]
    notes: list[str]
    pairs: list[PairRow]
    pair_scale: Scale | None
    gain_scale: Scale | None

    @property
    def models(self) -> list[str]:
        return [row.model for row in self.rows]

    @property
    def title(self) -> str:
        return f"{self.task} on {self.dataset}, {', '.join(self.words)}"


def table(
    board: Board,
    number: int,
    places: Mapping[Path, int],
    compared: Mapping[tuple[Path, str], Comparison],
) -> Table:
    """``number`` names it on the page; ``places`` number the records by their paths; ``compared``
    are models with their baselines, by path and metric."""
    metrics, record = board.metrics, board.record
    first = next(iter(metrics))
    found = [
        row
        for each in board.standings
        if each.base is not None and (row := compared.get((each.result.path, first))) is not None
    ]
    pairs, pair_scale, gain_scale = differences(found, title_words(board), STRIP, _EDGE)
    paired = {model for row in pairs for model in (row.baseline, row.model)}
    scale = _scale(board, first)
    bests = {name: best(board, name) for name in metrics}
    several = len({each.result.variant for each in board.standings}) > 1
    gains = {row.second.path: row for row in found}
    return Table(
        anchor=f"t{number}",
        dataset=record.dataset.name,
        task=record.task,
        words=title_words(board),
        heads=[(_head(name, metric), metric.higher_is_better) for name, metric in metrics.items()],
        rows=[
            _row(board, each, places, bests, scale, paired, several, gains.get(each.result.path))
            for each in board.standings
        ],
        scale=scale,
        published=published_rows(board),
        metrics=list(metrics),
        protocol=record.protocol.name,
        version=record.protocol.version,
        hash=record.protocol.hash,
        settings=settings(board),
        notes=cautions(board),
        pairs=pairs,
        pair_scale=pair_scale,
        gain_scale=gain_scale,
    )


def _head(name: str, metric: Metric) -> str:
    """A heading that is not broken before its unit."""
    arrow = heading(name, metric.unit, metric.higher_is_better)[-1]
    parts = name.replace("_", " "), metric.unit, arrow
    return "\N{NO-BREAK SPACE}".join(each for each in parts if each)


def _scale(board: Board, metric: str) -> Scale | None:
    """Of all intervals, and of what was published of these models."""
    models = {each.result.model for each in board.standings}
    values = [
        end
        for each in board.standings
        if (found := each.result.record.metrics.get(metric)) is not None
        for end in (found.low, found.value, found.high)
    ]
    values += [p.value for p in board.published if p.metric == metric and p.model in models]
    return linear(values, _EDGE, STRIP - _EDGE, ticks=3)


def _row(
    board: Board,
    each: Standing,
    places: Mapping[Path, int],
    bests: Mapping[str, float | None],
    scale: Scale | None,
    paired: set[str],
    several: bool,
    compared: Comparison | None,
) -> Row:
    result, cost = each.result, each.result.record.cost
    first = next(iter(board.metrics))
    gain = None if compared is None else compared.difference
    return Row(
        record=places[result.path],
        model=result.model,
        words=protocol_words(result.record)[1:] if several else [],
        family=family(result.model),
        registers=result.record.model.registers,
        paired=result.model in paired,
        random=result.record.model.weights == "random",
        rank="floor" if each.rank is None else f"{each.rank}{'=' if each.tied else ''}",
        floor=each.rank is None,
        scores=[_score(board, each, name, bests[name]) for name in board.metrics],
        strip=_strip(board, each, first, scale),
        gain=gain,
        gain_text="" if gain is None else measured(gain, board.metrics[first].unit, signed=True),
        images_per_second=cost.images_per_second,
        gigaflops=cost.gigaflops,
        memory=cost.peak_memory_bytes,
        memory_text=size(cost.peak_memory_bytes),
    )


def _score(board: Board, each: Standing, name: str, top: float | None) -> Score | None:
    found = each.result.record.metrics.get(name)
    if found is None:
        return None
    text = measured(found.value, found.unit)
    if found.sd is not None:
        text += f" ± {measured(found.sd, found.unit)}"
    return Score(
        found.value,
        text,
        span(found.low, found.high, found.unit),
        each.rank is not None and found.value == top,
        [
            f"{measured(p.value, p.unit)}, {p.kind}: {p.source}, {p.where}"
            for p in board.published
            if p.metric == name and p.model == each.result.model
        ],
    )


def _strip(board: Board, each: Standing, name: str, scale: Scale | None) -> Strip | None:
    found = each.result.record.metrics.get(name)
    if found is None or scale is None:
        return None
    return Strip(
        scale.at(found.low),
        scale.at(found.high),
        scale.at(found.value),
        [
            scale.at(p.value)
            for p in board.published
            if p.metric == name and p.model == each.result.model
        ],
    )


def tables(
    boards: Sequence[Board],
    places: Mapping[Path, int],
    compared: Mapping[tuple[Path, str], Comparison],
) -> list[Table]:
    return [table(board, number, places, compared) for number, board in enumerate(boards, 1)]
