"""Vectors in memory that are read as those of the store are: what tests of blocks share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.features.keys import Key
from harness.features.store import Filling, Store
from harness.features.vectors import StoredVectors, Vectors


class InMemory(Vectors):
    def __init__(self, values: Tensor) -> None:
        self._values, self.width = values, values.shape[1]

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        return self._values[torch.from_numpy(places)].clone()


def stored(
    store: Store, values: Tensor, places: NDArray[np.int64] | None = None, shard: int = 8
) -> StoredVectors:
    """``values [n, D]`` written to the store, of which those at ``places`` are read."""
    count = len(values)
    feature = store.feature(Key({"shard": shard, "n": count}, {}), count)
    for number in range(-(-count // shard)):
        some = values[number * shard : (number + 1) * shard]
        filling = Filling(len(some))
        filling._values, filling._there[:] = some.clone(), True
        feature.write(number, filling.rows({}))
    chosen = np.arange(count) if places is None else places
    return StoredVectors(feature, chosen, values.shape[1])
