"""Nearest neighbours among vectors that are read block by block, and never all in memory.

What is found in one block is merged with the best of those before. A block's similarities are those
of a search among all (float64, rounded to float32), and blocks come in the vectors' order, so that
of equal ones the lowest place is first here too: the result is that of ``NeighbourIndex``, whatever
the size of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.features.vectors import Vectors
from harness.probes.neighbours import (
    MOST,
    QUERIES,
    SPARE,
    Approximate,
    Find,
    NeighbourIndex,
    Neighbours,
    gpus_of,
    highest,
    inverted_file,
    sampled,
)

_PAIRS = 2**14  # of a query and a candidate that are multiplied at a time


class BlockedIndex:
    """The search among ``vectors`` of unit length (or 0), ``block`` of them in memory at a time, on
    ``device`` as ``NeighbourIndex`` has it. An inverted file is held, in a byte a number.

    Each call of ``search`` reads all vectors: ``at_once`` queries, as large as a block, are best
    asked together.
    """

    def __init__(
        self,
        vectors: Vectors,
        block: int,
        device: str = "cpu",
        approximate: Approximate | None = None,
    ) -> None:
        if not len(vectors) or block < 1:
            raise ValueError(f"{len(vectors)} vectors in blocks of {block}: one at least")
        self._vectors, self._block, self._device = vectors, block, device
        self.at_once = max(QUERIES, block)
        self._find: Find | None = None
        if approximate is not None:
            sample = vectors.rows(sampled(len(vectors), approximate.lists))
            blocks = vectors.blocks(block)
            self._find = inverted_file(sample, blocks, approximate, gpus_of(device))

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """The ``k`` nearest of every query ``[q, D]`` (float32, unit length), on the CPU."""
        if not 1 <= k <= min(len(self._vectors), MOST):
            raise ValueError(f"k {k}: from 1 to {min(len(self._vectors), MOST)}")
        if self._find is None:
            return self._among_all(queries, k)
        return self._among_candidates(self._find, queries, k)

    def _among_all(self, queries: Tensor, k: int) -> Neighbours:
        parts = torch.split(queries, QUERIES)
        best = [
            Neighbours(torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64))
            for part in parts
        ]
        start = 0
        for block in self._vectors.blocks(self._block):
            index = NeighbourIndex(block, self._device)
            for number, part in enumerate(parts):
                found = index.search(part, min(k, len(block)))
                similarities = torch.cat([best[number].similarities, found.similarities], dim=1)
                places = torch.cat([best[number].places, found.places + start], dim=1)
                best[number] = highest(similarities, places, k)
            start += len(block)
        return Neighbours(*(torch.cat(each) for each in zip(*best, strict=True)))

    def _among_candidates(self, find: Find, queries: Tensor, k: int) -> Neighbours:
        """Of what ``find`` gives, by the true similarities: one more pass over the vectors."""
        count = min(k + SPARE, len(self._vectors))
        rows = torch.cat([find(part, count)[1] for part in torch.split(queries, QUERIES)])
        rows = rows.sort(dim=1).values
        similarities = torch.full(rows.shape, -torch.inf)
        start = 0
        for block in self._vectors.blocks(self._block):
            asked, column = ((rows >= start) & (rows < start + len(block))).nonzero(as_tuple=True)
            for some, at in zip(
                torch.split(asked, _PAIRS), torch.split(column, _PAIRS), strict=True
            ):
                pairs = block[rows[some, at] - start].double(), queries[some].double()
                similarities[some, at] = torch.linalg.vecdot(*pairs).float()
            start += len(block)
        result = highest(similarities, rows, k)
        unsure = result.places.amin(1) < 0
        if unsure.any():
            found = self._among_all(queries[unsure], k)
            for ours, theirs in zip(result, found, strict=True):
                ours[unsure] = theirs
        return result
