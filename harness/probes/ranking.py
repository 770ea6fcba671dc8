"""Ranking a gallery by cosine, and how good a ranking is. Nothing of a data set is in here.

The measures are those of Radenović et al., "Revisiting Oxford and Paris" (CVPR 2018), as coded in
filipradenovic/revisitop, python/evaluate.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_VECTORS = 65_536  # compared at a time

Ranks = NDArray[np.int64]


def ranked(queries: Tensor, gallery: Tensor) -> NDArray[np.int64]:
    """Places in ``gallery [n, D]`` for each of ``queries [q, D]``, the most similar first:
    ``[q, n]``. Vectors are of unit length (or 0).

    Similarities are inner products in float64, rounded to float32, so that equal vectors are
    equally similar; of equal ones the lowest place comes first.
    """
    double = queries.double()
    parts = [(double @ some.double().T).float() for some in torch.split(gallery, _VECTORS)]
    similarities = torch.cat(parts, dim=1).cpu().numpy()
    order: NDArray[np.int64] = np.argsort(-similarities, axis=1, kind="stable")
    return order


def ranks(order: NDArray[np.int64], positive: ArrayLike, ignored: ArrayLike) -> Ranks:
    """At which ranks, from 0 and rising, the ``positive`` places stand in ``order [n]`` once the
    ``ignored`` ones are taken out of it. The two have no place in common."""
    hits = np.isin(order, positive)
    before = np.cumsum(np.isin(order, ignored), dtype=np.int64)
    return np.flatnonzero(hits) - before[hits]


def average_precision(ranks: Ranks, positives: int) -> float:
    """The area under precision over recall, in trapezoids: from 0 to 1.

    ``ranks`` are those of the positives that were found, rising; ``positives`` is how many there
    are. A trapezoid stands between the precision just before a positive (1 before the very first
    rank) and that with it.
    """
    if not 1 <= len(ranks) <= positives:
        raise ValueError(f"{len(ranks)} ranks of {positives} positives")
    found = np.arange(len(ranks))
    without = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    including = (found + 1) / (ranks + 1)
    return float((without + including).sum() / (2 * positives))


def precision_at(ranks: Ranks, k: int) -> float:
    """How much of the first ``k`` is positive, from 0 to 1; of fewer, where the last positive
    stands before that."""
    if not len(ranks) or k < 1:
        raise ValueError(f"precision at {k} with {len(ranks)} positives")
    first = min(int(ranks.max()) + 1, k)
    return float((ranks < first).sum() / first)
