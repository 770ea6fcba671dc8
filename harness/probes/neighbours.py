"""Nearest neighbours by cosine, and the class that they vote for. Nothing of a data set is in here.

faiss finds candidates, a few more than are asked for. Their similarities are then computed anew in
float64 and rounded to float32, which gives the same number on every device, for every batch and in
every order of the vectors: only so does "of equal similarities the lowest place" mean anything.
The vote is DINOv2's (Oquab et al., 2023; dinov2/eval/knn.py), but adds weights up by class where
that multiplies with one-hot vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.features.vectors import Vectors

MOST = 2_000
"""Neighbours that can be asked for: with the spare ones, what faiss finds on a GPU (2,048)."""

SPARE = 16
QUERIES = 512  # answered at a time
_ADDED = 65_536  # to an inverted file at a time
_TRAINED_ON = 64  # vectors a cell of an inverted file
_ALL = 65_536  # of no more all are taken
_VECTORS = 4_096  # compared at a time where all are
_MULTIPLIED = 2**20  # compared at a time by products: 2 GiB for the queries answered at a time
_GPU_SCRATCH = 2**26  # bytes that faiss may set aside; its own choice is 1.5 GiB

Find = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Neighbours(NamedTuple):
    """Of q queries the k nearest, nearest first: ``similarities [q, k]`` float32 and ``places
    [q, k]`` int64 in the index; equal similarities by rising place."""

    similarities: Tensor
    places: Tensor


class Approximate(NamedTuple):
    """An inverted file of ``lists`` cells, of which the ``probes`` nearest are searched, with
    vectors in 8 bits a number: a quarter of the memory. Their true similarities are still found."""

    lists: int
    probes: int


class NeighbourIndex:
    """Vectors ``[n, D]`` float32 of unit length (or 0), which are not copied on a CPU, and the
    search among them. ``at_once`` queries are best asked together.

    On ``cuda`` they are shared out over all GPUs, on ``cuda:1`` they lie on that one. Raises
    ``RuntimeError`` where they do not fit there.
    """

    def __init__(
        self, vectors: Tensor, device: str = "cpu", approximate: Approximate | None = None
    ) -> None:
        if vectors.ndim != 2 or not len(vectors) or vectors.dtype != torch.float32:
            raise ValueError(f"vectors: [n, D] float32, not {vectors.shape} {vectors.dtype}")
        self._size = len(vectors)
        self.at_once = QUERIES
        gpus = gpus_of(device)
        if approximate is not None:
            sample = vectors[torch.from_numpy(sampled(len(vectors), approximate.lists))]
            find = inverted_file(sample, torch.split(vectors, _ADDED), approximate, gpus)
            self._parts = [_Part(vectors, 0, find, exact=False)]
        elif gpus:
            pieces = vectors.chunk(len(gpus))
            starts = np.cumsum([0, *map(len, pieces)])
            self._parts = []
            for gpu, piece, start in zip(gpus, pieces, starts, strict=False):
                held = piece.to(f"cuda:{gpu}")
                self._parts.append(_Part(held, int(start), _flat_on_gpu(held)))
        else:
            self._parts = [_Part(vectors, 0, _flat(vectors))]

    def search(self, queries: Tensor, k: int) -> Neighbours:
        """The ``k`` nearest of every query ``[q, D]`` (float32, unit length), on the CPU."""
        if not 1 <= k <= min(self._size, MOST):
            raise ValueError(f"k {k}: from 1 to {min(self._size, MOST)}")
        if len(self._parts) == 1:
            return self._parts[0].nearest(queries, k)
        with ThreadPoolExecutor(len(self._parts)) as pool:
            found = list(pool.map(lambda part: part.nearest(queries, k), self._parts))
        similarities, places = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        return highest(similarities, places, k)


class _Part:
    """Vectors on one device, the first of which has place ``first``. ``find`` gives candidates:
    their similarities as far as they are known, and their rows (-1: there are no more)."""

    def __init__(self, vectors: Tensor, first: int, find: Find, exact: bool = True) -> None:
        self._vectors, self._first, self._find, self._exact = vectors, first, find, exact

    def nearest(self, queries: Tensor, k: int) -> Neighbours:
        size, width = self._vectors.shape
        k, count = min(k, size), min(k + SPARE, size)
        queries = queries.to(self._vectors.device)
        supposed, rows = self._find(queries, count)
        rows = rows.sort(dim=1).values
        similarities, places = highest(self._similarities(queries, rows), rows, k)
        if self._exact:
            # What was not found is at most as near as the last that was, but for rounding: a sum
            # of D products errs by D units of the last place of 1 (Higham, 2002, section 3.1).
            rounding = (width + 2) * 2.0**-24
            unsure = similarities[:, -1] <= supposed.amin(1) + rounding
        else:
            unsure = places.amin(1) < 0
        if unsure.any() and (count < size or not self._exact):
            similarities[unsure], places[unsure] = self._among_all(queries[unsure], k)
        return Neighbours(similarities.cpu(), places.cpu() + self._first)

    def _similarities(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Of every query with its own candidates ``rows [q, m]``, -inf for row -1: ``[q, m]``."""
        budget = 2**24 if rows.is_cuda else 2**19  # numbers: what a cache holds, on a CPU
        step = max(1, budget // (rows.shape[1] * queries.shape[1]))
        # Written in place: small results between large temporaries would pin the heap.
        result = torch.empty(rows.shape, device=rows.device)
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = self._vectors[rows[some].clamp_min(0)].double()
            result[some] = torch.bmm(vectors, queries[some].double()[:, :, None])[..., 0]
        return result.masked_fill_(rows < 0, -torch.inf)

    def _among_all(self, queries: Tensor, k: int) -> Neighbours:
        """By comparing with every vector: where ties, or nearly, reach beyond the candidates."""
        double = queries.double()
        best = Neighbours(double.new_empty(len(double), 0).float(), double.new_empty(0).long())
        for start in range(0, len(self._vectors), _VECTORS):
            vectors = self._vectors[start : start + _VECTORS].double()
            similarities = (double @ vectors.T).float()
            rows = torch.arange(start, start + len(vectors), device=double.device)
            rows = rows.expand(len(double), -1)
            if start:
                similarities = torch.cat([best.similarities, similarities], dim=1)
                rows = torch.cat([best.places, rows], dim=1)
            best = highest(similarities, rows, k)
        return best


def highest(similarities: Tensor, places: Tensor, k: int) -> Neighbours:
    """The ``k`` highest of each row ``[q, m]`` (all, where there are fewer), highest first. Of
    equal ones the first are taken, and stay in order."""
    k = min(k, similarities.shape[1])
    least = similarities.topk(k, dim=1).values[:, -1:]
    above, level = similarities > least, similarities == least
    # topk chooses among equals as it likes: only its value is used.
    taken = above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))
    similarities, order = similarities[taken].view(-1, k).sort(dim=1, descending=True, stable=True)
    return Neighbours(similarities, places[taken].view(-1, k).gather(1, order))


def gpus_of(device: str) -> list[int]:
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return []
    return list(range(torch.cuda.device_count())) if chosen.index is None else [chosen.index]


def _flat(vectors: Tensor) -> Find:
    """What ``IndexFlatIP`` does, without its copy of the vectors."""
    import faiss

    array = vectors.numpy()

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = faiss.knn(queries.numpy(), array, count, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    return find


def _flat_on_gpu(vectors: Tensor) -> Find:
    """What ``GpuIndexFlatIP`` does, on vectors that lie there already."""
    if not faiss_has_gpus():
        return flat_by_products(vectors)
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_SCRATCH)

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = faiss.knn_gpu(
            resources,
            queries,
            vectors,
            count,
            metric=faiss.METRIC_INNER_PRODUCT,
            device=vectors.device.index,
        )
        return found

    return find


def faiss_has_gpus() -> bool:
    """Whether this faiss was built for GPUs: ``faiss-cpu``, where nothing else is to be had, was
    not."""
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def flat_by_products(vectors: Tensor) -> Find:
    """What ``IndexFlatIP`` does, in products of torch where the vectors lie."""

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0).long()
        for start in range(0, len(vectors), _MULTIPLIED):
            block = vectors[start : start + _MULTIPLIED]
            nearest = (queries @ block.T).topk(min(count, len(block)), dim=1)
            similarities = torch.cat([best[0], nearest.values], dim=1)
            rows = torch.cat([best[1], nearest.indices + start], dim=1)
            similarities, order = similarities.topk(min(count, similarities.shape[1]), dim=1)
            best = similarities, rows.gather(1, order)
        return best

    return find


def sampled(size: int, lists: int) -> NDArray[np.int64]:
    """Rising places of the vectors that an inverted file is trained on: the same for the same
    numbers of vectors and cells."""
    count = min(size, max(_TRAINED_ON * lists, _ALL))
    return np.sort(np.random.default_rng(0).choice(size, count, replace=False)).astype(np.int64)


def inverted_file(
    sample: Tensor, blocks: Iterable[Tensor], settings: Approximate, gpus: Sequence[int]
) -> Find:
    """Of the vectors in ``blocks``, trained on ``sample`` and shared out over the ``gpus`` if there
    are any; the vectors themselves are not held."""
    import faiss

    index: Any = faiss.index_factory(
        sample.shape[1], f"IVF{settings.lists},SQ8", faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = 1  # only warns; few vectors are the caller's business
    index.train(sample.numpy())
    for block in blocks:
        index.add(block.numpy())
    parameters = faiss.ParameterSpace()
    if gpus and faiss_has_gpus():
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        index = faiss.index_cpu_to_gpus_list(index, options, list(gpus))
        parameters = faiss.GpuParameterSpace()
    parameters.set_index_parameter(index, "nprobe", min(settings.probes, settings.lists))

    def find(queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = index.search(queries.numpy(), count)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    return find


def votes(
    neighbours: Neighbours, labels: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> Iterator[tuple[int, Tensor]]:
    """For every k, rising: k and ``[q, classes]`` float64, how much the k nearest vote for each
    class. The tensor is added to: it holds until the next is asked for.

    Weights are the softmax of similarity / temperature over *all* neighbours given, whatever k, as
    in DINOv2: with k below that, votes sum to less than 1. ``labels [n]`` are those of the index.
    """
    if not 1 <= min(ks) <= max(ks) <= neighbours.places.shape[1]:
        raise ValueError(f"k {list(ks)}: from 1 to the {neighbours.places.shape[1]} neighbours")
    weights = (neighbours.similarities.double() / temperature).softmax(1)
    voted = labels[neighbours.places]
    total = torch.zeros(len(voted), classes, dtype=torch.float64)
    done = 0
    for k in sorted(set(ks)):
        total.scatter_add_(1, voted[:, done:k], weights[:, done:k])
        done = k
        yield k, total


class Judged(NamedTuple):
    """Of q queries: the class with the most votes, and how many classes come before the true one
    (0: it is right). Of equally many votes, none included, the lowest class comes first."""

    predicted: Tensor
    rank: Tensor


def _parts(queries: Tensor | Vectors, size: int) -> Iterable[Tensor]:
    return queries.blocks(size) if isinstance(queries, Vectors) else torch.split(queries, size)


class Index(Protocol):
    """A search among vectors, wherever they are."""

    at_once: int

    def search(self, queries: Tensor, k: int) -> Neighbours: ...


def judge(
    index: Index,
    labels: Tensor,
    classes: int,
    queries: Tensor | Vectors,
    truth: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, Judged]:
    """For every k what the neighbours of ``queries [q, D]``, of the classes ``truth [q]``, vote
    for. Memory grows with a block of queries, not with q."""
    parts: dict[int, list[Judged]] = {k: [] for k in sorted(set(ks))}
    every = torch.arange(classes)
    start = 0
    for block in _parts(queries, index.at_once):
        found = index.search(block, max(ks))
        for some in zip(*(torch.split(each, QUERIES) for each in found), strict=True):
            theirs = truth[start : start + len(some[0])]
            start += len(theirs)
            before = every < theirs[:, None]
            for k, total in votes(Neighbours(*some), labels, classes, ks, temperature):
                own = total.gather(1, theirs[:, None])
                rank = ((total > own) | ((total == own) & before)).sum(1)
                parts[k].append(Judged(total.argmax(1), rank))
    return {
        k: Judged(*(torch.cat(each) for each in zip(*judged, strict=True)))
        for k, judged in parts.items()
    }
