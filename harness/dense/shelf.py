"""Patches and labels of all training pictures, to be taken again and again in any order.

What is too much for memory is laid in a file that the system maps into it: a picture's rows are
then read where they are used, and kept as long as there is room.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import HarnessError
from harness.features.store import default_folder

IN_MEMORY = 2**32
"""Bytes of rows, labels included, that are simply kept: 4 GiB."""


class Shelf:
    """Rows of ``pictures`` pictures, of several kinds (``kept`` and the labels), by place.

    ``in_memory`` bytes at the most are in memory; more are in files without a name in the feature
    store's folder, which are gone with the process, however that ends.
    """

    def __init__(self, pictures: int, in_memory: int = IN_MEMORY) -> None:
        self._pictures, self._in_memory = pictures, in_memory
        self._kinds: list[Tensor] = []
        self._there = np.zeros(pictures, bool)

    def add(self, places: Sequence[int], rows: Sequence[Tensor]) -> None:
        """``rows[kind] [B, ...]`` of the pictures at ``places [B]``. Raises ``HarnessError`` where
        the disk has no room for them."""
        if not self._kinds:
            sizes = [self._pictures * each[0].numel() * each.element_size() for each in rows]
            fits = sum(sizes) <= self._in_memory
            self._kinds = [self._room(each, fits) for each in rows]
        where = torch.tensor(places)
        for kind, values in zip(self._kinds, rows, strict=True):
            kind[where] = values.cpu()
        self._there[list(places)] = True

    def places(self) -> NDArray[np.int64]:
        """Where there are rows, rising ``[n]``."""
        return np.flatnonzero(self._there)

    def rows(self, places: Tensor) -> list[Tensor]:
        """Of each kind the rows at ``places [B]``."""
        return [kind[places] for kind in self._kinds]

    def state(self) -> tuple[list[Tensor], NDArray[np.bool_]]:
        return [kind.clone() for kind in self._kinds], self._there.copy()

    def load(self, state: tuple[list[Tensor], NDArray[np.bool_]]) -> None:
        kinds, there = state
        self._kinds = []
        if kinds:
            self.add(np.flatnonzero(there).tolist(), [kind[there] for kind in kinds])
        self._there = there.copy()

    def _room(self, like: Tensor, in_memory: bool) -> Tensor:
        shape = (self._pictures, *like.shape[1:])
        size = self._pictures * like[0].numel() * like.element_size()
        if in_memory:
            return torch.zeros(shape, dtype=like.dtype)
        folder = default_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".shelf.") as file:
                # All of it now: a disk that is full later would kill the process with a signal.
                _reserve(file.fileno(), size)
                numbers = size // like.element_size()
                flat = torch.from_file(file.name, shared=True, size=numbers, dtype=like.dtype)
        except OSError as error:
            raise HarnessError(
                f"{folder}: {error.strerror or error}: the patches of {self._pictures:,} pictures "
                f"take {size / 2**30:.1f} GiB beside the feature store (HARNESS_CACHE names "
                "another folder; a smaller --set size, or --limit, needs less)"
            ) from None
        return flat.view(shape)


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)
