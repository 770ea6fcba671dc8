"""Several random crops of one picture, augmented as in DINO (arXiv:2104.14294, appendix, and its
code's ``DataAugmentationDINO``).

Two global crops and some local ones: a random part of the picture, resized, flipped (with
probability 0.5), its colours jittered (0.8), made grey (0.2), blurred (the first global crop
always, the second 0.1, local ones 0.5), solarised (the second global crop, 0.2).

Everything is drawn from (seed, epoch, picture, crop) and nothing else. Brightness, contrast,
saturation and hue are linear in the colours, and contrast's mean follows from the crop's own; so a
crop's jitter is one matrix, applied once, with one clamp at the end where PIL clamps after each.
Hue is turned in YIQ, not in HSV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.nano.draw import Draw
from harness.nano.recipe import Recipe

GLOBAL_CROPS = 2
_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10  # torchvision's RandomResizedCrop, before it takes what fits
_BRIGHTNESS = _CONTRAST = 0.4
_SATURATION, _HUE = 0.2, 0.1
_BLUR = (0.1, 2.0)  # standard deviations in pixels of the crop
_GREY = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Crops:
    """Of one picture, uint8: ``whole [2, 3, S, S]``, ``local [L, 3, s, s]``."""

    whole: Tensor
    local: Tensor


@dataclass(frozen=True)
class _Plan:
    """What becomes of one crop."""

    box: tuple[int, int, int, int]
    """top, left, height, width, in pixels of the picture."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    grey: bool
    blur: float
    """Standard deviation in pixels; 0 is none."""
    solarise: bool


def make_crops(picture: NDArray[np.uint8], recipe: Recipe, epoch: int, index: int) -> Crops:
    """Crops of ``picture [H, W, 3]`` RGB, the ``index``-th of its data set, in ``epoch``.

    Takes about 1 ms of one core for 2 crops of 96 and 4 of 48 pixels from 128x128; more than one
    torch thread makes it slower, and the caller sets their number.
    """
    height, width = picture.shape[:2]
    writable = np.require(picture, requirements="W")  # torch warns of what is not
    stored = torch.from_numpy(writable).permute(2, 0, 1).unsqueeze(0)
    kinds = []
    for first, count, side, scale in (
        (0, GLOBAL_CROPS, recipe.facts.crop, recipe.crop_scale),
        (GLOBAL_CROPS, recipe.local_crops, recipe.facts.local_crop, recipe.local_crop_scale),
    ):
        plans = [
            _plan(Draw(recipe.seed, epoch, index, number), number, (height, width), scale)
            for number in range(first, first + count)
        ]
        kinds.append(_cut(stored, plans, side) if plans else torch.empty(0, 3, side, side).byte())
    return Crops(*kinds)


def plain_crop(
    picture: NDArray[np.uint8], draw: Draw, side: int, scale: tuple[float, float]
) -> Tensor:
    """A random part of ``picture [H, W, 3]`` RGB, resized and nothing else: ``[3, side, side]``
    uint8."""
    top, left, high, wide = _box(draw, (picture.shape[0], picture.shape[1]), scale)
    part = np.require(picture[top : top + high, left : left + wide], requirements="W")
    stored = torch.from_numpy(part).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(stored, (side, side), mode="bicubic", antialias=True)[0]


def _plan(draw: Draw, number: int, size: tuple[int, int], scale: tuple[float, float]) -> _Plan:
    box = _box(draw, size, scale)
    flip = draw.chance(0.5)
    jitter = []
    if draw.chance(0.8):
        strengths = {
            "brightness": draw.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS),
            "contrast": draw.uniform(1 - _CONTRAST, 1 + _CONTRAST),
            "saturation": draw.uniform(1 - _SATURATION, 1 + _SATURATION),
            "hue": draw.uniform(-_HUE, _HUE),
        }
        left = list(strengths)
        while left:
            kind = left.pop(draw.integer(0, len(left) - 1))
            jitter.append((kind, strengths[kind]))
    grey = draw.chance(0.2)
    blurred = draw.chance({0: 1.0, 1: 0.1}.get(number, 0.5))
    blur = draw.uniform(*_BLUR) if blurred else 0.0
    return _Plan(box, flip, tuple(jitter), grey, blur, number == 1 and draw.chance(0.2))


def _box(
    draw: Draw, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A part of the picture with a share of its area from ``scale``, at most 4 : 3 or 3 : 4."""
    height, width = size
    for _ in range(_TRIES):
        area = height * width * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(*_ASPECTS))
        wide = max(1, round(math.sqrt(area * aspect)))
        high = max(1, round(math.sqrt(area / aspect)))
        if wide <= width and high <= height:
            top, left = draw.integer(0, height - high), draw.integer(0, width - wide)
            return top, left, high, wide
    high, wide = min(height, width * 4 // 3 or 1), min(width, height * 4 // 3 or 1)
    return (height - high) // 2, (width - wide) // 2, high, wide


def _cut(stored: Tensor, plans: list[_Plan], side: int) -> Tensor:
    """``stored [1, 3, H, W]`` uint8 -> a crop for each plan, ``[n, 3, side, side]`` uint8."""
    cuts = []
    for plan in plans:
        top, left, high, wide = plan.box
        part = stored[..., top : top + high, left : left + wide]
        part = F.interpolate(part, (side, side), mode="bicubic", antialias=True)
        cuts.append(part.flip(-1) if plan.flip else part)
    crops = torch.cat(cuts).contiguous().float().flatten(2)
    means = crops.mean(-1, dtype=torch.float64).numpy()
    colours = [_colours(plan, mean) for plan, mean in zip(plans, means, strict=True)]
    matrices = torch.from_numpy(np.stack([matrix for matrix, _ in colours])).float()
    offsets = torch.from_numpy(np.stack([offset for _, offset in colours])).float()
    crops = torch.baddbmm(offsets.unsqueeze(-1), matrices, crops).clamp_(0, 255)
    crops = crops.view(-1, 3, side, side)
    if blurred := [n for n, plan in enumerate(plans) if plan.blur]:
        kernels = _blurs([plans[n].blur for n in blurred], side)
        crops[blurred] = kernels @ crops[blurred] @ kernels.mT
    for n, plan in enumerate(plans):
        if plan.solarise:
            crops[n] = torch.where(crops[n] < 128, crops[n], 255 - crops[n])
    rounded: Tensor = crops.round_().clamp_(0, 255).byte()
    return rounded


def _colours(plan: _Plan, mean: Matrix) -> tuple[Matrix, Matrix]:
    """All changes of colour as ``matrix @ rgb + offset``, for a crop whose mean colour is ``mean``.

    Contrast mixes with the mean grey of the crop as it is by then, which is linear in ``mean``.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    for kind, strength in plan.jitter:
        if kind == "brightness":
            matrix, offset = strength * matrix, strength * offset
        elif kind == "contrast":
            grey = _GREY @ (matrix @ mean + offset)
            matrix, offset = strength * matrix, strength * offset + (1 - strength) * grey
        else:
            change = _saturation(strength) if kind == "saturation" else _hue(strength)
            matrix, offset = change @ matrix, change @ offset
    if plan.grey:
        matrix, offset = _saturation(0) @ matrix, _saturation(0) @ offset
    return matrix, offset


def _saturation(strength: float) -> Matrix:
    """1 leaves colours as they are, 0 is grey."""
    matrix: Matrix = strength * np.eye(3) + (1 - strength) * np.tile(_GREY, (3, 1))
    return matrix


def _hue(turns: float) -> Matrix:
    """Colours turned round grey by a share of the circle."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    matrix: Matrix = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    return matrix


def _blurs(deviations: list[float], side: int) -> Tensor:
    """A Gaussian blur along one side for each deviation, as matrices ``[n, 1, side, side]`` whose
    rows sum to 1 (at the edge too)."""
    places = torch.arange(side, dtype=torch.float32)
    squares = (places[:, None] - places) ** 2
    kernels = torch.exp(squares / (-2 * torch.tensor(deviations)[:, None, None] ** 2))
    return (kernels / kernels.sum(-1, keepdim=True)).unsqueeze(1)
