"""How many crops a view gives of a data set, which patches of a crop are of the picture, and how
much of each is on an object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import IGNORED, Boxes, Dataset, Dense
from harness.data.views import Geometry, View, crops_of

BACKGROUND = "background"


def inside(geometry: Sequence[Geometry], patch: int) -> NDArray[np.bool_]:
    """Of crops of one padded size, the patches ``[B, H, W]`` in which there is no padding."""
    height, width = geometry[0].padded
    rows, columns = (np.arange(side // patch) * patch for side in (height, width))
    pads = np.array([each.pad for each in geometry])
    left, top, right, bottom = pads.T[:, :, None]
    down = (rows >= top) & (rows + patch <= height - bottom)
    across = (columns >= left) & (columns + patch <= width - right)
    within: NDArray[np.bool_] = down[:, :, None] & across[:, None, :]
    return within


def crops_in(view: View, dataset: Dataset, pictures: int | None) -> int:
    """How many crops the view gives of all pictures, or of so many read in epochs."""
    whole = len(dataset.samples)
    if view.crops_per_picture:
        return view.crops_per_picture * (pictures or whole)
    sizes = dataset.sizes()
    if len(sizes) > 1:
        crops = sum(crops_of(view, sample.size) for sample in dataset.samples)
    else:
        crops = whole * sum(crops_of(view, size) for size in sizes)
    return crops if pictures is None else round(crops * pictures / whole)


def masks_tell_objects(dataset: Dataset) -> bool:
    """Whether its pixels' labels tell objects from what is none: there has to be a class for
    that."""
    return BACKGROUND in dataset.semantic_classes


def on_objects(dense: Dense, background: int) -> NDArray[np.float32]:
    """Of every pixel 1 on an object and 0 elsewhere, from ``instances`` or else from ``semantic``,
    where ``background`` is the class of no object. What is of no class is no object."""
    if dense.instances is not None:
        return (dense.instances > 0).astype(np.float32)
    if dense.semantic is None:
        raise ValueError("neither objects nor classes of pixels are known")
    semantic = dense.semantic
    objects: NDArray[np.bool_] = (semantic != background) & (semantic != IGNORED)
    return objects.astype(np.float32)


def in_boxes(boxes: Boxes, geometry: Geometry) -> NDArray[np.float32]:
    """Of every pixel of a padded crop ``[H, W]`` 1 in some box (crowds are none), else 0."""
    inside_some = np.zeros(geometry.padded, np.float32)
    scale = np.tile(np.divide(geometry.resized, geometry.stored), 2)
    x, y, width, height = geometry.crop
    left, top = geometry.pad[:2]
    corners = np.rint(boxes.xyxy[~boxes.crowd] * scale - (x, y, x, y)).astype(int)
    for x0, y0, x1, y1 in corners.clip(0, (width, height, width, height)):
        inside_some[top + y0 : top + y1, left + x0 : left + x1] = 1
    return inside_some


def by_patch(pixels: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """The mean of pixels ``[..., height, width]`` over every patch, ``[..., H, W]``; where the last
    patches go beyond the pixels these are 0."""
    *batch, height, width = pixels.shape
    beyond = [(0, 0)] * len(batch) + [(0, -height % patch), (0, -width % patch)]
    padded = np.pad(pixels, beyond)
    high, wide = padded.shape[-2:]
    parts = padded.reshape(*batch, high // patch, patch, wide // patch, patch)
    found: NDArray[np.float32] = parts.mean(axis=(-3, -1))
    return found
