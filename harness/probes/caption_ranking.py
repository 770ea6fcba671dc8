"""Where, among all vectors, the first of a query's own stands. Nothing of a data set is in here.

In a ranking by cosine a picture's own are its captions, and a caption's own is its picture. faiss
finds those that stand near the top (``neighbours.py``); for what stands farther down all that comes
before it is counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.probes.neighbours import MOST, NeighbourIndex

_QUERIES = 512  # answered at a time
_VECTORS = 4_096  # compared at a time


def ranks_of_own(
    queries: Tensor, vectors: Tensor, first: Tensor, past: Tensor, near: int, device: str = "cpu"
) -> Tensor:
    """Of every query ``[q, E]`` the rank, from 0, of the most similar of its own among ``vectors
    [n, E]``: ``[q]`` int64.

    Both are float32 of unit length. A query's own are the places from ``first [q]`` to ``past [q]``
    (excluded), at least one. Similarities are inner products in float64 rounded to float32, and of
    equal ones the lowest place comes first. Ranks below ``near`` are found by faiss on ``device``.
    Memory grows with a block of each, not with q x n. Raises ``ValueError`` for a query without its
    own.
    """
    if len(first) != len(queries) or bool((past <= first).any()):
        raise ValueError("every query needs at least one place of its own")
    index = NeighbourIndex(vectors, device)
    near = max(1, min(near, len(vectors), MOST))
    ranks = torch.full((len(queries),), -1, dtype=torch.int64)
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        places = index.search(queries[some], near).places
        own = (places >= first[some, None]) & (places < past[some, None])
        ranks[some] = torch.where(own.any(1), own.int().argmax(1), -1)
    far = (ranks < 0).nonzero()[:, 0]
    for those in torch.split(far, _QUERIES) if len(far) else ():
        ranks[those] = _counted(queries[those], vectors, first[those], past[those])
    return ranks


def _counted(queries: Tensor, vectors: Tensor, first: Tensor, past: Tensor) -> Tensor:
    """The same by comparing with every vector."""
    double = queries.double()
    best, place = _best_own(double, vectors, first, past)
    before = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(vectors), _VECTORS):
        part = vectors[start : start + _VECTORS].double()
        similar = (double @ part.T).float()
        there = torch.arange(start, start + len(part))
        ahead = similar > best[:, None]
        ahead |= (similar == best[:, None]) & (there < place[:, None])
        # Its own are not ahead of their best, whatever a last bit says.
        ahead &= (there < first[:, None]) | (there >= past[:, None])
        before += ahead.sum(1)
    return before


def _best_own(
    double: Tensor, vectors: Tensor, first: Tensor, past: Tensor
) -> tuple[Tensor, Tensor]:
    """Similarity and place of each query's most similar own, the lowest place of equal ones."""
    own = first[:, None] + torch.arange(int((past - first).max()))
    there = own < past[:, None]
    candidates = vectors[own.clamp_max(len(vectors) - 1)].double()
    similar = torch.bmm(candidates, double[:, :, None])[..., 0].float()
    similar = similar.masked_fill(~there, -torch.inf)
    best = similar.amax(1)
    return best, first + (similar == best[:, None]).int().argmax(1)  # the first that is equal
