"""A few painted pictures with every kind of label, in several sizes, for checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dataset, Dense, Labels, Query, Role, Sample, Target
from harness.errors import BadPicture
from harness.nano.layouts import CLASSES
from harness.nano.scenes import SEMANTIC_CLASSES, SPLITS, ScenesDataset

KINDS = SEMANTIC_CLASSES[1:]
SIZES = (64, 64), (80, 64), (64, 80)
"""(width, height), one picture after the other."""
COUNTS: Mapping[Role, int] = {"train": 48, "test": 12}
_MARGIN = 4  # pixels round the region that a query asks about

Labelling = Literal["a class", "several classes", "queries", "captions", "notes"]
LABELLINGS: tuple[Labelling, ...] = ("a class", "several classes", "queries", "captions", "notes")


class Painted(Dataset):
    """The first ``count`` scenes of a role, with boxes, objects, depth and a class for every pixel,
    and of each picture ``a class``, ``several classes`` (the kinds of objects that it shows), two
    ``captions``, another class as ``notes`` on it, or, where there is a ``gallery``, what a query
    of it asks for."""

    def __init__(
        self, role: Role, count: int, labelling: Labelling, gallery: Dataset | None = None
    ) -> None:
        self.name, self.split = "painted", SPLITS[role]
        self._sources = [ScenesDataset("painted", role, count, size) for size in SIZES]
        self._painted: dict[int, NDArray[np.uint8]] = {}
        scenes = [self._sources[place % len(SIZES)].samples[place] for place in range(count)]
        self.classes = KINDS if labelling == "several classes" else self._sources[0].classes
        self.semantic_classes, self.has_depth = SEMANTIC_CLASSES, True
        self.samples: Sequence[Sample] = [
            replace(scene, id=f"{self.split}-{place:03d}", target=_labelled(scene, labelling))
            for place, scene in enumerate(scenes)
        ]
        if gallery is not None:
            self.samples = [
                replace(each, target=replace(each.target, query=_query(each, gallery)))
                for each in self.samples
            ]

    def read(self, index: int) -> bytes:
        return self._source(index).read(index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Painted once: every check reads it again."""
        if index not in self._painted:
            self._painted[index] = self._source(index).picture(index)
        return self._painted[index].copy()

    def dense(self, index: int) -> Dense:
        return self._source(index).dense(index)

    def _source(self, index: int) -> ScenesDataset:
        return self._sources[index % len(SIZES)]


@cache
def painted(labelling: Labelling) -> Mapping[Role, Dataset]:
    """Pictures to train and to test."""
    train = Painted("train", COUNTS["train"], labelling)
    gallery = train if labelling == "queries" else None
    return {"train": train, "test": Painted("test", COUNTS["test"], labelling, gallery)}


def _labelled(scene: Sample, labelling: Labelling) -> Target:
    label, kinds = scene.target.label, len(CLASSES)
    assert label is not None
    if labelling == "captions":
        said = tuple(f"{words} {CLASSES[label]}" for words in ("a view of", "here is"))
        return replace(scene.target, captions=said)
    if labelling == "notes":
        return replace(scene.target, written=(label + 1) % kinds)
    if labelling != "several classes":
        return scene.target
    assert scene.target.boxes is not None
    shown = {KINDS.index(kind) for kind in scene.target.boxes.classes}
    return replace(scene.target, label=None, labels=Labels(tuple(sorted(shown))))


def _query(sample: Sample, gallery: Dataset) -> Query:
    """Of the gallery's pictures of the same class every third is easy, hard, or junk."""
    label = sample.target.label
    alike = [place for place, each in enumerate(gallery.samples) if each.target.label == label]
    width, height = sample.size
    low = float(_MARGIN)
    region = low, low, width - low, height - low
    easy, hard, junk = (tuple(alike[first::3]) for first in range(3))
    return Query(region, easy, hard, junk)


class Changed(Dataset):
    """Another data set with other ``samples``, or with one picture, ``bad``, that is damaged."""

    def __init__(
        self, whole: Dataset, samples: Sequence[Sample] | None = None, bad: int | None = None
    ) -> None:
        self.name, self.split, self.classes = whole.name, whole.split, whole.classes
        self.semantic_classes, self.has_depth = whole.semantic_classes, whole.has_depth
        self.samples = whole.samples if samples is None else samples
        self._whole, self._bad = whole, bad

    def read(self, index: int) -> bytes:
        self._refuse(index)
        return self._whole.read(index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        self._refuse(index)
        return self._whole.picture(index)

    def dense(self, index: int) -> Dense:
        return self._whole.dense(index)

    def dense_mark(self, index: int) -> str | None:
        return self._whole.dense_mark(index)

    def _refuse(self, index: int) -> None:
        if index == self._bad:
            raise BadPicture(f"{self.samples[index].id}: damaged for the check")


class Unlabelled(Changed):
    """Another data set's pictures, of which nothing is known."""

    def __init__(self, whole: Dataset) -> None:
        super().__init__(whole, [replace(each, target=Target()) for each in whole.samples])
        self.classes, self.semantic_classes, self.has_depth = (), (), False

    def dense(self, index: int) -> Dense:
        return Dense()

    def dense_mark(self, index: int) -> str | None:
        return None
