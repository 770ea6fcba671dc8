"""How pictures are seen for linear depth: random crops to train, the whole picture to test.

As the Monocular-Depth-Estimation-Toolbox does, on which DINOv2 (Oquab et al., 2023, section 7.4)
trains and tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dense, Target
from harness.data.joint import Seen, centred, whole_patches
from harness.data.photometric import GammaColour
from harness.data.views import Crop, Geometry
from harness.errors import BadPicture
from harness.nano.draw import Draw

Cut = Literal["nyu", "kitti"]
"""``nyu``: the toolbox's ``NYUCrop``, which leaves out the white frame; ``kitti``: its ``KBCrop``,
the lowest 352 rows and the middle 1,216 columns."""
_NYU = 43, 45, 565, 427  # x, y, width, height: columns 43 to 607, rows 45 to 471
_KITTI = 1216, 352
_COLOURS = GammaColour()


def cut_of(size: tuple[int, int], cut: Cut | None) -> tuple[int, int, int, int]:
    """x, y, width, height of the part of a picture of that (width, height).

    Raises ``BadPicture`` where the picture is smaller than that.
    """
    width, height = size
    if cut is None:
        return 0, 0, width, height
    x, y, wide, high = _NYU
    if cut == "kitti":
        wide, high = _KITTI
        x, y = (width - wide) // 2, height - high
    if min(x, y) < 0 or x + wide > width or y + high > height:
        raise BadPicture(f"{width}x{height} pixels: too small for the crop of {cut}")
    return x, y, wide, high


@dataclass(frozen=True)
class DepthTraining:
    """A random part of ``crop`` (height, width) of the picture's ``cut``, turned by up to
    ``degrees`` either way ``rotate`` of the time, flipped half the time, its colours changed.

    What is missing of a small picture is padded right and below, and all that centred to whole
    patches; there the depth is not known. The geometry does not tell the turn.
    """

    patch: int
    crop: tuple[int, int] = (416, 544)
    cut: Cut | None = "nyu"
    degrees: float = 2.5
    rotate: float = 0.5
    flip: float = 0.5
    colours: GammaColour | None = _COLOURS
    crops_per_picture: ClassVar[int] = 1
    joint: ClassVar[bool] = True

    @property
    def padded(self) -> tuple[int, int]:
        return whole_patches(self.crop[1], self.crop[0], self.patch)

    def __call__(
        self,
        picture: NDArray[np.uint8],
        target: Target,
        seed: int,
        index: int,
        dense: Dense | None = None,
    ) -> list[Crop]:
        draw, whole = Draw(seed, index), Seen(picture, dense)
        from_x, from_y, width, height = cut_of(whole.size, self.cut)
        part = whole.cut(from_x, from_y, width, height)
        if draw.chance(self.rotate):
            part = part.rotated(draw.uniform(-self.degrees, self.degrees))
        mirrored = draw.chance(self.flip)
        high, wide = self.crop
        y, x = draw.integer(0, max(height - high, 0)), draw.integer(0, max(width - wide, 0))
        high, wide = min(high, height), min(wide, width)
        part = part.cut(x, y, wide, high)
        if mirrored:
            part = part.mirrored()
        if self.colours is not None:
            part = Seen(self.colours(part.pixels, draw), part.dense)
        left, top, right, bottom = centred(self.crop[1], self.crop[0], self.patch)
        pad = left, top, right + self.crop[1] - wide, bottom + self.crop[0] - high
        place = from_x + x, from_y + y, wide, high
        return [part.crop(Geometry(whole.size, whole.size, place, pad, mirrored))]


@dataclass(frozen=True)
class WholeCentred:
    """The picture, or its ``cut``, at its stored size, padded centred to whole patches; with
    ``flip`` a second time, flipped, so that predictions can be averaged.

    A picture of more than ``max_patches`` is refused: memory grows with the square of its patches.
    """

    patch: int
    max_patches: int
    flip: bool = True
    cut: Cut | None = None
    crops_per_picture: ClassVar[int] = 0
    seeded: ClassVar[bool] = False

    def crops_of(self, size: tuple[int, int]) -> int:
        return 1 + self.flip

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        whole = Seen(picture)
        place = cut_of(whole.size, self.cut)
        part, (width, height) = whole.cut(*place), place[2:]
        patches = -(-width // self.patch) * -(-height // self.patch)
        if patches > self.max_patches:
            raise BadPicture(
                f"{width}x{height} pixels are {patches:,} patches of {self.patch}, more than the "
                f"protocol's max_patches {self.max_patches:,} (raise it with --set max_patches=N)"
            )
        pad = centred(width, height, self.patch)
        crops = [part.crop(Geometry(whole.size, whole.size, place, pad))]
        if self.flip:
            crops.append(part.mirrored().crop(Geometry(whole.size, whole.size, place, pad, True)))
        return crops
