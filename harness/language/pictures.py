"""How a picture is seen by a tower that was trained with texts, and which token stands for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision
from harness.classification import FLOAT
from harness.data.dataset import Target
from harness.data.views import CentreCrop, Crop, Geometry
from harness.features.select import Selector, applicable, width
from harness.task import NotApplicable, Protocol, TokenRequest


class PictureProtocol(Protocol):
    """The fields that say how pictures are seen: by default as the model's release does."""

    size: StrictInt | None = Field(
        None, ge=1, description="side in pixels; None: the one that the model was trained at"
    )
    fit: Literal["released", "crop", "squash"] = Field(
        "released",
        description="crop: the shorter side resized and the middle cut out; squash: the whole "
        "picture, its shape changed; released: squash for models that pool by attention (SigLIP, "
        "PE), crop for others",
    )
    interpolation: Literal["released", "bicubic", "bilinear"] = Field(
        "released", description="released: the model's own (`harness describe`)"
    )
    precision: Precision = "fp16"


@dataclass(frozen=True)
class Squashed:
    """The whole picture as ``size`` x ``size`` pixels: torchvision's ``Resize`` on a PIL picture,
    as open_clip prepares pictures for SigLIP (``resize_mode: squash``)."""

    size: int
    interpolation: str = "bicubic"
    crops_per_picture: ClassVar[int] = 1
    seeded: ClassVar[bool] = False

    @property
    def padded(self) -> tuple[int, int]:
        return self.size, self.size

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        height, width = picture.shape[:2]
        sides = [self.size, self.size]
        image = F.resize(Image.fromarray(picture), sides, InterpolationMode(self.interpolation))
        whole = (0, 0, self.size, self.size)
        geometry = Geometry((width, height), (self.size, self.size), whole, (0, 0, 0, 0))
        return [Crop(np.array(image), geometry)]


def view_of(protocol: PictureProtocol, architecture: Architecture) -> CentreCrop | Squashed:
    """How pictures are seen by this model. Raises ``NotApplicable`` where the patch does not divide
    the size."""
    size, patch = _size(protocol, architecture), architecture.patch
    if size % patch:
        raise NotApplicable(
            f"its patch of {patch} pixels does not divide the size of {size} (--set "
            f"size={size // patch * patch or patch})"
        )
    how = protocol.interpolation
    interpolation = architecture.interpolation if how == "released" else how
    if _fit(protocol, architecture) == "squash":
        return Squashed(size, interpolation)
    return CentreCrop(size, size, interpolation)


def selector_of(architecture: Architecture) -> Selector:
    """The token that the projection was trained on: the released global feature."""
    selector = Selector("global", architecture.depth - 1, True)
    applicable(selector, architecture)
    return selector


def request_of(protocol: PictureProtocol, architecture: Architecture) -> TokenRequest:
    """A request for that token of every picture, each read once."""
    selector = selector_of(architecture)
    return TokenRequest(
        view=view_of(protocol, architecture),
        select=(selector,),
        precision=protocol.precision,
        bytes_per_picture=FLOAT * width(selector, architecture),
    )


def resolved(protocol: PictureProtocol, architecture: Architecture) -> dict[str, object]:
    """What the rules came to for this model, for its record."""
    view = view_of(protocol, architecture)
    return {
        "layer": architecture.depth - 1,
        "size": view.padded[0],
        "fit": _fit(protocol, architecture),
        "interpolation": view.interpolation,
    }


def _size(protocol: PictureProtocol, architecture: Architecture) -> int:
    if protocol.size is not None:
        return protocol.size
    height, across = architecture.default_size
    if height != across:
        raise NotApplicable(f"it was trained at {across}x{height} pixels: --set size=… chooses one")
    return height


def _fit(protocol: PictureProtocol, architecture: Architecture) -> str:
    if protocol.fit != "released":
        return protocol.fit
    return "squash" if architecture.global_feature == "attention pooling" else "crop"
