"""Batches of crops, each with one of its picture's captions, for every step.

Which pictures a step sees is drawn from (seed, epoch); which part of a picture and which of its
captions from (seed, epoch, picture): a run may stop after any step and go on, with other workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from harness.data.dataset import Dataset
from harness.errors import BadPicture, HarnessError
from harness.features.loading import by_workers, told
from harness.language.nano_words import Words
from harness.nano.crops import plain_crop
from harness.nano.decoded import Decoded, Order, one_thread, processes
from harness.nano.draw import Draw
from harness.nano.recipe import Recipe

_PREFETCH = 2
_PIECE = 64
"""Pictures whose captions a worker process reads at a time."""
_STREAM = 100  # of (seed, epoch, picture): crops of the other objective draw from 0, 1, ...

Captions = list[tuple[str, ...]]


@dataclass(frozen=True)
class Pairs:
    """Of one step: ``crops [B, 3, S, S]`` uint8 and ``rows [B, context]`` int64, the words of a
    caption of each."""

    crops: Tensor
    rows: Tensor


def read_captions(recipe: Recipe, dataset: Dataset) -> Captions:
    """The captions of every picture. Raises ``HarnessError`` where one has none."""
    pieces = range(0, len(dataset.samples), _PIECE)
    seed = recipe.seed % 2**63
    read = by_workers(_Captions(dataset), pieces, processes(recipe), seed, _PREFETCH)
    found = [captions for piece in read for captions in piece]
    without = [place for place, captions in enumerate(found) if not captions]
    if without:
        raise HarnessError(
            f"{recipe.data}: {len(without)} of {len(found)} pictures have no caption, "
            f"{dataset.samples[without[0]].id} for one; --objective clip learns from captions"
            + ("" if len(without) < len(found) else " (scenes-captions has some)")
        )
    return found


def pairs(
    recipe: Recipe, dataset: Dataset, captions: Captions, words: Words, steps: range
) -> Iterator[Pairs]:
    """The batch of each of ``steps``. Raises ``BadPicture`` for one that cannot be decoded, and
    ``HarnessError`` where a worker process dies."""
    workers = processes(recipe)
    items = _Steps(recipe, dataset, captions, words, shared=workers > 0)
    for loaded in by_workers(items, steps, workers, recipe.seed % 2**63, _PREFETCH):
        if isinstance(loaded, str):
            raise BadPicture(loaded)
        yield Pairs(*map(torch.from_numpy, loaded))


class _Captions(TorchDataset[Any]):
    """Item ``first`` is the captions of pictures ``first`` to ``first + _PIECE``."""

    def __init__(self, dataset: Dataset) -> None:
        self._samples: Sequence[Any] = dataset.samples

    def __getitem__(self, first: int) -> Captions:
        last = min(first + _PIECE, len(self._samples))
        return [self._samples[place].target.captions or () for place in range(first, last)]


class _Steps(TorchDataset[Any]):
    """Item ``step`` is the arrays of ``Pairs``, or the sentence about a bad picture (an error that
    crosses processes would bring the worker's traceback)."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, captions: Captions, words: Words, shared: bool
    ) -> None:
        self._recipe, self._dataset = recipe, dataset
        self._captions, self._words = captions, words
        self._decoded = Decoded(dataset, shared)
        self._order = Order(recipe.seed, len(dataset.samples), recipe.batch_size)

    def __getitem__(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | str:
        recipe = self._recipe
        epoch, chosen = self._order.of(step)
        crops, texts = [], []
        with one_thread():
            for index in chosen:
                draw = Draw(recipe.seed, epoch, index, _STREAM)
                texts.append(draw.choice(self._captions[index]))
                try:
                    picture = self._decoded.picture(index)
                except BadPicture as error:
                    return told(error, self._dataset.samples[index].id)
                crops.append(plain_crop(picture, draw, recipe.facts.crop, recipe.crop_scale))
            return torch.stack(crops).numpy(), self._words.rows(texts).numpy()
