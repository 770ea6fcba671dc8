"""Intervals over pictures. A score without one cannot be compared with another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Resampled values held at once: 8 MiB of indices and 8 MiB of values or weights.
_CHUNK_VALUES = 2**20


Score = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""How often each picture counts, ``[b, n]`` -> the scores, ``[b]`` (or ``[b, m]``)."""


class Interval(NamedTuple):
    """A confidence interval, in the unit of the values it was made of."""

    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    clusters: ArrayLike | None = None,
    chunk_values: int = _CHUNK_VALUES,
) -> Interval:
    """The percentile bootstrap interval of the mean of ``values [n]`` over pictures.

    Pictures are drawn with replacement, n at a time, ``draws`` times; the interval runs between
    the ``(1 - level) / 2`` quantiles of the means from either end. The same values, seed, draws
    and level give the same interval. ``chunk_values`` bounds the memory (of n and draws together)
    and moves no number: the generator's stream does not depend on how it is cut.

    ``clusters [n]`` names what every picture is of, where pictures are not independent of each
    other (frames of a scene): then scenes are drawn, as many as there are, and each brings all its
    pictures. The mean is over the pictures, so that a scene weighs as much as it has. Where no two
    pictures share a scene, pictures are drawn as ever; and where all are of one, of which nothing
    follows for another: the interval is of that scene.

    One picture gives an interval of no width: nothing is known of the spread, and the reader sees
    n. Raises ``ValueError`` for no value, for values that are not finite or not
    one-dimensional, for clusters of another length, and for draws or level out of range.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.3; Davison
    and Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (strategy 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be [n] with n > 0, not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite; a picture without a value is left out and counted")
    if _scenes(clusters, array.size) is not None:
        return bootstrap(
            lambda weights: weights @ array / weights.sum(axis=1),
            array.size,
            seed,
            draws,
            level,
            clusters=clusters,
            chunk_values=chunk_values,
        )
    means = [
        array[chosen].mean(axis=1)
        for chosen in _drawn(array.size, seed, draws, level, chunk_values)
    ]
    return _between_quantiles(np.concatenate(means), level)


def bootstrap(
    score: Score,
    count: int,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    clusters: ArrayLike | None = None,
    chunk_values: int = _CHUNK_VALUES,
) -> Interval:
    """The percentile bootstrap interval of a score that is no mean over its ``count`` pictures.

    ``score`` is given weights ``[b, count]``, how often each picture was drawn, and gives ``[b]``.
    The same seed draws the same pictures as ``bootstrap_mean``, or scenes where ``clusters
    [count]`` are given as there. Draws that have no score (NaN) are left out. Raises
    ``ValueError`` where none has, and as ``bootstrap_mean`` does.
    """
    (found,) = bootstrap_together(
        [score], count, seed, draws, level, clusters=clusters, chunk_values=chunk_values
    )
    if np.isnan(found).any():
        raise ValueError("no draw of the pictures has a score")
    return Interval(float(found[0]), float(found[1]))


def bootstrap_together(
    scores: Sequence[Score],
    count: int,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    clusters: ArrayLike | None = None,
    chunk_values: int = _CHUNK_VALUES,
) -> list[NDArray[np.float64]]:
    """The intervals of several scores of the same pictures, over the same draws of them.

    Each of ``scores`` is given weights as ``bootstrap`` gives them, and gives ``[b]`` or, of m
    scores at once, ``[b, m]``; its interval is ``[2]`` or ``[2, m]``, low and high, and that which
    each would have alone. NaN where no draw has a score.
    """
    found = bootstrap_scores(
        scores, count, seed, draws, level, clusters=clusters, chunk_values=chunk_values
    )
    return [quantiles(its, level) for its in found]


def bootstrap_scores(
    scores: Sequence[Score],
    count: int,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    clusters: ArrayLike | None = None,
    chunk_values: int = _CHUNK_VALUES,
) -> list[NDArray[np.float64]]:
    """What ``bootstrap_together`` takes its quantiles of: each score of each draw, ``[draws]`` or
    ``[draws, m]``."""
    scenes = _scenes(clusters, count)
    units = count if scenes is None else int(scenes.max()) + 1
    found: list[list[NDArray[np.float64]]] = [[] for _ in scores]
    for chosen in _drawn(units, seed, draws, level, max(1, chunk_values * units // max(1, count))):
        rows = np.arange(len(chosen))[:, None] * units
        weights = np.bincount((chosen + rows).ravel(), minlength=chosen.size)
        weights = weights.reshape(chosen.shape)
        weights = weights if scenes is None else weights[:, scenes]
        for score, its in zip(scores, found, strict=True):
            its.append(score(weights))
    return [np.concatenate(its) for its in found]


def _scenes(clusters: ArrayLike | None, count: int) -> NDArray[np.int64] | None:
    """Of every picture the number of its scene, in the order that scenes first come in; None where
    each picture has its own, or all have one."""
    if clusters is None:
        return None
    array = np.asarray(clusters)
    if array.shape != (count,):
        raise ValueError(f"clusters must be [{count}], not {list(array.shape)}")
    _, first, number = np.unique(array, return_index=True, return_inverse=True)
    if len(first) in (1, count):
        return None
    return np.argsort(np.argsort(first))[number]


def _drawn(
    count: int, seed: int, draws: int, level: float, chunk_values: int
) -> Iterator[NDArray[np.int64]]:
    """Pictures drawn with replacement, ``[b, count]`` at a time, ``draws`` rows in all."""
    if count < 1:
        raise ValueError("pictures must be n > 0")
    if draws < 1 or not 0 < level < 1 or chunk_values < 1:
        raise ValueError("draws and chunk_values must be positive and level between 0 and 1")
    generator = np.random.default_rng(seed)
    rows = max(1, chunk_values // count)
    for start in range(0, draws, rows):
        yield generator.integers(0, count, size=(min(rows, draws - start), count))


def _between_quantiles(scores: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def quantiles(scores: NDArray[np.float64], level: float = 0.95) -> NDArray[np.float64]:
    """The ends of the interval of each column of ``scores [draws, …]``, without what is NaN,
    ``[2, …]``."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    missing = np.isnan(scores)
    if not missing.any():
        whole: NDArray[np.float64] = np.quantile(scores, ends, axis=0)
        return whole
    columns = scores.reshape(len(scores), -1)
    found = np.full((2, columns.shape[1]), np.nan)
    for place, column in enumerate(columns.T):
        there = column[~np.isnan(column)]
        if there.size:
            found[:, place] = np.quantile(there, ends)
    return found.reshape(2, *scores.shape[1:])


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    clusters: ArrayLike | None = None,
) -> Interval:
    """The paired bootstrap interval of ``mean(first) - mean(second)``, both ``[n]``.

    Entry i of both is of the same picture: pictures are drawn, and each brings both its values, so
    that what makes a picture hard for both cancels out. ``clusters`` are as for
    ``bootstrap_mean``. Raises ``ValueError`` as that does, and where the two are not of one length.
    """
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"values must be of the same pictures: {ours.shape} and {theirs.shape}")
    return bootstrap_mean(ours - theirs, seed, draws, level, clusters=clusters)
