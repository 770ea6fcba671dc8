"""How a picture becomes what the backbone sees: crops with their geometry.

A view is a small frozen object that is called in a worker process with (picture, target, seed,
index) and gives one or more crops. It keeps pixels as uint8; they are normalised on the device,
and padding is laid round them after that, so that a padded pixel is exactly zero. A joint view
(``harness/data/joint.py``) takes the labels of the picture's pixels along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import MAX_PIXELS, Dense, Target
from harness.errors import BadPicture
from harness.nano.draw import Draw

_TRIES = 10  # torchvision's RandomResizedCrop, before it takes what fits


@dataclass(frozen=True)
class Geometry:
    """Where a crop came from: stored picture -> resized -> cropped -> padded, all in pixels.

    ``stored`` and ``resized`` are (width, height); ``crop`` is (x, y, width, height) of the resized
    picture; ``pad`` is (left, top, right, bottom) round the crop. ``mirrored``: between the two the
    crop was flipped left to right.
    """

    stored: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    pad: tuple[int, int, int, int]
    mirrored: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of what the backbone is given."""
        left, top, right, bottom = self.pad
        return self.crop[3] + top + bottom, self.crop[2] + left + right


@dataclass(frozen=True)
class Crop:
    """Pixels ``[height, width, 3]`` uint8, not yet padded, and their geometry. A joint view adds
    the crop's labels ``[H, W]``, padded as the geometry says."""

    pixels: NDArray[np.uint8]
    geometry: Geometry
    dense: Dense | None = None


class View(Protocol):
    """A frozen, hashable, picklable function of (picture, target, seed, index).

    A picture that is read again comes with another ``seed``, whatever the number of workers.
    A view that says ``seeded = False`` gives the same crops whatever the seed. One whose crops are
    all of one size says it as ``padded`` (height, width). Where ``crops_per_picture`` is 0,
    ``crops_of(size)`` tells the number of crops of a picture of that stored (width, height).
    """

    crops_per_picture: ClassVar[int]

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]: ...


def crops_of(view: View, size: tuple[int, int]) -> int:
    """How many crops the view gives of a picture of that stored (width, height)."""
    if view.crops_per_picture:
        return view.crops_per_picture
    counted: int = getattr(view, "crops_of")(size)  # noqa: B009 (no part of the protocol)
    return counted


@dataclass(frozen=True)
class WholePicture:
    """The picture at its stored size, padded right and bottom to whole patches (LOST's view).

    A picture of more than ``max_patches`` is refused: memory grows with the square of its patches.
    """

    patch: int
    max_patches: int
    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = False

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


@dataclass(frozen=True)
class CentreCrop:
    """The shorter side resized, and the middle cut out: how pictures are classified.

    torchvision's ``Resize`` and ``CenterCrop`` on a PIL picture, as DINOv2's evaluations run them
    (dinov2/data/transforms.py). Both in pixels; ``crop`` is a multiple of the patch.
    """

    resize: int
    crop: int
    interpolation: str = "bicubic"
    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = False

    @property
    def padded(self) -> tuple[int, int]:
        return self.crop, self.crop

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        height, width = picture.shape[:2]
        if self.resize**2 * max(height, width) / min(height, width) > MAX_PIXELS:
            raise BadPicture(
                f"{width}x{height} pixels: resized to a shorter side of {self.resize} it would "
                f"have more than {MAX_PIXELS:,} pixels"
            )
        image = F.resize(
            Image.fromarray(picture), [self.resize], InterpolationMode(self.interpolation)
        )
        pixels = np.array(F.center_crop(image, [self.crop, self.crop]))
        left, top = (round((side - self.crop) / 2) for side in image.size)
        geometry = Geometry(
            (width, height), image.size, (left, top, self.crop, self.crop), (0, 0, 0, 0)
        )
        return [Crop(pixels, geometry)]


@dataclass(frozen=True)
class RandomResizedCropFlip:
    """A random part of the picture, resized to ``size`` x ``size``, and flipped half the time: how
    DINOv2 trains its linear classifier (dinov2/data/transforms.py).

    torchvision's ``RandomResizedCrop`` (at its default ``scale`` and ``ratio``, width over height)
    and ``RandomHorizontalFlip`` on a PIL picture, drawn from (seed, index) alone. The geometry is
    rounded to whole pixels and does not tell the flip: for labels of a whole picture.
    """

    size: int
    interpolation: str = "bicubic"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crops_per_picture: ClassVar[int] = 1

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        height, width = picture.shape[:2]
        draw = Draw(seed, index)
        top, left, high, wide = self.part(draw, height, width)
        image = F.resized_crop(
            Image.fromarray(picture),
            top,
            left,
            high,
            wide,
            [self.size, self.size],
            InterpolationMode(self.interpolation),
        )
        if draw.chance(self.flip):
            image = F.hflip(image)
        across, down = self.size / wide, self.size / high
        geometry = Geometry(
            (width, height),
            (round(width * across), round(height * down)),
            (round(left * across), round(top * down), self.size, self.size),
            (0, 0, 0, 0),
        )
        return [Crop(np.array(image), geometry)]

    def part(self, draw: Draw, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of the part of a picture of that size, all in pixels."""
        lowest, highest = self.ratio
        for _ in range(_TRIES):
            area = height * width * draw.uniform(*self.scale)
            aspect = math.exp(draw.uniform(math.log(lowest), math.log(highest)))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                top = draw.integer(0, height - high)
                return top, draw.integer(0, width - wide), high, wide
        wide = min(width, round(height * highest))
        high = min(height, round(width / lowest))
        return (height - high) // 2, (width - wide) // 2, high, wide
