"""How pictures are seen for linear segmentation: random crops to train, sliding windows to test.

As mmsegmentation's pipelines, which DINOv2 (Oquab et al., 2023, section 7.4) and DINOv3 train and
test on; between two values that they leave open, fields decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import IGNORED, Dense, Target
from harness.data.joint import Interpolation, Seen, centred, scaled_size, whole_patches
from harness.data.photometric import PhotometricDistortion
from harness.data.views import Crop, Geometry
from harness.errors import BadPicture
from harness.nano.draw import Draw

_COLOURS = PhotometricDistortion()
_TRIES = 10  # mmseg's RandomCrop, before it takes what it has


@dataclass(frozen=True)
class SegmentationTraining:
    """A random part of ``crop`` x ``crop`` pixels of the picture at a random scale.

    The shorter side becomes ``short`` times a number drawn from ``scale`` (and the longer at most
    ``longest`` times it); a part is drawn again, up to ten times, where one class has
    ``most_of_one`` of its labelled pixels or more; it is flipped half the time, its colours are
    distorted. What is missing of a small picture is padded right and below, and all that centred
    to whole patches, with zeros after normalisation and with labels that say nothing.
    """

    patch: int
    crop: int = 512
    short: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    longest: int | None = None
    most_of_one: float = 0.75
    flip: float = 0.5
    colours: PhotometricDistortion | None = _COLOURS
    interpolation: Interpolation = "bilinear"
    antialias: bool = False
    crops_per_picture: ClassVar[int] = 1
    joint: ClassVar[bool] = True

    @property
    def padded(self) -> tuple[int, int]:
        return whole_patches(self.crop, self.crop, self.patch)

    def __call__(
        self,
        picture: NDArray[np.uint8],
        target: Target,
        seed: int,
        index: int,
        dense: Dense | None = None,
    ) -> list[Crop]:
        draw, whole = Draw(seed, index), Seen(picture, dense)
        ratio, longest = draw.uniform(*self.scale), self.longest
        size = scaled_size(
            whole.size, int(self.short * ratio), None if longest is None else int(longest * ratio)
        )
        resized = whole.resized(size, self.interpolation, self.antialias)
        x, y = self._place(draw, resized)
        part = resized.cut(x, y, self.crop, self.crop)
        mirrored = draw.chance(self.flip)
        if mirrored:
            part = part.mirrored()
        if self.colours is not None:
            part = Seen(self.colours(part.pixels, draw), part.dense)
        width, height = part.size
        left, top, right, bottom = centred(self.crop, self.crop, self.patch)
        pad = left, top, right + self.crop - width, bottom + self.crop - height
        return [part.crop(Geometry(whole.size, size, (x, y, width, height), pad, mirrored))]

    def _place(self, draw: Draw, resized: Seen) -> tuple[int, int]:
        """The left upper corner of the part to take."""
        width, height = resized.size

        def drawn() -> tuple[int, int]:
            top = draw.integer(0, max(height - self.crop, 0))
            return draw.integer(0, max(width - self.crop, 0)), top

        x, y = drawn()
        if resized.dense is None or resized.dense.semantic is None or self.most_of_one >= 1:
            return x, y
        for _ in range(_TRIES):
            part = resized.dense.semantic[y : y + self.crop, x : x + self.crop]
            counts = np.bincount(part.ravel(), minlength=IGNORED + 1)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.most_of_one:
                break
            x, y = drawn()
        return x, y


@dataclass(frozen=True)
class SlidingWindows:
    """Windows of ``window`` x ``window`` pixels, ``stride`` apart, over the picture resized to a
    shorter side of ``short``; the last of a row or column ends with the picture.

    Together they cover every pixel; a picture no larger than a window is seen whole. All of that at
    each of ``scales``, and where ``flip`` says so again with the picture flipped. Every window is
    padded centred to whole patches. ``harness/features/windows.py`` puts predictions together.
    """

    patch: int
    short: int = 512
    window: int = 512
    stride: int = 341
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    longest: int | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = False
    crops_per_picture: ClassVar[int] = 0
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window:
            raise ValueError(f"windows of {self.window} pixels, {self.stride} apart, leave gaps")

    def crops_of(self, size: tuple[int, int]) -> int:
        """None of a picture that is refused, or whose size nobody tells."""
        if not all(size):
            return 0
        try:
            places = [self._places(self._size(size, scale)) for scale in self.scales]
        except BadPicture:
            return 0
        return sum(map(len, places)) * (1 + self.flip)

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        whole, crops = Seen(picture), []
        for scale in self.scales:
            size = self._size(whole.size, scale)
            resized = whole.resized(size, self.interpolation, self.antialias)
            for mirrored in (False, True)[: 1 + self.flip]:
                for x, y, width, height in self._places(size):
                    # Windows slide over the flipped picture: the first stands at its left.
                    left = size[0] - x - width if mirrored else x
                    part = resized.cut(left, y, width, height)
                    pad = centred(width, height, self.patch)
                    place = left, y, width, height
                    geometry = Geometry(whole.size, size, place, pad, mirrored)
                    crops.append((part.mirrored() if mirrored else part).crop(geometry))
        return crops

    def _size(self, stored: tuple[int, int], scale: float) -> tuple[int, int]:
        longest = None if self.longest is None else int(self.longest * scale)
        return scaled_size(stored, int(self.short * scale), longest)

    def _places(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """x, y, width and height of every window, row by row."""
        across, down = (starts(side, self.window, self.stride) for side in size)
        wide, high = (min(side, self.window) for side in size)
        return [(x, y, wide, high) for y in down for x in across]


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, in pixels (mmseg's ``slide_inference``)."""
    last = max(side - window, 0)
    return [min(stride * number, last) for number in range(-(-last // stride) + 1)]
