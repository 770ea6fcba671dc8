"""Object discovery: one box a picture, judged by CorLoc. What LOST and its kin share.

CorLoc: the share of pictures whose box overlaps some annotated object with an IoU of at least 0.5
(Deselaers et al. 2010, as computed by valeoai/LOST, main_lost.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.data.dataset import Boxes


def component_box(
    mask: NDArray[np.bool_], seed: int, patch: int, picture: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box round the 4-connected component of ``mask`` ``[rows, columns]`` that holds a patch.

    ``seed`` is a row-major patch index. In pixels of the picture ``(width, height)``: x0, y0, x1,
    y1, the last two exclusive, clipped to the picture (padding lies right and below). A seed
    outside the mask, which a negative bias makes possible, gives the seed's own patch.
    """
    row, column = divmod(seed, mask.shape[1])
    if mask[row, column]:
        labels, _ = ndimage.label(mask)
        component = labels == labels[row, column]
        rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
        top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    else:
        top = bottom = row
        left = right = column
    width, height = picture
    return (
        int(left) * patch,
        int(top) * patch,
        min((int(right) + 1) * patch, width),
        min((int(bottom) + 1) * patch, height),
    )


def intersection_over_union(
    box: tuple[int, int, int, int], others: NDArray[np.int64]
) -> NDArray[np.float32]:
    """IoU of one box with others ``[n, 4]``, in the float32 arithmetic of the official code.

    It adds 1e-7 to heights and union, as yolov5's function does: in float32 that vanishes beside a
    pixel, so that an IoU of exactly one half counts as found; in float64 it would not.
    """
    epsilon = np.float32(1e-7)
    x0, y0, x1, y1 = (np.int64(value) for value in box)
    inter = np.clip(np.minimum(x1, others[:, 2]) - np.maximum(x0, others[:, 0]), 0, None)
    inter = inter * np.clip(np.minimum(y1, others[:, 3]) - np.maximum(y0, others[:, 1]), 0, None)
    inter = inter.astype(np.float32)
    own = np.float32(x1 - x0) * (np.float32(y1 - y0) + epsilon)
    widths = (others[:, 2] - others[:, 0]).astype(np.float32)
    heights = (others[:, 3] - others[:, 1]).astype(np.float32) + epsilon
    result: NDArray[np.float32] = inter / (own + widths * heights - inter + epsilon)
    return result


def objects(boxes: Boxes | None, keep_hard: bool = True) -> NDArray[np.int64]:
    """The boxes ``[n, 4]`` that count for CorLoc: no crowds, rounded to whole pixels (half to
    even), as LOST's reader does; without ``keep_hard`` no difficult or truncated ones either."""
    if boxes is None or not len(boxes.xyxy):
        return np.zeros((0, 4), np.int64)
    counts = ~boxes.crowd
    if not keep_hard:
        counts &= ~(boxes.difficult | boxes.truncated)
    return np.rint(boxes.xyxy[counts]).astype(np.int64)


def finds(box: tuple[int, int, int, int], targets: NDArray[np.int64]) -> bool:
    """Does the box overlap any target ``[n, 4]`` with an IoU of at least 0.5?"""
    return bool((intersection_over_union(box, targets) >= 0.5).any())
