"""Batches of crops and masks for every step, ahead of the device.

Which pictures a step sees is drawn from (seed, epoch), its crops from (seed, epoch, picture, crop),
its masks from (seed, step): a run may stop after any step and go on, with other workers.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from harness.data.dataset import Dataset
from harness.errors import BadPicture
from harness.features.loading import by_workers, default_workers, told
from harness.nano.crops import make_crops
from harness.nano.distillation import draw_masks
from harness.nano.recipe import Recipe

CACHE_BYTES = 2**30
_PREFETCH = 2


@dataclass(frozen=True)
class Batch:
    """Of one step, view by view: ``crops [2B, 3, S, S]`` uint8 (the first crop of each picture,
    then the second), ``local_crops [L·B, 3, s, s]`` uint8, ``masks [2B, H, W]`` boolean,
    ``pictures [B]`` int64 their places in the data set."""

    crops: Tensor
    local_crops: Tensor
    masks: Tensor
    pictures: Tensor


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


def order(seed: int, epoch: int, pictures: int) -> list[int]:
    """All pictures once, in the order of ``epoch``."""
    shuffled = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(pictures)
    return [int(index) for index in shuffled]


def batches(recipe: Recipe, dataset: Dataset, steps: range) -> Iterator[Batch]:
    """The batch of each of ``steps``. Raises ``BadPicture`` for one that cannot be decoded, and
    ``HarnessError`` where a worker process dies."""
    workers = recipe.workers
    if workers is None:
        # The step itself keeps a core busy, and a second one hardly waits for 1 ms a picture.
        workers = default_workers() if default_workers() > 1 else 0
    items = _Steps(recipe, dataset, shared=workers > 0)
    for loaded in by_workers(items, steps, workers, recipe.seed % 2**63, _PREFETCH):
        if isinstance(loaded, str):
            raise BadPicture(loaded)
        yield Batch(*map(torch.from_numpy, loaded))


_Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]


class _Steps(TorchDataset[Any]):
    """Item ``step`` is the arrays of a ``Batch``, or the sentence about a bad picture (an error
    that crosses processes would bring the worker's traceback)."""

    def __init__(self, recipe: Recipe, dataset: Dataset, shared: bool) -> None:
        self._recipe, self._dataset = recipe, dataset
        self._decoded = Decoded(dataset, shared)
        self._epoch, self._order = -1, [0]

    def __getitem__(self, step: int) -> _Arrays | str:
        recipe = self._recipe
        size = recipe.batch_size
        pictures = len(self._dataset.samples)
        epoch, place = divmod(step, pictures // size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(recipe.seed, epoch, pictures)
        chosen = self._order[place * size : (place + 1) * size]
        crops = []
        with _one_thread():
            for index in chosen:
                try:
                    crops.append(make_crops(self._decoded.picture(index), recipe, epoch, index))
                except BadPicture as error:
                    return told(error, self._dataset.samples[index].id)
            # Arrays, because they go through the workers' pipe; tensors would go by /dev/shm.
            return (
                torch.stack([each.whole for each in crops], 1).flatten(0, 1).numpy(),
                torch.stack([each.local for each in crops], 1).flatten(0, 1).numpy(),
                draw_masks(recipe, step).numpy(),
                np.array(chosen, dtype=np.int64),
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker process, so that no sum is split otherwise. Crops are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
