"""Numbers that look random and are the same on every machine: whole-number hashes, no generator.

Everything is SplitMix64's finaliser (Steele et al., 2014) over a counter, so that number ``n`` of
stream ``key`` costs nothing but itself, whatever was drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.data.generated import mix

T = TypeVar("T")
_MASK = 2**64 - 1


class Draw:
    """A stream of numbers, fixed by whole-number ``keys``."""

    def __init__(self, *keys: int) -> None:
        self._state = 0
        for key in keys:
            self._state = _mix_one(self._state ^ (key & _MASK))

    def bits(self) -> int:
        """A whole number below 2^64."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        return _mix_one(self._state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """From ``low`` (included) to ``high`` (excluded)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return low + self.bits() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, values: Sequence[T]) -> T:
        return values[self.bits() % len(values)]


def _mix_one(value: int) -> int:
    mixed = (value + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def pixel_noise(key: int, height: int, width: int, levels: int) -> NDArray[np.float32]:
    """Whole numbers from ``-levels`` to ``levels`` for each pixel and channel, ``[H, W, 3]``."""
    places = np.arange(height * width, dtype=np.uint64) + np.uint64(key & 0xFFFFFFFF) * np.uint64(
        2**32
    )
    bits = mix(places)
    channels = [(bits >> np.uint64(16 * channel + 8)) & np.uint64(0xFFFF) for channel in range(3)]
    stacked = np.stack(channels, axis=-1).reshape(height, width, 3)
    return (stacked % np.uint64(2 * levels + 1)).astype(np.float32) - np.float32(levels)


def smooth_noise(key: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth hills and valleys from 0 to 1 over the plane: a hash at every whole (x, y), joined by
    Hermite's cubic (value noise)."""
    column, row = np.floor(x), np.floor(y)
    across, down = x - column, y - row
    across = across * across * (3 - 2 * across)
    down = down * down * (3 - 2 * down)
    column, row = column.astype(np.int64), row.astype(np.int64)
    # The corners of few lattice cells cover many pixels: hash the lattice, then look it up.
    left, top = int(column.min()), int(row.min())
    wide, high = int(column.max()) - left + 2, int(row.max()) - top + 2
    lattice = _lattice(key, left, top, wide, high).ravel()
    corner = (row - top) * wide + (column - left)
    upper = lattice[corner] + across * (lattice[corner + 1] - lattice[corner])
    corner += wide
    lower = lattice[corner] + across * (lattice[corner + 1] - lattice[corner])
    joined: NDArray[np.float32] = upper + down * (lower - upper)
    return joined


def _lattice(key: int, left: int, top: int, wide: int, high: int) -> NDArray[np.float32]:
    columns = np.arange(left, left + wide, dtype=np.int64) & 0xFFFF
    rows = np.arange(top, top + high, dtype=np.int64) & 0xFFFF
    places = (rows[:, None] << 16 | columns).astype(np.uint64)
    bits = mix(places + np.uint64(key & 0xFFFFFFFF) * np.uint64(2**32))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
