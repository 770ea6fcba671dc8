"""Norms of tokens in a histogram of fixed bins, equally far in log norm.

The bins are the same for every model, layer and picture, so histograms of parts add up to that of
the whole. All here takes the counts ``[BINS]`` of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PER_OCTAVE = 16
"""Bins from a norm to twice that norm: each is 4.4 % wide."""
LOWEST, HIGHEST = -16, 24
"""log2 of the smallest and the largest norm; what is beyond is in the outermost bins."""
BINS = (HIGHEST - LOWEST) * PER_OCTAVE

_SMOOTHING = 2  # bins: the standard deviation of the kernel
_BUMP = 4  # bins on either side of a peak or a valley that are counted with it
_DEPTH = 0.5  # a valley is at most this share of the lower of its two peaks
_SIGMAS = 4  # and so many standard deviations of a count below it
_MOST = 0.5  # of all patches: more are no outliers

Counts = NDArray[np.int64]


def histogram(norms: NDArray[np.float32]) -> Counts:
    """How many of ``norms [n]`` are in each bin."""
    with np.errstate(divide="ignore"):
        places = (np.log2(norms.astype(np.float64)) - LOWEST) * PER_OCTAVE
    return np.bincount(places.clip(0, BINS - 1).astype(np.int64), minlength=BINS)


def edge(place: ArrayLike) -> NDArray[np.float64]:
    """The norm at which bin ``place`` begins; halfway between two bins there are halves."""
    found: NDArray[np.float64] = 2.0 ** (LOWEST + np.asarray(place, np.float64) / PER_OCTAVE)
    return found


def valley(counts: Counts) -> int | None:
    """The bin that begins at the lowest point between the two modes; None without a second mode.

    The counts are smoothed. The first mode is the highest bin; the second is the peak above it that
    stands out most over the lowest point in between. It has to be one: that point is at most half
    as high, the difference is four standard deviations of counts that large, and less than half of
    all norms are above it. Of several lowest bins (an empty gap) the middle of the longest run.
    """
    smooth = _smoothed(counts)
    first = int(smooth.argmax())
    inner = smooth[1:-1]
    peaks = 1 + np.flatnonzero((inner >= smooth[:-2]) & (inner > smooth[2:]))
    peaks = peaks[peaks > first]
    if not len(peaks):
        return None
    lowest = np.minimum.accumulate(smooth[first:])[peaks - first]
    best = int((smooth[peaks] - lowest).argmax())
    second, bottom = int(peaks[best]), float(lowest[best])
    low = first + np.flatnonzero(smooth[first:second] <= bottom)
    runs = np.split(low, 1 + np.flatnonzero(np.diff(low) > 1))
    longest = max(runs, key=len)
    place = int(longest[len(longest) // 2])
    high, deep = (int(counts[_about(at)].sum()) for at in (second, place))
    stands_out = high - deep >= _SIGMAS * np.sqrt(high + deep)
    few = counts[place:].sum() < _MOST * counts.sum()
    return place if bottom <= _DEPTH * smooth[second] and stands_out and few else None


def quantile(counts: Counts, share: float) -> float:
    """The norm below which that share (0 to 1) lies, taking a bin's norms as evenly spread in log
    norm. NaN of no norms."""
    there = np.flatnonzero(counts)
    if not len(there):
        return float("nan")
    total = np.cumsum(counts[there])
    wanted = share * total[-1]
    bin_ = int(np.searchsorted(total, wanted))
    place = there[bin_]
    return float(edge(place + 1 - (total[bin_] - wanted) / counts[place]))


def bimodality(counts: Counts) -> float | None:
    """Sarle's coefficient of log norms, (skewness² + 1) / kurtosis: 1 of two points, 5/9 of an even
    spread, less of one hump (SAS Institute, 1990; Pfister et al., "Good things peak in pairs",
    2013). Without their correction for small samples; None where all norms are in one bin.
    """
    there = np.flatnonzero(counts)
    if len(there) < 2:
        return None
    weights = counts[there] / counts.sum()
    apart = there - weights @ there
    second, third, fourth = (float(weights @ apart**power) for power in (2, 3, 4))
    return (third**2 / second**3 + 1) / (fourth / second**2)


def trimmed(counts: Counts) -> dict[str, object]:
    """As JSON: the bins from the first to the last that is not empty, and where the first begins.
    Each is ``2 ** (1 / PER_OCTAVE)`` times as high as the one before."""
    there = np.flatnonzero(counts)
    if not len(there):
        return {"lowest": None, "bins_per_octave": PER_OCTAVE, "counts": []}
    part = counts[there[0] : there[-1] + 1]
    return {
        "lowest": float(edge(there[0])),
        "bins_per_octave": PER_OCTAVE,
        "counts": part.tolist(),
    }


def _smoothed(counts: Counts) -> NDArray[np.float64]:
    reach = np.arange(-3 * _SMOOTHING, 3 * _SMOOTHING + 1)
    kernel = np.exp(-0.5 * (reach / _SMOOTHING) ** 2)
    smooth: NDArray[np.float64] = np.convolve(counts, kernel / kernel.sum(), mode="same")
    return smooth


def _about(place: int) -> slice:
    return slice(max(0, place - _BUMP), place + _BUMP + 1)
