"""From rates to seconds: of each pass and fit, of all on one device, and of N devices together.

What can be cut (``engine/pieces.py``) is shared by all devices; the rest of a cell, and of cells
that share a pass which cannot be cut, is the work of one. So N devices need at least the N-th part
of all work, and at least what the longest such chain takes:
``wall = loading + max(work / N, max over chains (cut passes / N + uncut passes + fits))``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.engine.pieces import Piece, cut, units
from harness.forecast import Forecast
from harness.options import Options
from harness.plan import Cell, Reading
from harness.run import groups
from harness.timing.arguments import Asked
from harness.timing.measure import FitTime, Measured, key_of


@dataclass
class PassLine:
    """One pass that is left to be run. ``forward_passes`` are those that the feature store does not
    spare; ``protocols`` are served by it."""

    model: str
    dataset: str
    role: str
    protocols: list[str]
    forward_passes: int
    seconds: float


@dataclass(frozen=True)
class FitLine:
    """What a cell computes beside its passes, over all its seeds; ``how`` as in ``FitTime``, or
    ``not included`` where rates were stated."""

    model: str
    dataset: str
    protocol: str
    seconds: float
    how: str
    why: str = ""


@dataclass
class TimeForecast:
    """Largest first. ``longest`` are the seconds of the longest chain that one device works off;
    ``loading`` of all models, which every device loads."""

    passes: list[PassLine] = field(default_factory=list)
    fits: list[FitLine] = field(default_factory=list)
    devices: int = 1
    loading: float = 0.0
    longest: float = 0.0
    bytes_read: int = 0
    bytes_stored: int = 0

    @property
    def work(self) -> float:
        """Seconds of all passes and fits on one device."""
        return sum(each.seconds for each in self.passes) + sum(each.seconds for each in self.fits)

    @property
    def wall(self) -> float:
        return self.loading + max(self.work / self.devices, self.longest)

    @property
    def device_seconds(self) -> float:
        """Of what devices work, not what they wait for another."""
        return self.work + self.loading * self.devices

    @property
    def left_out(self) -> list[FitLine]:
        """Fits of which the sum has nothing, or only the least that they take."""
        return [each for each in self.fits if each.how in ("not included", "unknown", "at least")]


def forecast_time(
    cells: Sequence[Cell],
    options: Options,
    spared: Forecast,
    asked: Asked,
    measured: Measured | None,
) -> TimeForecast:
    """Of the cells that are to be done; ``measured``, or at the stated rates."""
    result = TimeForecast(devices=asked.devices)
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    passes: dict[Hashable, PassLine] = {}
    for cell in todo:
        for read in cell.reads():
            line = passes.get(read.key)
            if line is None:
                line = passes[read.key] = _pass(cell, read, spared, asked, measured)
            if cell.path.stem not in line.protocols:
                line.protocols.append(cell.path.stem)
        result.fits.append(_fit(cell, measured))
    result.passes = sorted(
        (each for each in passes.values() if each.forward_passes), key=lambda each: -each.seconds
    )
    result.fits.sort(key=lambda each: -each.seconds)
    if measured is not None:
        result.loading = sum(measured.loads.values())
    result.bytes_read, result.bytes_stored = spared.read_by(todo), spared.stored_by(todo)
    fits = {cell.path: _fit(cell, measured).seconds for cell in todo}
    seconds = {key: line.seconds for key, line in passes.items()}
    for _, of_model in groups(todo):
        for group in of_model:
            chain = _longest(group, options, asked.devices, seconds, fits)
            result.longest = max(result.longest, chain)
    return result


def _pass(
    cell: Cell, read: Reading, spared: Forecast, asked: Asked, measured: Measured | None
) -> PassLine:
    total = cell.passes[read.key]
    whole = len(cell.dataset.roles[read.role].samples)
    saved = spared.saved.get(read.key, 0) / whole  # of pictures, each of which is read once
    left = round(total * (1 - saved))
    if measured is None:
        seconds = left / asked.rate(cell.entry.name)
    else:
        pictures = (read.request.pictures or whole) * (1 - saved)
        seconds = sum(each.of(pictures) for each in measured.passes[key_of(cell, read.role)])
    return PassLine(cell.entry.name, cell.dataset.name, read.role, [], left, seconds)


def _fit(cell: Cell, measured: Measured | None) -> FitLine:
    found = FitTime(0.0, "not included") if measured is None else measured.fits[cell.path]
    seconds = found.seconds * len(cell.repeats)
    names = cell.entry.name, cell.dataset.name, cell.path.stem
    return FitLine(*names, seconds, found.how, found.why)


def _longest(
    group: list[Cell],
    options: Options,
    devices: int,
    seconds: Mapping[Hashable, float],
    fits: Mapping[Path, float],
) -> float:
    """Of cells that run side by side: seconds until the last of them is done, if all other devices
    help with what can be cut."""
    parts: list[Piece] = cut(group, options, devices) if devices > 1 else []
    where = {(part.repeat, part.role, place) for part in parts for place in part.cells}
    longest = 0.0
    for unit in units(group, parts):
        shared: set[Hashable] = set()
        own: set[Hashable] = set()
        for place in unit:
            number = {seed: at for at, (seed, _) in enumerate(group[place].repeats)}
            for read in group[place].reads():
                is_cut = (number[read.seed], read.role, place) in where
                (shared if is_cut else own).add(read.key)
        shared -= own
        chain = sum(seconds[key] for key in shared) / devices
        chain += sum(seconds[key] for key in own)
        chain += sum(fits[group[place].path] for place in unit)
        longest = max(longest, chain)
    return longest
