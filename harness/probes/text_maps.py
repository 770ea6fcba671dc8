"""Patches against texts: cosines, and what class a pixel is of. Pure tensors.

A class may have several texts (names); it is as near as the nearest of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosines(patches: Tensor, texts: Tensor) -> Tensor:
    """Of projected patches ``[B, H, W, E]`` with unit ``texts [Q, E]``: ``[B, Q, H, W]``."""
    found: Tensor = normalize(patches.float(), dim=-1) @ texts.to(patches.device).T
    return found.permute(0, 3, 1, 2)


def nearest_class(values: Tensor, owners: Tensor) -> Tensor:
    """The class of every pixel, ``[...]`` int64, of ``values [Q, ...]``: that of its highest text.

    ``owners [Q]`` is the class of each text. Of texts that are equally high the first. A softmax
    over the texts before would choose the same.
    """
    return owners.to(values.device)[values.argmax(0)]


def sure_class(
    values: Tensor, owners: Tensor, scale: float, threshold: float, otherwise: int
) -> Tensor:
    """As ``nearest_class``, and ``otherwise`` where the softmax of ``scale`` times the values, over
    the texts, is below ``threshold`` at its highest."""
    found = nearest_class(values, owners)
    # exp(highest - log sum exp): the softmax of the highest, without the others'.
    sure = (scale * (values.amax(0) - torch.logsumexp(scale * values, 0) / scale)).exp()
    return found.masked_fill(sure < threshold, otherwise)
