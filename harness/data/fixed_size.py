"""Pictures and their labels at one size: the view whose patch tokens are stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import MAX_PIXELS, Dense, Target
from harness.data.joint import Interpolation, Seen, centred, whole_patches
from harness.data.views import Crop, Geometry
from harness.errors import BadPicture


@dataclass(frozen=True)
class FixedSize:
    """Every picture as ``size`` (height, width) pixels, padded centred to whole patches.

    ``whole``: all of the picture, its shape changed where it must be. ``middle``: the picture
    resized until it covers that size, and the middle of it.
    """

    patch: int
    size: tuple[int, int]
    takes: Literal["whole", "middle"] = "whole"
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    @property
    def padded(self) -> tuple[int, int]:
        return whole_patches(self.size[1], self.size[0], self.patch)

    def __call__(
        self,
        picture: NDArray[np.uint8],
        target: Target,
        seed: int,
        index: int,
        dense: Dense | None = None,
    ) -> list[Crop]:
        seen, (high, wide) = Seen(picture, dense), self.size
        size = self._resized(seen.size)
        resized = seen.resized(size, self.interpolation, self.antialias)
        place = (size[0] - wide) // 2, (size[1] - high) // 2, wide, high
        pad = centred(wide, high, self.patch)
        return [resized.cut(*place).crop(Geometry(seen.size, size, place, pad))]

    def _resized(self, stored: tuple[int, int]) -> tuple[int, int]:
        high, wide = self.size
        if self.takes == "whole":
            return wide, high
        factor = max(wide / stored[0], high / stored[1])
        width, height = max(wide, round(stored[0] * factor)), max(high, round(stored[1] * factor))
        if width * height > MAX_PIXELS:
            raise BadPicture(
                f"{stored[0]}x{stored[1]} pixels: resized to cover {wide}x{high} it would have "
                f"more than {MAX_PIXELS:,} pixels"
            )
        return width, height
