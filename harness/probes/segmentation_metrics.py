"""What a picture adds to mIoU, class accuracy and pixel accuracy: counts of pixels by class.

The scores themselves are aggregates of these counts (``harness/aggregates.py``), so that
intervals and paired differences draw pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClassCounts(NamedTuple):
    """Pixels of one picture by class, ``[classes]`` int64 each: where prediction and label agree
    on it, where it is predicted, and where it is the label."""

    intersection: Tensor
    predicted: Tensor
    labelled: Tensor


def class_counts(predicted: Tensor, labels: Tensor, classes: int, ignore: int = 255) -> ClassCounts:
    """Of class maps ``[H, W]`` at the label's own size. Pixels labelled ``ignore`` are not
    counted, whatever is predicted there (mmseg's ``intersect_and_union``).

    Raises ``ValueError`` where the sizes differ, or a class is none of ``classes``: mmseg leaves
    such a label out in silence.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"a prediction of {list(predicted.shape)}, labels {list(labels.shape)}")
    counted = labels != ignore
    said, true = predicted[counted].long(), labels[counted].long()
    for what, values in (("predicted class", said), ("label", true)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            wrong = int(values.min()) if int(values.min()) < 0 else int(values.max())
            raise ValueError(f"{what} {wrong} is none of {classes} classes, nor {ignore}")
    return ClassCounts(
        torch.bincount(said[said == true], minlength=classes),
        torch.bincount(said, minlength=classes),
        torch.bincount(true, minlength=classes),
    )
