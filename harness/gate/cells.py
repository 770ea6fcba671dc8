"""The cells of a gate: a metric of a model under a protocol on a data set, in both folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError
from harness.gate.sides import Side
from harness.schema import Metric
from harness.tables.compare import FEW_PICTURES
from harness.tables.paired import NOTHING_SHARED, Paired, read_paired
from harness.tables.rows import Pair, Result, matched, protocol_words

State = Literal[
    "regressed",
    "improved",
    "within noise",
    "unchanged",
    "untested",
    "fewer pictures",
    "few pictures",
    "missing",
    "new",
    "incomparable",
    "damaged",
]
STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]


@dataclass
class Cell:
    """One metric of one result, held against its baseline.

    ``difference`` is candidate less baseline over the ``pictures`` that both scored, in the
    metric's unit, ``low`` to ``high`` its 95 % paired interval, ``tolerance`` how much worse it may
    be. ``p`` is of the loss being no larger than that, ``p_holm`` adjusted for all cells that
    moved. None where there is nothing to measure: ``reason`` then says why.
    """

    dataset: str
    task: str
    protocol: str
    protocol_name: str
    model: str
    metric: str
    unit: str
    higher_is_better: bool
    state: State = "unchanged"
    baseline: float | None = None
    candidate: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    p: float | None = None
    p_holm: float | None = None
    pictures: int = 0
    scenes: int | None = None
    lost: int = 0
    reason: str | None = None
    ignored: str | None = None
    action: Literal["fail", "warn", "ignore", "pass"] = "pass"
    data: Paired | None = field(default=None, repr=False)
    seed: int = 0
    p_gain: float | None = None
    p_gain_holm: float | None = None
    """Of a gain no larger than the tolerance; only "improved" is told by them."""

    @property
    def few_pictures(self) -> bool:
        return self.difference is not None and self.pictures < FEW_PICTURES

    @property
    def moved(self) -> bool:
        """Whether any picture's value did."""
        return self.data is not None and not self.data.same

    def __str__(self) -> str:
        return f"{self.model} · {self.dataset} · {self.task} · {self.protocol} · {self.metric}"


def hold(baseline: Side, candidate: Side) -> tuple[list[Cell], list[Pair]]:
    """Every cell of either folder, those to be tested with their ``data``, and the pairs that
    compare. Metrics are those that a run's table shows."""
    cells: list[Cell] = []
    pairs: list[Pair] = []
    models = sorted({each.model for side in (baseline, candidate) for each in side.results})
    damaged = {
        **_by_place(candidate, "the candidate's"),
        **_by_place(baseline, "the baseline's"),
    }
    told: set[tuple[str, ...]] = set()

    def alone(results: Sequence[Result], side: Side, state: State) -> Iterator[Cell]:
        for result in results:
            place = result.path.relative_to(side.folder).parts
            for name, metric in result.record.metrics.items():
                if not metric.shown:
                    continue
                cell = _cell(result, name, metric, state)
                score = metric.value
                cell.baseline, cell.candidate = (
                    (None, score) if side is candidate else (score, None)
                )
                if place in damaged:
                    cell.state, cell.reason = "damaged", damaged[place]
                    told.add(place)
                yield cell

    for model in models:
        ours, theirs = (
            [each for each in side.results if each.model == model] for side in (baseline, candidate)
        )
        found, missing, new = matched(ours, theirs)
        for pair in found:
            cells += _of_pair(pair)
        pairs += [pair for pair in found if not pair.apart]
        cells += alone(missing, baseline, "missing")
        cells += alone(new, candidate, "new")
    for place, what in damaged.items():
        if place not in told:  # no whole result of the other folder says which metrics it had
            dataset, task, model, file = place
            protocol = Path(file).stem
            cells.append(
                Cell(
                    dataset, task, protocol, protocol.partition("~")[0], model, "every metric", "",
                    True, "damaged", reason=what,
                )
            )  # fmt: skip
    cells.sort(key=lambda cell: (cell.dataset, cell.task, cell.protocol, cell.model))
    return cells, pairs


def _by_place(side: Side, whose: str) -> dict[tuple[str, ...], str]:
    return {
        path.relative_to(side.folder).parts: f"{whose}: {what}"
        for path, what in side.damaged.items()
    }


def _cell(result: Result, name: str, metric: Metric, state: State) -> Cell:
    record = result.record
    return Cell(
        dataset=record.dataset.name,
        task=record.task,
        protocol=", ".join(protocol_words(record)),
        protocol_name=record.protocol.name,
        model=result.model,
        metric=name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        state=state,
    )


def _of_pair(pair: Pair) -> Iterator[Cell]:
    own, its = pair.first.record.metrics, pair.second.record.metrics
    shown = [name for name in {**own, **its} if (own.get(name) or its[name]).shown]
    both = {name: its[name] for name in shown if name in own and name in its}
    read: dict[str, Paired] = {}
    state: State = "unchanged"
    reason = "; ".join(pair.apart) or None
    if reason:
        state = "incomparable"
    else:
        try:
            read = read_paired(pair, both)
        except HarnessError as error:
            state, reason = "damaged", str(error)
    for name in shown:
        if name not in both:
            ours = name in own
            yield _one_sided(pair, name, own if ours else its, "missing" if ours else "new")
            continue
        cell = _cell(pair.second, name, its[name], state)
        cell.reason, cell.seed = reason, pair.second.seed
        cell.baseline, cell.candidate = own[name].value, its[name].value
        if state == "unchanged":
            _fill(cell, own[name], its[name], read.get(name))
        yield cell


def _one_sided(pair: Pair, name: str, metrics: dict[str, Metric], state: State) -> Cell:
    cell = _cell(pair.second, name, metrics[name], state)
    value = metrics[name].value
    cell.baseline, cell.candidate = (value, None) if state == "missing" else (None, value)
    cell.reason = "the record has no such metric" if state == "missing" else None
    return cell


def _fill(cell: Cell, own: Metric, its: Metric, data: Paired | None) -> None:
    """What there is to test a cell with, or why there is nothing."""
    facts = ("unit", "higher_is_better", "scale", "aggregate")
    if apart := [each for each in facts if getattr(own, each) != getattr(its, each)]:
        told = [f"{each.replace('_', ' ')} of the metric" for each in apart]
        cell.state, cell.reason = "incomparable", "; ".join(told)
    elif data is not None:
        cell.data, cell.pictures, cell.lost = data, len(data.ids), data.lost
        cell.scenes = None if data.scenes is None else len(set(data.scenes.tolist()))
    elif own.column is not None and its.column is not None:
        cell.state, cell.reason = "fewer pictures", NOTHING_SHARED
    elif own.value != its.value:
        cell.state, cell.reason = "untested", "it has no value for each picture"
