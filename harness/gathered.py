"""Features of several tokens of a picture side by side, of all pictures that heads are trained or
chosen on: one matrix in memory, or rows that the feature store is read for step by step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.collected import Collector
from harness.data.dataset import Role
from harness.features.vectors import SideBySide, Vectors, read_ahead
from harness.selection import held_out


class Gathered(NamedTuple):
    """``features [n, W]``, or what reads them, ``labels [n]``, and which pictures choose, ``held
    [n]``. ``without`` counts by role the pictures that lack a token."""

    features: Tensor | SideBySide
    labels: Tensor
    held: NDArray[np.bool_]
    without: Mapping[str, int]

    def near(self, parts: Iterable[Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of the rows of each part, on ``device``."""
        if isinstance(self.features, Tensor):
            for rows in parts:
                features = self.features[rows.to(self.features.device)]
                yield features.to(device), self.labels[rows].to(device)
            return
        first, second = itertools.tee(parts)
        read = read_ahead(self.features.rows, (rows.numpy() for rows in first))
        for rows, features in zip(second, read, strict=True):
            yield features.to(device), self.labels[rows].to(device)


def gather(
    collected: Mapping[Role, list[Collector]], widths: Sequence[int], share: float, device: str
) -> Gathered:
    """Roles one under the other; of a second one all pictures choose, else a ``share`` of the
    first. Collectors, one a selector, are let go of on the way, so that little of what they keep is
    in memory twice. On a GPU that has room for the features they lie there."""
    ends = [0, *itertools.accumulate(widths)]
    ids: list[list[str]] = []
    features, labels = torch.empty(0), torch.empty(0)
    streamed: list[Vectors] = []
    without: dict[str, int] = {}
    for column in range(len(widths)):
        parts = []
        for role, of in collected.items():
            collector = of.pop(0)
            parts.append(collector.examples())
            if not column and collector.without:
                without[role] = collector.without
        if not column:
            ids = [list(part.ids) for part in parts]
            labels = torch.cat([torch.from_numpy(part.labels) for part in parts])
        read = [part.features for part in parts if isinstance(part.features, Vectors)]
        if read:
            streamed.append(functools.reduce(Vectors.and_those_of, read))
            continue
        if not column:
            features = torch.empty(len(labels), ends[-1])
        begin = 0
        for part in parts:
            rows = slice(begin, begin + len(part.ids))
            assert isinstance(part.features, Tensor)
            features[rows, ends[column] : ends[column + 1]] = part.features
            begin = rows.stop
    held = np.arange(len(labels)) >= len(ids[0]) if len(ids) > 1 else held_out(ids[0], share)
    if streamed:
        return Gathered(SideBySide(streamed), labels, held, without)
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if features.nbytes < free / 2:  # the rest is for the heads
            features = features.to(device)
    return Gathered(features, labels, held, without)
