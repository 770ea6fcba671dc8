"""What regressed: rules and tests applied to cells, and the verdict of the whole.

A cell regresses where both hold: its 95 % paired interval lies beyond the tolerance on the bad
side, and the p of a loss no larger than the tolerance, adjusted for all cells that moved (Holm), is
below the level. So a whole run in which nothing got worse fails in 5 of 100 at most, however many
cells it has; that a number moved is no reason. An improvement is told by the same rule, mirrored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from harness.errors import HarnessError
from harness.gate import margin
from harness.gate.cells import STATES, Cell, hold
from harness.gate.gate_file import Gate
from harness.gate.pace import Pace, paces
from harness.gate.sides import read_side
from harness.significance import holm
from harness.tables.paired import NOTHING_SHARED, Drawn, drawn
from harness.tables.rows import Chosen

_FINE_DRAWS = 20_000
"""Where an interval decides, its end must not be chance. Of a mean: of others so many take long."""


@dataclass(frozen=True)
class Report:
    """What a gate found in ``candidate``, held against ``baseline``."""

    baseline: Path
    candidate: Path
    gate: Gate
    cells: Sequence[Cell]
    paces: Sequence[Pace]
    notes: list[str] = field(default_factory=list)

    @property
    def failing(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.action == "fail"]

    @property
    def slow(self) -> list[Pace]:
        return [each for each in self.paces if each.slow]

    @property
    def passed(self) -> bool:
        return not self.failing and not self.slow

    @property
    def verdict(self) -> str:
        """The result in one line."""
        counted = Counter(cell.state for cell in self.cells if cell.ignored is None)
        parts = [f"{counted[state]} {state}" for state in STATES if counted[state]]
        ignored = sum(cell.ignored is not None for cell in self.cells)
        parts += [f"{ignored} ignored"] if ignored else []
        parts += [f"{len(self.slow)} slower"] if self.slow else []
        told = f"{len(self.cells)} cell{'' if len(self.cells) == 1 else 's'}: " + ", ".join(parts)
        return f"{'passed' if self.passed else 'failed'}: {told}"


def judge(baseline: Path, candidate: Path, gate: Gate, chosen: Chosen) -> Report:
    """Hold the results of one folder against those of the other.

    Raises ``HarnessError`` where either has none, or none has a metric.
    """
    sides = read_side(baseline, chosen), read_side(candidate, chosen)
    cells, pairs = hold(*sides)
    if not cells:
        raise HarnessError(f"no result in {baseline} or {candidate} has a metric: nothing to judge")
    for cell in cells:
        cell.ignored = gate.ignored(cell)
        if cell.baseline is not None:
            cell.tolerance = gate.tolerated(cell, cell.baseline)
    measure([cell for cell in cells if cell.moved])
    measured = [cell for cell in cells if cell.p is not None]
    adjust([cell for cell in measured if cell.ignored is None])
    for cell in measured:
        if cell.ignored is not None:
            adjust([cell])
    decide(measured, gate.level)
    for cell in cells:
        if cell.data is not None and not cell.moved:
            cell.difference = cell.low = cell.high = 0.0
        _act(cell, gate)
        cell.data = None
    notes = gate.idle(cells)
    speeds = [] if gate.speed is None else paces(pairs, gate.speed, notes.append)
    return Report(baseline, candidate, gate, cells, speeds, notes)


def measure(cells: Sequence[Cell]) -> None:
    """Difference, interval and p of cells that moved."""
    for cell, found in _drawn(cells, 2000):
        _fill(cell, found)


def _drawn(cells: Sequence[Cell], draws: int) -> Iterator[tuple[Cell, Drawn]]:
    """Cells of the same pictures are of the same draws."""

    def key(cell: Cell) -> tuple[int, bytes]:
        assert cell.data is not None
        return cell.seed, cell.data.pictures

    for (seed, _), those in groupby(sorted(cells, key=key), key=key):
        same = list(those)
        data = [cell.data for cell in same if cell.data is not None]
        yield from zip(same, drawn(data, seed, draws), strict=True)


def _fill(cell: Cell, found: Drawn) -> None:
    assert cell.data is not None and cell.tolerance is not None
    if np.isnan(found.difference):
        cell.state, cell.reason = "fewer pictures", NOTHING_SHARED
        return
    cell.baseline, cell.candidate = cell.data.values()
    cell.difference, cell.low, cell.high = found.difference, found.low, found.high
    worse = -1 if cell.higher_is_better else 1
    cell.p = _beyond(cell, found, cell.tolerance, worse)
    cell.p_gain = _beyond(cell, found, cell.tolerance, -worse)


def _beyond(cell: Cell, found: Drawn, tolerance: float, sign: int) -> float:
    """p of the difference, times ``sign``, being no larger than the tolerance."""
    data = cell.data
    assert data is not None
    # As the bootstrap has it: where all pictures are of one scene, it is of that scene.
    clusters = None if cell.scenes in (None, 1, cell.pictures) else data.scenes
    if data.change is None:
        units = cell.pictures if clusters is None else cell.scenes or 0
        return margin.of_error(sign * found.difference, found.error, tolerance, units)
    losses = sign * data.change
    if clusters is None and data.hits:
        lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
        return margin.of_hits(lost, gained, len(losses), tolerance / abs(data.metric.scale))
    return margin.of_mean(losses, tolerance, clusters)


def adjust(cells: Sequence[Cell]) -> None:
    """The p-values of all cells that moved, for their number (Holm)."""
    for name, adjusted in (("p", "p_holm"), ("p_gain", "p_gain_holm")):
        p_values = [getattr(cell, name) for cell in cells]
        for cell, p in zip(cells, holm(p_values), strict=True):
            setattr(cell, adjusted, float(p))


def decide(cells: Sequence[Cell], level: float) -> None:
    """The state of cells that are measured, and adjusted."""

    def sure(p: float | None) -> bool:
        return p is not None and p < level

    means = [
        cell
        for cell in cells
        if (sure(cell.p_holm) or sure(cell.p_gain_holm))
        and cell.data is not None
        and cell.data.change is not None
    ]
    for cell, found in _drawn(means, _FINE_DRAWS):
        cell.low, cell.high = found.low, found.high
    for cell in cells:
        assert cell.low is not None and cell.high is not None and cell.tolerance is not None
        low, high = (-cell.high, -cell.low) if cell.higher_is_better else (cell.low, cell.high)
        cell.state = "within noise"
        if sure(cell.p_holm) and low > cell.tolerance:
            cell.state = "regressed"
        elif sure(cell.p_gain_holm) and high < -cell.tolerance:
            cell.state = "improved"


_RULED = {
    "missing": "missing",
    "new": "new",
    "incomparable": "incomparable",
    "damaged": "damaged",
    "untested": "untested",
    "fewer pictures": "fewer_pictures",
    "few pictures": "few_pictures",
}


def _act(cell: Cell, gate: Gate) -> None:
    """What a cell leads to, by the gate's rules."""
    if cell.ignored is not None:
        cell.action = "ignore"
        return
    if cell.state == "regressed":
        cell.action = "fail"
        return
    if cell.lost and gate.action("fewer_pictures") != "ignore":
        cell.state = "fewer pictures"
        cell.reason = f"{cell.lost:,} pictures of the baseline have no value in the candidate"
    elif cell.p is not None and cell.few_pictures:
        if gate.action("few_pictures") == "fail":
            cell.state = "few pictures"
            cell.reason = f"{cell.pictures} pictures, which show too little"
        elif gate.action("few_pictures") == "warn":
            cell.action = "warn"
    if cell.state in _RULED:
        cell.action = gate.action(_RULED[cell.state])
