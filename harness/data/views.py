"""How a picture becomes what the backbone sees: crops with their geometry.

A view is a small frozen object that is called in a worker process with (picture, target, seed,
index) and gives one or more crops. It keeps pixels as uint8; they are normalised on the device,
and padding is laid round them after that, so that a padded pixel is exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Target
from harness.errors import BadPicture


@dataclass(frozen=True)
class Geometry:
    """Where a crop came from: stored picture -> resized -> cropped -> padded, all in pixels.

    ``stored`` and ``resized`` are (width, height); ``crop`` is (x, y, width, height) of the resized
    picture; ``pad`` is (left, top, right, bottom) round the crop.
    """

    stored: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    pad: tuple[int, int, int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of what the backbone is given."""
        left, top, right, bottom = self.pad
        return self.crop[3] + top + bottom, self.crop[2] + left + right


@dataclass(frozen=True)
class Crop:
    """Pixels ``[height, width, 3]`` uint8, not yet padded, and their geometry."""

    pixels: NDArray[np.uint8]
    geometry: Geometry


class View(Protocol):
    """A frozen, hashable, picklable function of (picture, target, seed, index)."""

    crops_per_picture: ClassVar[int]

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]: ...


@dataclass(frozen=True)
class WholePicture:
    """The picture at its stored size, padded right and bottom to whole patches (LOST's view).

    A picture of more than ``max_patches`` is refused: memory grows with the square of its patches.
    """

    patch: int
    max_patches: int
    crops_per_picture: ClassVar[int] = 1

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        height, width = picture.shape[:2]
        right, bottom = -width % self.patch, -height % self.patch
        patches = ((height + bottom) // self.patch) * ((width + right) // self.patch)
        if patches > self.max_patches:
            raise BadPicture(
                f"{width}x{height} pixels are {patches:,} patches of {self.patch}, more than the "
                f"protocol's max_patches {self.max_patches:,} (raise it with --set max_patches=N)"
            )
        size = width, height
        geometry = Geometry(size, size, (0, 0, width, height), (0, 0, right, bottom))
        return [Crop(picture, geometry)]
