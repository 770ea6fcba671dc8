"""The data set ``scenes``: painted pictures with class, boxes, masks and depth known exactly.

No files: picture ``i`` of a split is painted when it is asked for, the same pixels on every
machine. A split is a run of one endless series of scenes, so that splits never share a picture and
a smaller one is the beginning of a larger.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import Boxes, Dataset, Dense, Role, Sample, Target
from harness.nano import captions
from harness.nano.kinds import KINDS
from harness.nano.layouts import CLASSES, Scene, describe
from harness.nano.render import Rendered, masks, render

VERSION = 1
"""Another number where the painter gives other pixels or labels: it is part of the fingerprint."""
SEED = 20230928
SPLITS: dict[Role, str] = {"train": "train", "select": "val", "test": "test"}
STARTS: dict[Role, int] = {"train": 0, "select": 1_000_000, "test": 2_000_000}
MOST = 1_000_000
"""Pictures in a split, at most: where the next split begins."""
SEMANTIC_CLASSES = ("background", *KINDS)
DIFFICULT = 500
"""An object of which less than 1/500 of the picture is to be seen is marked difficult."""


class ScenesDataset(Dataset):
    """The first ``count`` scenes of the split of ``role``, ``size`` = (width, height) in pixels.

    ``semantic_classes`` are the names that the values of ``Dense.semantic`` index.
    """

    def __init__(
        self, name: str, role: Role, count: int, size: tuple[int, int], captions: bool = False
    ) -> None:
        """``captions``: targets also have sentences about the picture."""
        self.name = name
        self.split = SPLITS[role]
        self.classes = CLASSES
        self.semantic_classes = SEMANTIC_CLASSES
        self.has_depth = True
        self.samples: _Samples = _Samples(role, range(count), size, captions)

    def picture(self, index: int) -> NDArray[np.uint8]:
        return self._rendered(index).picture.copy()

    def read(self, index: int) -> bytes:
        """Picture ``index`` as PNG: its pixels are the same everywhere, its bytes may not be."""
        buffer = io.BytesIO()
        Image.fromarray(self.picture(index)).save(buffer, format="PNG")
        return buffer.getvalue()

    def dense(self, index: int) -> Dense:
        scene, rendered = self._scene(index), self._rendered(index)
        labels = [0, *(SEMANTIC_CLASSES.index(thing.kind) for thing in scene.things)]
        return Dense(
            semantic=np.array(labels, dtype=np.uint8)[rendered.instances],
            instances=rendered.instances.copy(),
            depth=rendered.depth.copy(),
        )

    def sizes(self) -> set[tuple[int, int]]:
        """One, known without painting: a sample's boxes would have to be painted first."""
        return {self.samples.size}

    def fingerprint(self) -> str:
        """Of what decides every label: the base class's would paint every picture to learn them."""
        samples = self.samples
        line: list[object] = [
            VERSION,
            SEED,
            samples.role,
            list(samples.numbers),
            list(samples.size),
        ]
        if samples.captions:
            line.append(["captions", captions.VERSION])
        return hashlib.sha256(json.dumps(["scenes", *line]).encode()).hexdigest()

    def _scene(self, index: int) -> Scene:
        return _scene(self.samples.series(index))

    def _rendered(self, index: int) -> Rendered:
        return _rendered(self.samples.series(index), self.samples.size)


class _Samples(Sequence[Sample]):
    """Samples made when asked for."""

    def __init__(self, role: Role, numbers: range, size: tuple[int, int], captions: bool) -> None:
        self.role, self.numbers, self.size, self.captions = role, numbers, size, captions

    def series(self, index: int) -> int:
        """The place of a picture in the endless series of scenes."""
        return STARTS[self.role] + self.numbers[index]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> _Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | _Samples:
        if isinstance(index, slice):
            return _Samples(self.role, self.numbers[index], self.size, self.captions)
        identity = f"{SPLITS[self.role]}-{self.numbers[index]:06d}"
        target = _target(self.series(index), self.size, self.captions)
        return Sample(identity, self.size, target)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


@lru_cache(maxsize=64)
def _scene(number: int) -> Scene:
    return describe(SEED, number)


@lru_cache(maxsize=16)
def _rendered(number: int, size: tuple[int, int]) -> Rendered:
    """Kept for a moment: a picture, its boxes and its masks are asked for one after the other."""
    return render(_scene(number), *size)


@lru_cache(maxsize=16)
def _masks(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return masks(_scene(number), *size)


class _Painted(Target):
    """What is known of a scene, found out when it is asked for: its class takes 0.2 ms, its boxes
    and captions the painting of its masks (3 ms and more), and who walks over all samples mostly
    wants neither."""

    number: int
    size: tuple[int, int]
    captioned: bool

    @classmethod
    def of(cls, number: int, size: tuple[int, int], captioned: bool) -> _Painted:
        found = cls.__new__(cls)  # __init__ would say that all of it is known: to be None
        vars(found).update(number=number, size=size, captioned=captioned)
        return found

    @cached_property
    def label(self) -> int:
        return _scene(self.number).label

    @cached_property
    def boxes(self) -> Boxes:
        return _boxes(_scene(self.number), _masks(self.number, self.size))

    @cached_property
    def captions(self) -> tuple[str, ...] | None:
        if not self.captioned:
            return None
        return captions.captions(_scene(self.number), _masks(self.number, self.size))


_target = lru_cache(maxsize=32_768)(_Painted.of)
"""More than the 10,000 pictures that ``scenes`` has: of a smaller cache, a second walk over all of
them would find nothing."""


def _boxes(scene: Scene, instances: NDArray[np.uint8]) -> Boxes:
    """The tight bounds of what is to be seen of each object; one that is hidden has none."""
    height, width = instances.shape
    xyxy, kinds, difficult, truncated = [], [], [], []
    for number, thing in enumerate(scene.things, start=1):
        seen = instances == number
        rows, columns = np.nonzero(seen.any(axis=1))[0], np.nonzero(seen.any(axis=0))[0]
        if not len(rows):
            continue
        x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        xyxy.append((x0, y0, x1, y1))
        kinds.append(thing.kind)
        difficult.append(int(np.count_nonzero(seen)) * DIFFICULT < width * height)
        truncated.append(x0 == 0 or y0 == 0 or x1 == width or y1 == height)
    return Boxes(
        xyxy=np.array(xyxy, dtype=np.float64).reshape(-1, 4),
        classes=tuple(kinds),
        crowd=np.zeros(len(kinds), dtype=np.bool_),
        difficult=np.array(difficult, dtype=np.bool_),
        truncated=np.array(truncated, dtype=np.bool_),
    )
