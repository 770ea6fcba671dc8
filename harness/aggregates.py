"""Scores that are made of columns with one row a picture, and their intervals over pictures.

A score is a mean of parts: of one for ``mean``, of the classes' average precisions for mAP, of
their intersections over unions for mIoU; of the one median for a median rank. Each is
a pure function of the columns and of how often every picture counts, so that a bootstrap draws
pictures and never runs anything again; a record names its aggregate and the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import HarnessError
from harness.stats import Interval, bootstrap, bootstrap_difference, bootstrap_mean

Column = NDArray[np.generic]
Weights = NDArray[np.int64]
Parts = Callable[[Sequence[Column], Weights], NDArray[np.float64]]
"""Columns ``[n]`` or ``[n, k]`` and weights ``[b, n]`` -> ``[b, parts]``: for each way of weighing
the pictures what the score is the mean of. A part that has no value is NaN and left out."""

UNCLEAR = -1
RECALLS = 11
SCENE = "scene"
"""The column that names what a picture is of, where several may be of one scene."""


def mean(columns: Sequence[Column], weights: Weights) -> NDArray[np.float64]:
    """Of one column ``[n]``; one part."""
    (column,) = columns
    means: NDArray[np.float64] = weights @ column.astype(np.float64) / weights.sum(axis=1)
    return means[:, None]


def average_precisions(
    columns: Sequence[Column], weights: Weights, *, interpolated: bool
) -> NDArray[np.float64]:
    """Of ``scores [n, draws * classes]``, draw by draw, and ``present [n, classes]``: a part for
    each class, its average precision, 0 to 1, and of several draws their mean.

    ``present`` is 1 where the picture shows the class, 0 where it does not, -1 where that is
    unclear: then the picture is not in the class's ranking. A class that no picture shows has no
    value. Pictures of equal score count at once, so that their order does not matter.

    ``interpolated``: the mean over the recalls 0, 0.1, ... 1 of the highest precision at that or a
    higher recall (Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010; the
    VOC2007 devkit's VOCevalcls.m). Otherwise the area below the curve of precision over recall, as
    a sum of steps (scikit-learn's ``average_precision_score``).
    """
    scores, present = columns
    classes = present.shape[1]
    counted = np.ascontiguousarray(weights.T)
    parts = [
        _average_precision(scores[:, place], present[:, place % classes], counted, interpolated)
        for place in range(scores.shape[1])
    ]
    by_draw = np.stack(parts, axis=1).reshape(len(weights), -1, classes)
    found: NDArray[np.float64] = by_draw.mean(axis=1)
    return found


def _average_precision(
    scores: Column, present: Column, counted: NDArray[np.int64], interpolated: bool
) -> NDArray[np.float64]:
    """Of one class, ``[b]``, with weights ``[n, b]``."""
    ranked = np.flatnonzero(present != UNCLEAR)
    ranked = ranked[np.argsort(-scores[ranked].astype(np.float64), kind="stable")]
    shown, level = present[ranked] == 1, scores[ranked]
    if not shown.any():
        return np.full(counted.shape[1], np.nan)
    # Precision is highest, and recall rises, where a group of equal scores that has positives ends.
    last = np.flatnonzero(np.append(level[1:] != level[:-1], True))
    groups = np.add.reduceat(shown.astype(np.int64), np.append(0, last[:-1] + 1))
    ends = last[groups > 0]
    begins = np.append(0, ends[:-1] + 1)
    ranked, shown = ranked[: ends[-1] + 1], shown[: ends[-1] + 1]
    everything = np.cumsum(np.add.reduceat(counted[ranked], begins), axis=0)
    own = np.append(0, np.cumsum(shown)[ends][:-1])
    positives = np.cumsum(np.add.reduceat(counted[ranked[shown]], own), axis=0)
    total = positives[-1]
    precision = positives / np.maximum(everything, 1)
    if not interpolated:
        steps = np.diff(positives, axis=0, prepend=0)
        value = (steps * precision).sum(axis=0) / np.maximum(total, 1)
    else:
        best = np.maximum.accumulate(precision[::-1])[::-1]
        # In whole numbers, so that a recall of 3 in 10 is 0.3.
        reached = [((RECALLS - 1) * positives < k * total).sum(axis=0) for k in range(RECALLS)]
        value = np.take_along_axis(best, np.minimum(reached, len(best) - 1), axis=0).mean(axis=0)
    found: NDArray[np.float64] = np.where(total > 0, value, np.nan)
    return found


def intersections_over_unions(columns: Sequence[Column], weights: Weights) -> NDArray[np.float64]:
    """Of the pixels of every picture by class, ``intersection`` and ``predicted [n, draws *
    classes]`` and ``labelled [n, classes]`` (``harness/probes/segmentation_metrics.py``): a part
    for each class, its intersection over union in all pictures together, 0 to 1.

    As in mmseg (``total_area_to_metrics``) a class that is neither label nor predicted anywhere has
    no value, and one that is only predicted has 0. Of several draws a class has the mean of those
    in which it has a value.
    """
    intersection, predicted, labelled = _pixels(columns, weights)
    union = predicted + labelled - intersection
    return _mean_of_draws(_ratio(intersection, union))


def class_accuracies(columns: Sequence[Column], weights: Weights) -> NDArray[np.float64]:
    """Of the same columns, a part for each class: how much of what is labelled so is predicted so.
    A class that is no label has no value."""
    intersection, _, labelled = _pixels(columns, weights)
    return _mean_of_draws(_ratio(intersection, labelled))


def pixel_accuracy(columns: Sequence[Column], weights: Weights) -> NDArray[np.float64]:
    """Of the same columns, one part: how much of all labelled pixels is predicted right."""
    intersection, _, labelled = (each.sum(axis=2) for each in _pixels(columns, weights))
    return _mean_of_draws(_ratio(intersection, labelled))[:, None]


def _pixels(columns: Sequence[Column], weights: Weights) -> list[NDArray[np.float64]]:
    """Each column summed over pictures as they are weighed: ``[b, draws or 1, classes]``. Exact:
    below 2**53 pixels float64 counts them one by one, and only it has a fast product."""
    weighing = weights.astype(np.float64)
    shape = len(weights), -1, columns[2].shape[1]
    return [(weighing @ column.astype(np.float64)).reshape(shape) for column in columns]


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    part, whole = np.broadcast_arrays(part, whole)
    ratio: NDArray[np.float64] = np.divide(
        part, whole, out=np.full(part.shape, np.nan), where=whole > 0
    )
    return ratio


def _mean_of_draws(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the second dimension, without those that are NaN."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=1), there.sum(axis=1, dtype=np.float64))


def median_rank(columns: Sequence[Column], weights: Weights) -> NDArray[np.float64]:
    """Of ranks from 1, ``[n]`` or several a picture ``[n, k]`` (0 where it has fewer): one part,
    their median; of an even number the mean of the middle two."""
    (column,) = columns
    ranks = column.reshape(len(column), -1)
    picture, place = np.nonzero(ranks)
    found = ranks[picture, place]
    order = np.argsort(found, kind="stable")
    found, counted = found[order].astype(np.float64), weights[:, picture[order]].cumsum(axis=1)
    if not len(found):
        return np.full((len(weights), 1), np.nan)
    total = counted[:, -1:]
    low, high = (found[(counted > half).argmax(axis=1)] for half in ((total - 1) // 2, total // 2))
    middle: NDArray[np.float64] = np.where(total[:, 0] > 0, (low + high) / 2, np.nan)
    return middle[:, None]


AGGREGATES: dict[str, Parts] = {
    "mean": mean,
    "mean_average_precision_11_point": partial(average_precisions, interpolated=True),
    "mean_average_precision_area": partial(average_precisions, interpolated=False),
    "mean_intersection_over_union": intersections_over_unions,
    "mean_class_accuracy": class_accuracies,
    "pixel_accuracy": pixel_accuracy,
    "median_rank": median_rank,
}


def find(name: str) -> Parts:
    """Raises ``HarnessError`` for a name that this harness does not know."""
    if name not in AGGREGATES:
        raise HarnessError(f"no aggregate {name!r}: there are {', '.join(AGGREGATES)}; upgrade?")
    return AGGREGATES[name]


def misfit(name: str, columns: Sequence[Column]) -> str | None:
    """Why the aggregate cannot be made of such columns; None where it can."""
    if name not in AGGREGATES:
        return f"no aggregate {name!r} (upgrade?)"
    if any(column.dtype.kind not in "biuf" for column in columns):
        return "not numbers"
    if name == "mean":
        return None if columns[0].ndim == 1 else "not one number a picture"
    if name == "median_rank":
        whole = columns[0].dtype.kind in "biu" and len(columns) == 1
        return None if whole else "not one column of whole numbers"
    wanted = 2 if name.startswith("mean_average_precision") else 3
    widths = [column.shape[1] for column in columns if column.ndim == 2]
    if len(widths) != wanted or len(columns) != wanted:
        return f"not {wanted} columns with a number a class for each picture"
    # The last has the classes; draws stand side by side in those before.
    if not widths[-1] or any(width % widths[-1] for width in widths) or len(set(widths[:-1])) > 1:
        return "not of the same classes"
    return None


def values(name: str, columns: Sequence[Column]) -> NDArray[np.float64]:
    """``[parts]`` of pictures that count once each."""
    found: NDArray[np.float64] = find(name)(columns, np.ones((1, len(columns[0])), np.int64))[0]
    return found


def complete(columns: Sequence[Column]) -> list[Column]:
    """The rows of pictures that have a value (no NaN) in each of ``columns``."""
    missing = np.zeros(len(columns[0]), bool)
    for column in columns:
        missing |= np.isnan(column.astype(np.float64)).reshape(len(missing), -1).any(axis=1)
    return [column[~missing] for column in columns]


def scenes(columns: Mapping[str, Sequence[str] | Column]) -> Column | None:
    """A number for the scene of every picture, from the column ``scene``; None without one."""
    if SCENE not in columns:
        return None
    numbers: Column = np.unique(np.asarray(columns[SCENE]), return_inverse=True)[1]
    return numbers


def score(
    name: str,
    columns: Sequence[Column],
    scale: float,
    seed: int,
    clusters: ArrayLike | None = None,
) -> tuple[float, Interval]:
    """The score of ``columns``, times ``scale``, and its 95 % bootstrap interval over pictures, or
    over the scenes ``clusters [n]`` that they are of (``bootstrap_mean``).

    NaN, with an interval of NaN, where no part has a value. Raises ``ValueError`` for a mean of
    nothing, or of what is not finite.
    """
    if name == "mean":
        scaled = columns[0].astype(np.float64) * scale
        interval = bootstrap_mean(scaled, seed, clusters=clusters)
        return float(scaled.mean()), interval
    parts = find(name)
    return _resampled(
        lambda weights: parts(columns, weights), len(columns[0]), scale, seed, clusters
    )


def difference(
    name: str,
    ours: Sequence[Column],
    theirs: Sequence[Column],
    scale: float,
    seed: int,
    clusters: ArrayLike | None = None,
) -> tuple[float, Interval]:
    """The score of ``ours`` less that of ``theirs``, row for row of the same pictures, times
    ``scale``, and its 95 % paired bootstrap interval, over scenes where ``clusters`` are given. A
    part that one of the two lacks is in neither score; NaN where there is no other. Raises
    ``ValueError`` as ``score`` does.
    """
    if name == "mean":
        mine, its = (columns[0].astype(np.float64) * scale for columns in (ours, theirs))
        interval = bootstrap_difference(mine, its, seed, clusters=clusters)
        return float(np.mean(mine - its)), interval
    parts = find(name)
    return _resampled(
        lambda weights: parts(ours, weights) - parts(theirs, weights),
        len(ours[0]),
        scale,
        seed,
        clusters,
    )


def mean_of_parts(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores ``[b]`` of parts ``[b, parts]``: their mean, without those that have no value."""
    there = ~np.isnan(parts)
    total, those = np.where(there, parts, 0).sum(axis=1), there.sum(axis=1)
    scores: NDArray[np.float64] = np.where(those > 0, total / np.maximum(those, 1), np.nan)
    return scores


def _resampled(
    parts: Callable[[Weights], NDArray[np.float64]],
    count: int,
    scale: float,
    seed: int,
    clusters: ArrayLike | None,
) -> tuple[float, Interval]:
    def of(weights: Weights) -> NDArray[np.float64]:
        return scale * mean_of_parts(parts(weights))

    value = float(of(np.ones((1, count), np.int64))[0])
    if np.isnan(value):
        return value, Interval(value, value)
    return value, bootstrap(of, count, seed, clusters=clusters)
