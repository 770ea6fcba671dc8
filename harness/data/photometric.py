"""Colours drawn otherwise: mmsegmentation's photometric distortion, and that of depth training.

What OpenCV does to 8-bit colours is done here to the same whole numbers, with no OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.nano.draw import Draw

Pixels = NDArray[np.uint8]

_SHIFT = 12  # OpenCV's fixed point
_LEVELS = np.arange(1, 256)
_BY_VALUE = np.concatenate([[0], np.rint((255 << _SHIFT) / _LEVELS)]).astype(np.int32)
_BY_SPREAD = np.concatenate([[0], np.rint((180 << _SHIFT) / (6 * _LEVELS))]).astype(np.int32)
# Which of (v, p, q, t) is red, green and blue in each sixth of the circle of hues.
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


@dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each changed half the time: mmsegmentation's
    ``PhotoMetricDistortion`` (mmseg/datasets/pipelines/transforms.py), at its own settings.

    Brightness is added in levels of 0 to 255; ``hue`` is in OpenCV's half degrees. Contrast comes
    either before saturation and hue or after them. Fractions of a level are cut off in each.
    """

    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        if draw.chance(0.5):
            pixels = _levels(pixels, 1, draw.uniform(-self.brightness, self.brightness))
        contrast_first = draw.chance(0.5)
        if contrast_first:
            pixels = self._contrast(pixels, draw)
        if draw.chance(0.5):
            hsv = to_hsv(pixels)
            hsv[..., 1] = _levels(hsv[..., 1], draw.uniform(*self.saturation), 0)
            pixels = from_hsv(hsv)
        if draw.chance(0.5):
            hsv = to_hsv(pixels)
            turned = hsv[..., 0].astype(np.int16) + draw.integer(-self.hue, self.hue - 1)
            hsv[..., 0] = turned % 180
            pixels = from_hsv(hsv)
        return pixels if contrast_first else self._contrast(pixels, draw)

    def _contrast(self, pixels: Pixels, draw: Draw) -> Pixels:
        return _levels(pixels, draw.uniform(*self.contrast), 0) if draw.chance(0.5) else pixels


@dataclass(frozen=True)
class GammaColour:
    """Gamma (of levels from 0 to 255), brightness, and each colour by itself, ``chance`` of the
    time: ``ColorAug`` of the Monocular-Depth-Estimation-Toolbox, on which DINOv2 trains depth.

    Rounded to whole levels at the end, which is at most half a level away.
    """

    chance: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.75, 1.25)
    colour: tuple[float, float] = (0.9, 1.1)

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        if not draw.chance(self.chance):
            return pixels
        gamma, brightness = draw.uniform(*self.gamma), draw.uniform(*self.brightness)
        factors = [brightness * draw.uniform(*self.colour) for _ in range(3)]
        curve = np.arange(256.0) ** gamma
        table = np.clip(np.rint(curve[:, None] * factors), 0, 255).astype(np.uint8)
        return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def _levels(values: Pixels, factor: float, added: float) -> Pixels:
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(added)
    changed: Pixels = np.clip(table, 0, 255).astype(np.uint8)[values]
    return changed


def to_hsv(pixels: Pixels) -> Pixels:
    """RGB ``[..., 3]`` -> hue 0 to 179, saturation and value 0 to 255, as OpenCV's ``RGB2HSV``."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (_SHIFT - 1)
    saturation = (spread * _BY_VALUE[value] + half) >> _SHIFT
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (hue * _BY_SPREAD[spread] + half) >> _SHIFT
    hue += 180 * (hue < 0)
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def from_hsv(hsv: Pixels) -> Pixels:
    """The way back, as OpenCV's ``HSV2RGB``."""
    hue = hsv[..., 0].astype(np.float32) * np.float32(6 / 180)
    saturation = hsv[..., 1].astype(np.float32) * np.float32(1 / 255)
    value = hsv[..., 2].astype(np.float32) * np.float32(1 / 255)
    sector = np.floor(hue).astype(np.int64)
    part = hue - sector
    sector %= 6
    candidates = np.stack(
        [
            value,
            value * (1 - saturation),
            value * (1 - saturation * part),
            value * (1 - saturation * (1 - part)),
        ],
        axis=-1,
    )
    colours = np.take_along_axis(candidates, _SECTORS[sector], axis=-1)
    pixels: Pixels = np.rint(colours * 255).astype(np.uint8)
    return pixels
