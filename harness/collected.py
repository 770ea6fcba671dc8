"""Features of one role's pictures in the data set's order, whatever order they came in: kept in
memory, or noted where the feature store has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.aggregates import UNCLEAR
from harness.data.dataset import Dataset, places_by_id
from harness.errors import HarnessError
from harness.features.select import Selector
from harness.features.store import Feature
from harness.features.vectors import StoredVectors, Vectors, both, chosen
from harness.task import Batch

NOTED = 8
"""Bytes that are kept of a picture whose vector is not: its place in the data set."""


def check_finite(values: torch.Tensor, ids: Sequence[str], dataset: str) -> None:
    """Raises ``HarnessError`` where a feature of ``values [n, D]`` is not finite."""
    finite = torch.isfinite(values).all(1)
    if not finite.all():
        raise HarnessError(
            f"data set {dataset!r}: the feature of {ids[int((~finite).nonzero()[0])]} is not "
            "finite (half precision, or broken weights?); --set precision=fp32 may help"
        )


def several_classes(dataset: Dataset) -> bool:
    """Whether a picture may be of several classes: there are ``labels``, and no single one."""
    targets = [sample.target for sample in dataset.samples]
    return any(each.labels for each in targets) and all(each.label is None for each in targets)


class Examples(NamedTuple):
    """Pictures of one role that have the token, in the data set's order: ``features [n, D]``
    float32 on the CPU, or what reads them from the store, ``labels [n]`` int64; where pictures may
    be of several classes ``labels [n, classes]``: 1 for those that it shows, 0 for others, -1 for
    what is unclear."""

    ids: tuple[str, ...]
    features: torch.Tensor | Vectors
    labels: NDArray[np.int64]

    def of(self, which: NDArray[np.bool_]) -> Examples:
        """Those pictures alone, ``which [n]``."""
        places = np.flatnonzero(which)
        return Examples(
            tuple(self.ids[place] for place in places),
            chosen(self.features, places),
            self.labels[places],
        )

    def and_those_of(self, other: Examples) -> Examples:
        return Examples(
            self.ids + other.ids,
            both(self.features, other.features),
            np.concatenate([self.labels, other.labels]),
        )


def _labels(dataset: Dataset) -> NDArray[np.int64]:
    """``[n]``, or ``[n, classes]`` where pictures may be of several."""
    if not several_classes(dataset):
        return np.array([sample.target.label for sample in dataset.samples], np.int64)
    labels = np.zeros((len(dataset.samples), len(dataset.classes)), np.int64)
    for row, sample in zip(labels, dataset.samples, strict=True):
        if sample.target.labels is not None:
            row[list(sample.target.labels.present)] = 1
            row[list(sample.target.labels.unclear)] = UNCLEAR
    return labels


class Collector:
    """Keeps one selector's features of the pictures of one role; with ``noting`` only where the
    feature store has them.

    ``without`` counts pictures that have no such token (no outlier, say): they are left out.
    ``order`` are the data set's places by id.
    """

    def __init__(
        self,
        dataset: Dataset,
        selector: Selector,
        noting: bool = False,
        order: Mapping[str, int] | None = None,
    ) -> None:
        self._dataset, self._selector, self._noting = dataset, selector, noting
        self._order = places_by_id(dataset) if order is None else order
        self._parts: list[tuple[NDArray[np.int64], torch.Tensor]] = []
        self._feature: Feature | None = None
        self.without = 0

    def add(self, batch: Batch) -> None:
        """Raises ``HarnessError`` for a feature that is not finite, and for one that would have to
        be kept because the store cannot be written."""
        found = batch.selected[self._selector]
        values, there = found.values.cpu(), found.there.cpu()
        ids = [batch.ids[picture] for picture in batch.sample]
        check_finite(values, ids, self._dataset.name)
        self.without += int((~there).sum())
        places = np.array([self._order[each] for each in ids], np.int64)[there.numpy()]
        if self._noting:
            self._feature = self._stored(batch)
            self._parts.append((places, values[:0]))  # how wide they are
        else:
            self._parts.append((places, values[there]))

    def _stored(self, batch: Batch) -> Feature:
        feature = batch.stored.get(self._selector)
        if feature is None or not feature.writable:
            raise HarnessError(
                f"data set {self._dataset.name!r}: its vectors are more than --memory allows and "
                "have to be read from the feature store, which cannot be written; make room there "
                "(HARNESS_CACHE names another folder), or allow more with --memory"
            )
        return feature

    def _whole(self) -> tuple[NDArray[np.int64], torch.Tensor | Vectors]:
        places = np.concatenate([part for part, _ in self._parts])
        order = np.argsort(places, kind="stable")
        if self._feature is not None:
            return places[order], StoredVectors(
                self._feature, places[order], self._parts[0][1].shape[1]
            )
        features = torch.cat([values for _, values in self._parts])
        return places[order], features[torch.from_numpy(order)]

    def rows(self) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Places in the data set ``[n]``, rising, and the features there ``[n, D]``; crops of one
        picture in the order in which they came. Not of a collector that notes."""
        if not self._parts:
            return np.empty(0, np.int64), torch.empty(0, 0)
        places, features = self._whole()
        assert isinstance(features, torch.Tensor)
        return places, features

    def examples(self) -> Examples:
        """Raises ``HarnessError`` where no picture has the token."""
        if not any(len(places) for places, _ in self._parts):
            raise HarnessError(
                f"data set {self._dataset.name!r}: no picture has a token of the kind "
                f"{self._selector.token}"
            )
        places, features = self._whole()
        samples = self._dataset.samples
        ids = tuple(samples[place].id for place in places)
        return Examples(ids, features, _labels(self._dataset)[places])

    def state(self) -> object:
        return self._parts, self.without, self._feature

    def load(self, state: Any) -> None:
        parts, self.without, self._feature = state
        self._parts = list(parts)

    def merge(self, other: Collector) -> None:
        self._parts += other._parts
        self.without += other.without
        self._feature = self._feature or other._feature


def collectors(dataset: Dataset, selectors: Sequence[Selector], noting: bool) -> list[Collector]:
    """One for each selector, of the pictures of one role."""
    order = places_by_id(dataset)
    return [Collector(dataset, each, noting, order) for each in selectors]
