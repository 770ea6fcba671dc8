"""Batches of crops and masks for every step, ahead of the device.

Which pictures a step sees is drawn from (seed, epoch), its crops from (seed, epoch, picture, crop),
its masks from (seed, step): a run may stop after any step and go on, with other workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from harness.data.dataset import Dataset
from harness.errors import BadPicture
from harness.features.loading import by_workers, told
from harness.nano.crops import make_crops
from harness.nano.decoded import Decoded, Order, one_thread, processes
from harness.nano.distillation import draw_masks
from harness.nano.recipe import Recipe

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


def batches(recipe: Recipe, dataset: Dataset, steps: range) -> Iterator[Batch]:
    """The batch of each of ``steps``. Raises ``BadPicture`` for one that cannot be decoded, and
    ``HarnessError`` where a worker process dies."""
    workers = processes(recipe)
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
        self._order = Order(recipe.seed, len(dataset.samples), recipe.batch_size)

    def __getitem__(self, step: int) -> _Arrays | str:
        recipe = self._recipe
        epoch, chosen = self._order.of(step)
        crops = []
        with one_thread():
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
