"""The pictures that a run trains on: decoded once where they fit in memory, in a drawn order."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.dataset import Dataset
from harness.features.loading import default_workers
from harness.nano.recipe import Recipe

CACHE_BYTES = 2**30


class Decoded:
    """The pictures of a data set, decoded once where they all have one size and fit in memory.

    The memory is shared with worker processes that are forked from this one. It is an anonymous
    map, because /dev/shm is 64 MiB in many containers and writing beyond it kills a process.
    """

    def __init__(self, dataset: Dataset, shared: bool) -> None:
        """``shared``: worker processes will read too; without fork they could not share it."""
        self._dataset = dataset
        self._pixels: NDArray[np.uint8] | None = None
        sizes = dataset.sizes()
        width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
        count = len(dataset.samples)
        size = count * height * width * 3
        if 0 < size <= CACHE_BYTES and (not shared or sys.platform == "linux"):
            pixels = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
            self._pixels = pixels.reshape(count, height, width, 3)
            self._there = np.frombuffer(mmap.mmap(-1, count), dtype=np.uint8)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Picture ``index`` as stored, ``[height, width, 3]`` RGB. Raises ``BadPicture``."""
        if self._pixels is None:
            return self._dataset.picture(index)
        if not self._there[index]:
            picture = self._dataset.picture(index)
            if picture.shape != self._pixels.shape[1:]:
                return picture  # its annotation lied about its size
            self._pixels[index] = picture
            self._there[index] = 1
        kept: NDArray[np.uint8] = self._pixels[index]
        return kept


class Order:
    """Which pictures a step sees: each epoch all of them once, in an order of its own, but for
    those that fill no batch."""

    def __init__(self, seed: int, pictures: int, batch_size: int) -> None:
        self._seed, self._pictures, self._size = seed, pictures, batch_size
        self._epoch, self._order = -1, [0]

    def of(self, step: int) -> tuple[int, list[int]]:
        """The epoch of a step, and its pictures."""
        epoch, place = divmod(step, self._pictures // self._size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(self._seed, epoch, self._pictures)
        return epoch, self._order[place * self._size : (place + 1) * self._size]


def order(seed: int, epoch: int, pictures: int) -> list[int]:
    """All pictures once, in the order of ``epoch``."""
    shuffled = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(pictures)
    return [int(index) for index in shuffled]


def processes(recipe: Recipe) -> int:
    """Worker processes that decode and crop ahead of the device."""
    if recipe.workers is not None:
        return recipe.workers
    # The step itself keeps a core busy, and a second one hardly waits for 1 ms a picture.
    return default_workers() if default_workers() > 1 else 0


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker process, so that no sum is split otherwise. Crops are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
