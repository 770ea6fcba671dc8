"""Views that keep the shape of a picture and bound its size: how pictures are seen for retrieval.

As DINO runs them (Caron et al., 2021; facebookresearch/dino, eval_image_retrieval.py and utils.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Target
from harness.data.views import Crop, Geometry
from harness.errors import BadPicture

SCALES = (1.0, 1 / math.sqrt(2), 0.5)


@dataclass(frozen=True)
class WithinSide:
    """The picture no larger than ``longest`` pixels a side, in whole patches.

    PIL's ``thumbnail``: the shape is kept, and nothing is enlarged. What is less than a patch at
    the right and at the bottom is cut off, as DINO's patch embedding does by its stride. With
    ``region``, of a picture with a query only the part that is asked about is taken, before all
    else, its edges rounded to whole pixels (PIL's ``crop``) and no further than the picture goes.
    """

    patch: int
    longest: int
    interpolation: str = "lanczos"
    region: bool = False
    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = False

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        return [self._whole_patches(*self._within(picture, target))]

    def _within(
        self, picture: NDArray[np.uint8], target: Target
    ) -> tuple[NDArray[np.uint8], Geometry]:
        """Pixels that may end in a part of a patch, and where they came from."""
        from PIL import Image

        height, width = picture.shape[:2]
        x0, y0, x1, y1 = 0, 0, width, height
        if self.region and target.query is not None and target.query.region is not None:
            left, top, right, bottom = (round(edge) for edge in target.query.region)
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
            if x0 >= x1 or y0 >= y1:
                raise BadPicture(
                    f"{width}x{height} pixels, of which the query asks about {left}, {top} to "
                    f"{right}, {bottom}: nothing of that is in the picture"
                )
        image = Image.fromarray(picture).crop((x0, y0, x1, y1))
        image.thumbnail((self.longest, self.longest), Image.Resampling[self.interpolation.upper()])
        pixels = np.array(image)
        wider, higher = image.width / (x1 - x0), image.height / (y1 - y0)
        geometry = Geometry(
            (width, height),
            (round(width * wider), round(height * higher)),
            (round(x0 * wider), round(y0 * higher), image.width, image.height),
            (0, 0, 0, 0),
        )
        return pixels, geometry

    def _whole_patches(self, pixels: NDArray[np.uint8], geometry: Geometry) -> Crop:
        height, width = pixels.shape[:2]
        high, wide = height // self.patch * self.patch, width // self.patch * self.patch
        if not high or not wide:
            stored = "x".join(map(str, geometry.stored))
            raise BadPicture(
                f"{stored} pixels, seen as {width}x{height}: less than a patch of {self.patch}"
            )
        left, top = geometry.crop[:2]
        return Crop(
            pixels[:high, :wide],
            Geometry(geometry.stored, geometry.resized, (left, top, wide, high), geometry.pad),
        )


@dataclass(frozen=True)
class WithinSideThrice(WithinSide):
    """What ``WithinSide`` gives, and the same at 1/√2 and at 1/2 of that size.

    Scaled as by DINO, bilinearly without antialiasing, but here to whole levels of 0 to 255, which
    is at most half a level away.
    """

    crops_per_picture: ClassVar[int] = len(SCALES)

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        pixels, geometry = self._within(picture, target)
        return [self._whole_patches(*_scaled(pixels, geometry, scale)) for scale in SCALES]


def _scaled(
    pixels: NDArray[np.uint8], geometry: Geometry, scale: float
) -> tuple[NDArray[np.uint8], Geometry]:
    if scale == 1:
        return pixels, geometry
    import torch
    from torch.nn.functional import interpolate

    if min(pixels.shape[:2]) * scale < 1:
        return pixels[:0, :0], geometry
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    values = interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
    smaller = values[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    left, top = (round(edge * scale) for edge in geometry.crop[:2])
    width, height = (round(side * scale) for side in geometry.resized)
    high, wide = smaller.shape[:2]
    return smaller, Geometry(
        geometry.stored, (width, height), (left, top, wide, high), geometry.pad
    )
