"""Vectors of many pictures, one each, that are read in blocks and never all in memory.

Their rows are those that would be kept in memory, to the bit. What is chosen, joined or scaled to
unit length is so when a block is read.
"""

from __future__ import annotations

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import HarnessError
from harness.features.store import Feature

_FLOAT = 4  # bytes
_MMAP_THRESHOLD = -3  # of <malloc.h>


class Vectors(ABC):
    """``n`` vectors of ``width`` float32 numbers."""

    width: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, places: NDArray[np.int64]) -> Tensor:
        """Those at ``places [b]``, in that order: ``[b, width]`` of their own, on the CPU."""

    def blocks(self, size: int) -> Iterator[Tensor]:
        """All, in order, ``size`` at a time, as ``read_ahead`` gives them."""
        starts = range(0, len(self), size)
        parts = (np.arange(start, min(start + size, len(self))) for start in starts)
        return read_ahead(self.rows, parts)

    def of(self, places: NDArray[np.int64]) -> Vectors:
        """Those at ``places [m]`` alone."""
        return _Chosen(self, places)

    def and_those_of(self, other: Vectors) -> Vectors:
        return _Joined(self, other)

    def unit(self) -> Vectors:
        """Each scaled to length 1; one of length 0 stays."""
        return _Unit(self)

    def row_bytes(self) -> int:
        return _FLOAT * self.width


class StoredVectors(Vectors):
    """The vectors at ``places [n]``, rising, of a feature of the store."""

    def __init__(self, feature: Feature, places: NDArray[np.int64], width: int) -> None:
        self._feature, self._places, self.width = feature, places, width

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        """Raises ``HarnessError`` where the store no longer has them."""
        wanted = self._places[places]
        order = np.argsort(wanted, kind="stable")
        wanted, found = wanted[order], torch.empty(len(places), self.width)
        shards = wanted // self._feature.size
        for part in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(shards)) + 1):
            if len(part):
                shard = int(shards[part[0]])
                found[torch.from_numpy(order[part])] = self._of_shard(
                    shard, wanted[part] - shard * self._feature.size
                )
        return found

    def _of_shard(self, shard: int, rows: NDArray[np.int64]) -> Tensor:
        values = self._feature.take(shard, rows)
        if values is None or values.shape[1] != self.width:
            raise HarnessError(
                f"feature store {self._feature.folder.parent}: shard {shard} of "
                f"{self._feature.folder.name} is not there, or damaged, and its vectors are not in "
                "memory; run again to have it made again (was the store pruned, or is its disk "
                "full?), or keep vectors in memory with a larger --memory"
            )
        return values.float()


class _Chosen(Vectors):
    def __init__(self, of: Vectors, places: NDArray[np.int64]) -> None:
        self._of, self._places, self.width = of, places, of.width

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        return self._of.rows(self._places[places])


class _Joined(Vectors):
    def __init__(self, first: Vectors, second: Vectors) -> None:
        self._first, self._second, self.width = first, second, first.width

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        later = places >= len(self._first)
        found = torch.empty(len(places), self.width)
        found[torch.from_numpy(~later)] = self._first.rows(places[~later])
        found[torch.from_numpy(later)] = self._second.rows(places[later] - len(self._first))
        return found


class _Unit(Vectors):
    def __init__(self, of: Vectors) -> None:
        self._of, self.width = of, of.width

    def __len__(self) -> int:
        return len(self._of)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        found = self._of.rows(places)
        return torch.nn.functional.normalize(found, out=found)


class SideBySide:
    """Several vectors of each picture, one behind the other."""

    def __init__(self, columns: Sequence[Vectors]) -> None:
        self._columns = columns

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        """``[b, W]``, W the sum of their widths."""
        return torch.cat([each.rows(places) for each in self._columns], dim=1)


def read_ahead(
    read: Callable[[NDArray[np.int64]], Tensor], parts: Iterable[NDArray[np.int64]]
) -> Iterator[Tensor]:
    """What ``read`` gives of each of the ``parts``. One is read while the last is used: two are in
    memory."""
    _let_go_of_blocks()
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Tensor] | None = None
        for part in parts:
            ahead = pool.submit(read, part)
            if waiting is not None:
                yield waiting.result()
            waiting = ahead
        if waiting is not None:
            yield waiting.result()


@cache
def _let_go_of_blocks() -> None:
    """What is freed goes back to the system. glibc would keep blocks of up to 32 MiB for the next
    ones, between which small things come to lie: memory would grow with the vectors read."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 2**20)


def shape_of(features: Tensor | Vectors) -> torch.Size:
    """``[n, D]``."""
    if isinstance(features, Vectors):
        return torch.Size([len(features), features.width])
    return features.shape


def chosen(features: Tensor | Vectors, places: NDArray[np.int64]) -> Tensor | Vectors:
    """Those at ``places``, kept or read as they were."""
    if isinstance(features, Vectors):
        return features.of(places)
    return features[torch.from_numpy(places)]


def to_unit(features: Tensor | Vectors) -> Tensor | Vectors:
    """Each scaled to length 1; those that are kept are changed in place."""
    if isinstance(features, Vectors):
        return features.unit()
    return torch.nn.functional.normalize(features, out=features)


def both(first: Tensor | Vectors, second: Tensor | Vectors) -> Tensor | Vectors:
    """One behind the other; of one kind."""
    if isinstance(first, Vectors):
        assert isinstance(second, Vectors)
        return first.and_those_of(second)
    assert not isinstance(second, Vectors)
    return torch.cat([first, second])
