"""Maps of the size of the patch grid -> maps of the size of the picture, as the published dense
evaluations do it: bilinear, ``align_corners=False``. Predictions are resized, labels never."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_MAPS = 2**25  # floats of resized maps in memory at a time: 128 MiB


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``maps [B, C, H, W]`` -> ``[B, C, *size]``."""
    if maps.shape[2:] == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def class_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest of the resized ``scores [B, C, H, W]`` in every pixel: ``[B,
    *size]`` int64. Of equal scores the lowest class.

    Between four neighbours of the grid no class is above its highest of them, nor is the winner
    below any class's lowest: classes that can win nowhere are not resized. Of the others a few
    are at a time, so that of 150 classes a picture of 2000 x 3000 needs 0.3 GB and not 3.6.
    """
    most = max(1, _MAPS // (size[0] * size[1]))
    found = torch.zeros((len(scores), *size), dtype=torch.int64, device=scores.device)
    for own, classes in zip(scores, found, strict=True):
        contenders = _contenders(own)
        best = torch.full(size, -torch.inf, dtype=scores.dtype, device=scores.device)
        for some in torch.split(contenders, most):
            for which, larger in zip(some.tolist(), resized(own[None, some], size)[0], strict=True):
                classes.masked_fill_(larger > best, which)
                torch.maximum(best, larger, out=best)
    return found


def _contenders(scores: Tensor) -> Tensor:
    """Which classes, rising, of ``scores [C, H, W]`` may be the highest somewhere between."""
    height, width = scores.shape[1:]
    # A grid of one row or column has neighbours in the other direction alone.
    window = min(height, 2), min(width, 2)
    highest = functional.max_pool2d(scores[None], window, stride=1)
    lowest = -functional.max_pool2d(-scores[None], window, stride=1)
    return (highest >= lowest.amax(1, keepdim=True))[0].flatten(1).any(1).nonzero()[:, 0]
