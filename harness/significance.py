"""Whether two models that scored the same pictures differ: paired tests, and many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

FEWEST_DISCORDANT = 6
"""Pictures on which hits and misses must differ: of 5, even 5 to 0 has an exact p of 0.0625."""

_CHUNK_VALUES = 2**21

Flips = NDArray[np.bool_]
Statistic = Callable[[Flips], NDArray[np.float64]]
"""Which units change sides, ``[b, units]`` -> the differences that this gives, ``[b, m]``."""


class McNemar(NamedTuple):
    """Of the pictures that only the first or only the second got right, and two-sided p-values."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    exact: NDArray[np.float64]
    mid: NDArray[np.float64]


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's test from how many pictures only the one and only the other model got right, of
    any shape. Without a difference the discordant pictures fall to either side as a coin does.

    ``exact`` is the binomial test, whose level is at most the nominal one and mostly well below;
    ``mid`` counts half of what is as likely as what was seen, and keeps the level much better.
    Both are 1 where there is no discordant picture.

    Source: Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data: mid-p
    and asymptotic are better than exact conditional" (BMC Medical Research Methodology, 2013).
    """
    ours, theirs = (np.asarray(each, dtype=np.int64) for each in (first, second))
    total, fewer = ours + theirs, np.minimum(ours, theirs)
    up_to = bdtr(fewer.astype(np.float64), total, 0.5)
    below = np.where(fewer > 0, bdtr(np.maximum(fewer - 1.0, 0), total, 0.5), 0.0)
    exact = np.minimum(1.0, 2 * up_to)
    mid = np.where(ours == theirs, 1.0, up_to + below)
    return McNemar(ours, theirs, exact, mid)


def permutation(
    statistic: Statistic,
    units: int,
    observed: ArrayLike,
    seed: int,
    draws: int = 9_999,
    slack: ArrayLike = 0.0,
) -> NDArray[np.float64]:
    """Two-sided p-values ``[m]`` of the differences ``observed [m]``, by random permutation.

    Without a difference it does not matter which model a picture's values are of: in each of
    ``draws`` the two models of about half of the ``units`` (pictures, or scenes with all their
    pictures) change sides, and p is how often the difference is then as large as the observed one,
    which is counted as one of the draws (so that p is never 0 and the test never too liberal).
    ``slack`` is how much smaller is still as large, for sums that are rounded. Where a draw has no
    difference (NaN) it counts as large.

    Source: Phipson and Smyth, "Permutation p-values should never be zero" (2010).
    """
    target = np.abs(np.asarray(observed, dtype=np.float64)) - slack
    reached = np.zeros(target.shape, np.int64)
    for flips in _flips(units, seed, draws):
        reached += (~(np.abs(statistic(flips)) < target)).sum(axis=0)
    p_values: NDArray[np.float64] = (1 + reached) / (1 + draws)
    return p_values


def sign_flips(differences: NDArray[np.float64]) -> Statistic:
    """The statistic of means: sums of ``differences [units, m]`` whose sign is flipped."""
    total = differences.sum(axis=0)

    def of(flips: Flips) -> NDArray[np.float64]:
        flipped: NDArray[np.float64] = total - 2 * (flips.astype(np.float64) @ differences)
        return flipped

    return of


def _flips(units: int, seed: int, draws: int) -> Iterator[Flips]:
    """Fair coins ``[b, units]``, ``draws`` rows in all; more draws go on from fewer."""
    if units < 1 or draws < 1:
        raise ValueError("units and draws must be positive")
    generator = np.random.default_rng(seed)
    width = 4 * -(-units // 32)  # whole words of the generator, so that cuts move nothing
    rows = max(1, _CHUNK_VALUES // units)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        packed = np.frombuffer(generator.bytes(count * width), np.uint8).reshape(count, width)
        yield np.unpackbits(packed, axis=1, count=units).view(np.bool_)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values ``[m]`` adjusted so that below 0.05 there is a false one among all m in 5 of 100
    tables at most (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    rising = np.maximum.accumulate(raw[order] * (len(raw) - np.arange(len(raw))))
    adjusted = np.empty(len(raw))
    adjusted[order] = np.minimum(rising, 1.0)
    return adjusted
