"""Pictures and the labels of their pixels, resized, cut, flipped and turned together.

A joint view is a view that also takes the labels, and gives every crop its own. Pictures are
resized bilinearly or bicubically, labels by taking the nearest: both on the grid that torch's
``interpolate`` defines, which is OpenCV's too, and so that of the published pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import IGNORED, MAX_PIXELS, Dataset, Dense, Target
from harness.data.views import Crop, Geometry, View
from harness.errors import BadLabels, BadPicture

Labelled = Literal["crops", "pictures"]
"""Which labels a reading wants: those of each crop, or those of the picture at its stored size."""
Interpolation = Literal["bilinear", "bicubic"]


class JointView(View, Protocol):
    """A view that cuts labels beside the picture, where it is given any; ``joint`` is True."""

    joint: ClassVar[bool]

    def __call__(
        self,
        picture: NDArray[np.uint8],
        target: Target,
        seed: int,
        index: int,
        dense: Dense | None = None,
    ) -> list[Crop]: ...


def look(
    dataset: Dataset, index: int, view: View, labelled: Labelled | None, seed: int
) -> tuple[list[Crop], Dense | None]:
    """The crops of picture ``index``, and its labels where ``pictures`` are wanted.

    Raises ``BadPicture`` where the picture cannot be used, ``BadLabels`` where its labels cannot.
    """
    picture, target = dataset.picture(index), dataset.samples[index].target
    if labelled is None:
        return view(picture, target, seed, index), None
    dense = _labels(dataset, index, picture)
    if labelled == "pictures":
        return view(picture, target, seed, index), dense
    joint: Any = view
    return joint(picture, target, seed, index, dense), None


def _labels(dataset: Dataset, index: int, picture: NDArray[np.uint8]) -> Dense:
    try:
        dense = dataset.dense(index)
    except BadPicture as error:
        raise BadLabels(str(error)) from None
    height, width = picture.shape[:2]
    kinds = {"semantic": dense.semantic, "instances": dense.instances, "depth": dense.depth}
    there = {kind: labels for kind, labels in kinds.items() if labels is not None}
    if not there:
        raise BadLabels(f"{dataset.where(index)}: its pixels have no labels")
    for kind, labels in there.items():
        if labels.shape != (height, width):
            found = "x".join(map(str, labels.shape[::-1]))
            raise BadLabels(
                f"{dataset.where(index)}: {kind} labels of {found} pixels for a picture of "
                f"{width}x{height}"
            )
    return dense


def each(dense: Dense, change: Callable[[NDArray[Any], float], NDArray[Any]]) -> Dense:
    """``change(labels, nothing)`` of every kind there is; ``nothing`` is the label that says so."""
    return Dense(
        semantic=None if dense.semantic is None else change(dense.semantic, IGNORED),
        instances=None if dense.instances is None else change(dense.instances, 0),
        depth=None if dense.depth is None else change(dense.depth, 0),
    )


def centred(width: int, height: int, patch: int) -> tuple[int, int, int, int]:
    """The pad (left, top, right, bottom) that makes whole patches; an odd pixel goes right and
    below, as in DINOv2's ``CenterPadding`` (notebooks/semantic_segmentation.ipynb)."""
    across, down = -width % patch, -height % patch
    return across // 2, down // 2, across - across // 2, down - down // 2


def whole_patches(width: int, height: int, patch: int) -> tuple[int, int]:
    """The (height, width) that ``centred`` pads to."""
    return height + -height % patch, width + -width % patch


def scaled_size(stored: tuple[int, int], short: int, longest: int | None = None) -> tuple[int, int]:
    """The (width, height) of a picture whose shorter side becomes ``short``, or less where its
    longer side would pass ``longest``; rounded as mmcv rounds (``rescale_size``).

    Raises ``BadPicture`` where that is more than ``MAX_PIXELS``.
    """
    factor = short / min(stored)
    if longest is not None:
        factor = min(factor, longest / max(stored))
    width, height = (max(1, int(side * factor + 0.5)) for side in stored)
    if width * height > MAX_PIXELS:
        raise BadPicture(
            f"{stored[0]}x{stored[1]} pixels: resized to a shorter side of {short} it would have "
            f"more than {MAX_PIXELS:,} pixels"
        )
    return width, height


@dataclass(frozen=True)
class Seen:
    """A picture ``[H, W, 3]`` uint8 and its labels ``[H, W]``, if any, on one grid."""

    pixels: NDArray[np.uint8]
    dense: Dense | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def resized(self, size: tuple[int, int], interpolation: Interpolation, antialias: bool) -> Seen:
        """To that (width, height)."""
        if size == self.size:
            return self
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        mode, wanted = InterpolationMode(interpolation), [size[1], size[0]]

        def resize(tensor: Any, nothing: float) -> Any:
            return F.resize(tensor, wanted, mode, antialias=antialias)  # nearest for labels

        return self._through(resize)

    def rotated(self, degrees: float) -> Seen:
        """About its middle, bilinearly; what comes in from outside is black and has no label."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        def rotate(tensor: Any, nothing: float) -> Any:
            return F.rotate(tensor, degrees, InterpolationMode.BILINEAR, fill=nothing)

        return self._through(rotate)

    def cut(self, x: int, y: int, width: int, height: int) -> Seen:
        """What of that rectangle is in the picture."""
        part = slice(y, y + height), slice(x, x + width)
        dense = None if self.dense is None else each(self.dense, lambda labels, _: labels[part])
        return Seen(self.pixels[part], dense)

    def mirrored(self) -> Seen:
        dense = self.dense
        if dense is not None:
            dense = each(dense, lambda labels, _: labels[:, ::-1].copy())
        return Seen(self.pixels[:, ::-1].copy(), dense)

    def crop(self, geometry: Geometry) -> Crop:
        """As a crop of that geometry; its labels are padded here, its pixels on the device."""
        left, top, right, bottom = geometry.pad

        def pad(labels: NDArray[Any], nothing: float) -> NDArray[Any]:
            return np.pad(labels, ((top, bottom), (left, right)), constant_values=nothing)

        dense = None if self.dense is None else each(self.dense, pad)
        return Crop(self.pixels, geometry, dense)

    def _through(self, change: Callable[[Any, float], Any]) -> Seen:
        """Pixels and labels as torchvision's image and masks, which it treats each in its way."""
        import torch
        from torchvision import tv_tensors

        def tensor(values: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.require(values, requirements=["C", "W"]))

        def labels(values: NDArray[Any], nothing: float) -> NDArray[Any]:
            changed: NDArray[Any] = change(tv_tensors.Mask(tensor(values)), nothing).numpy()
            return changed

        image = change(tv_tensors.Image(tensor(self.pixels).permute(2, 0, 1)), 0)
        pixels: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
        return Seen(pixels, None if self.dense is None else each(self.dense, labels))
