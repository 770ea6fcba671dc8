"""Scores against how many patch tokens are outliers: what registers are to mend.

The share of outliers is the metric ``outlier_fraction`` of a record of the task ``anatomy``, of the
same weights: one on the same data set if there is one, else the one of most pictures. In one plot
all are of one protocol, that which most of its models have; the others are not drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.report.scales import Scale, linear
from harness.tables.leaderboard import Board, Standing, value_of
from harness.tables.rows import Result
from harness.tables.sheet import heading, measured

TASKS = {"lost": "CorLoc", "tokencut": "CorLoc", "knn": "accuracy", "linear": "accuracy",
         "logistic": "accuracy"}  # fmt: skip
MOST = 24
"""Plots on a page."""
METRIC = "outlier_fraction"
_NAMED = 10
_LINE = 11.0  # of text
WIDTH, HEIGHT = 320.0, 240.0
LEFT, RIGHT, TOP, FOOT = 44.0, 12.0, 12.0, 40.0


@dataclass(frozen=True)
class Point:
    """A model in a plot, its name written at the height ``label`` (None where there are many);
    ``elsewhere`` names the data set of its outliers where it is another."""

    model: str
    registers: int
    x: float
    y: float
    low: float
    high: float
    share: float
    told: str
    record: int
    elsewhere: str | None
    label: float | None = None


@dataclass(frozen=True)
class Plot:
    """``lines`` lead from baselines to their models; ``missing`` have no such share."""

    dataset: str
    task: str
    words: list[str]
    heading: str
    across: Scale
    down: Scale
    points: list[Point]
    lines: list[tuple[float, float, float, float]]
    missing: list[str]

    @property
    def models(self) -> list[str]:
        return [each.model for each in self.points]


def plots(
    boards: Sequence[Board],
    words: Sequence[list[str]],
    results: Sequence[Result],
    places: Mapping[Path, int],
) -> tuple[list[Plot], int]:
    """Of boards of ``TASKS``, ``words`` telling the protocol of each, and how many more there
    would be."""
    shares: dict[str, list[Result]] = {}
    for each in results:
        if each.record.task == "anatomy" and METRIC in each.record.metrics:
            shares.setdefault(each.record.model.weights_digest, []).append(each)
    found = []
    for board, told in zip(boards, words, strict=True):
        if board.record.task in TASKS and (plot := _plot(board, told, shares, places)):
            found.append(plot)
    return found[:MOST], max(0, len(found) - MOST)


def _plot(
    board: Board, words: list[str], shares: Mapping[str, list[Result]], places: Mapping[Path, int]
) -> Plot | None:
    metric = next(iter(board.metrics))
    ranked = [each for each in board.standings if each.rank is not None]
    hashes = Counter(
        each.record.protocol.hash
        for standing in ranked
        for each in shares.get(standing.result.record.model.weights_digest, [])
    )
    if not hashes:
        return None
    protocol = min(hashes, key=lambda name: (-hashes[name], name))
    of: list[tuple[Standing, Result]] = []
    missing = []
    for standing in ranked:
        kept = [
            each
            for each in shares.get(standing.result.record.model.weights_digest, [])
            if each.record.protocol.hash == protocol
        ]
        if kept:
            of.append((standing, min(kept, key=lambda each: _rank(each, standing.result))))
        else:
            missing.append(standing.result.model)
    across = linear([value_of(share, METRIC) for _, share in of], LEFT, WIDTH - RIGHT, zero=True)
    ends = [e for s, _ in of for m in [s.result.record.metrics[metric]] for e in (m.low, m.high)]
    down = linear([*ends, *(value_of(s.result, metric) for s, _ in of)], HEIGHT - FOOT, TOP)
    if across is None or down is None:
        return None
    points = [_point(standing, share, metric, across, down, places) for standing, share in of]
    at = {standing.result.path: point for (standing, _), point in zip(of, points, strict=True)}
    lines = [
        (start.x, start.y, end.x, end.y)
        for standing, _ in of
        if standing.base is not None and (start := at.get(standing.base.path)) is not None
        for end in [at[standing.result.path]]
    ]
    first = board.metrics[metric]
    return Plot(
        board.record.dataset.name,
        board.record.task,
        words,
        heading(metric, first.unit, first.higher_is_better),
        across,
        down,
        _labelled(points),
        lines,
        missing,
    )


def _labelled(points: list[Point]) -> list[Point]:
    """With heights for their names, none of which lies on another."""
    if len(points) > _NAMED:
        return points
    below = -_LINE
    found = []
    for each in sorted(points, key=lambda point: (point.y, point.model)):
        below = max(each.y, below + _LINE)
        found.append(replace(each, label=round(below, 1)))
    return found


def _rank(share: Result, of: Result) -> tuple[bool, int, str]:
    record = share.record
    scored = 0 if record.per_picture is None else record.per_picture.rows
    return record.dataset.name != of.record.dataset.name, -scored, str(share.path)


def _point(
    standing: Standing,
    share: Result,
    metric: str,
    across: Scale,
    down: Scale,
    places: Mapping[Path, int],
) -> Point:
    result, outliers = standing.result, share.record.metrics[METRIC]
    found = result.record.metrics[metric]
    where = share.record.dataset.name
    return Point(
        model=result.model,
        registers=result.record.model.registers,
        x=across.at(outliers.value),
        y=down.at(found.value),
        low=down.at(found.low),
        high=down.at(found.high),
        share=outliers.value,
        told=f"{measured(found.value, found.unit)}, "
        f"outliers {measured(outliers.value, outliers.unit)} {outliers.unit}",
        record=places[share.path],
        elsewhere=where if where != result.record.dataset.name else None,
    )
