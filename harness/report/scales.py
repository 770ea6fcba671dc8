"""Where numbers stand on the axes of a plot, in SVG's units.

Plots are drawn by the page's templates, as shapes whose colours are the style sheet's: they follow
the reader's light or dark, and hundreds of them are cheap. matplotlib says where ticks stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_LARGEST = 1e100  # beyond which differences of numbers may overflow


class Tick(NamedTuple):
    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """``low`` to ``high`` are drawn from ``start`` to ``end``; what is beyond, at the end."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The place of ``value``, to a tenth."""
        low, high = (self._on_axis(end) for end in (self.low, self.high))
        share = (self._on_axis(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def _on_axis(self, value: float) -> float:
        return math.log10(value) if self.log else value

    @property
    def marks(self) -> list[Tick]:
        return [Tick(self.at(each), f"{each:.6g}") for each in self.ticks]


def linear(
    values: Iterable[float], start: float, end: float, ticks: int = 4, zero: bool = False
) -> Scale | None:
    """An axis on which all ``values`` have room (and ``zero``, where wanted), from one round number
    to another. None where there are none, or some beyond all measure."""
    from matplotlib.ticker import MaxNLocator

    found = [*values, *([0.0] if zero else [])]
    if not found or max(map(abs, found)) > _LARGEST:
        return None
    low, high = (each if abs(each) > 1 / _LARGEST else 0.0 for each in (min(found), max(found)))
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high == low:
        room = abs(high) / 20
        low, high = (low - room, high + room) if room else (0.0, 1.0)
    round_ones = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    places = tuple(float(f"{each:.12g}") for each in round_ones)
    step = places[1] - places[0]
    # The outermost ticks may be a step too far; an axis ends at the first that is not inside.
    kept = [each for each in places if low - step < each < high + step]
    return Scale(min(low, kept[0]), max(high, kept[-1]), start, end, tuple(kept))


def logarithmic(low: float, high: float, start: float, end: float, ticks: int = 4) -> Scale | None:
    """An axis of powers from ``low`` to ``high``, both above 0; ticks at powers of ten, at 1, 2 and
    5 times them where these are few, or else as on a plain axis. None where that cannot be."""
    from matplotlib.ticker import MaxNLocator

    if not 0 < low < high or high > _LARGEST or low < 1 / _LARGEST:
        return None
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 2, 5)):
        places = [multiple * 10.0**decade for decade in decades for multiple in multiples]
        inside = [each for each in places if low <= each <= high]
        if len(inside) > 2:
            break
    else:
        plain = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(f"{each:.12g}") for each in plain if low <= each <= high]
    every = max(1, math.ceil(len(inside) / (ticks + 1)))
    return Scale(low, high, start, end, tuple(inside[::every]), log=True)
