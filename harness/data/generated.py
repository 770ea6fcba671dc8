"""Painted pictures with exact boxes: no files, and the same pixels on every machine.

Each shows one to three filled, textured shapes that do not touch, on a plain background with mild
noise. All arithmetic is on whole numbers, and the noise is a hash of the pixel's position, so that
no library's random generator or rounding has a say. Picture ``i`` does not depend on how many
there are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import Boxes, Dataset, Sample, Target

CLASSES = ("diamond", "ellipse", "rectangle")
COUNT = 12
_MARGIN = 8  # pixels between a shape and the edge of its cell: two shapes never touch
_NOISE = 4  # grey levels, either way


@dataclass(frozen=True)
class _Shape:
    kind: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1, the last two exclusive; every side is touched by the shape."""
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    texture: int
    period: int


class GeneratedDataset(Dataset):
    """``count`` painted pictures, as the split ``test``."""

    def __init__(self, name: str, count: int = COUNT) -> None:
        self.name = name
        self.split = "test"
        self.classes = CLASSES
        self.samples = [_sample(index) for index in range(count)]

    def read(self, index: int) -> bytes:
        """Picture ``index`` as PNG: its pixels are the same everywhere, its bytes may not be."""
        buffer = io.BytesIO()
        Image.fromarray(paint(index)).save(buffer, format="PNG")
        return buffer.getvalue()


def paint(index: int) -> NDArray[np.uint8]:
    """Picture ``index``, ``[height, width, 3]`` RGB."""
    width, height = _size(index)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.empty((height, width, 3), dtype=np.int64)
    picture[:] = _background(index)
    for shape in _shapes(index):
        inside = _inside(shape, x, y)
        second = _texture(shape, x, y)
        for channel in range(3):
            first_colour, second_colour = (colour[channel] for colour in shape.colours)
            values = np.where(second, second_colour, first_colour)
            picture[..., channel] = np.where(inside, values, picture[..., channel])
    picture += _noise(index, height, width)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _sample(index: int) -> Sample:
    shapes = _shapes(index)
    boxes = Boxes(
        xyxy=np.array([shape.box for shape in shapes], dtype=np.float64),
        classes=tuple(shape.kind for shape in shapes),
        crowd=np.zeros(len(shapes), dtype=np.bool_),
        difficult=np.zeros(len(shapes), dtype=np.bool_),
        truncated=np.zeros(len(shapes), dtype=np.bool_),
    )
    return Sample(f"generated-{index:03d}", _size(index), Target(boxes=boxes))


def _size(index: int) -> tuple[int, int]:
    """(width, height): even pictures lie, odd ones stand; 180 to 300 pixels a side."""
    short = 180 + _draw(index, 0) % 50
    long = 240 + _draw(index, 1) % 61
    return (long, short) if index % 2 == 0 else (short, long)


def _background(index: int) -> tuple[int, int, int]:
    return (
        150 + _draw(index, 2) % 80,
        150 + _draw(index, 3) % 80,
        150 + _draw(index, 4) % 80,
    )


def _shapes(index: int) -> list[_Shape]:
    """One to three shapes, each in its own cell along the picture's long side."""
    width, height = _size(index)
    count = 1 + index % 3
    long = max(width, height)
    shapes = []
    for number in range(count):
        low, high = long * number // count, long * (number + 1) // count
        cell = (low, 0, high, height) if width >= height else (0, low, width, high)
        shapes.append(_shape(index, 100 * (number + 1), cell))
    return shapes


def _shape(index: int, key: int, cell: tuple[int, int, int, int]) -> _Shape:
    x0, x1 = _interval(_draw(index, key), _draw(index, key + 1), cell[0], cell[2])
    y0, y1 = _interval(_draw(index, key + 2), _draw(index, key + 3), cell[1], cell[3])
    first = tuple(_draw(index, key + 4 + channel) % 110 for channel in range(3))
    second = tuple((value + 60 + _draw(index, key + 7) % 60) % 256 for value in first)
    return _Shape(
        kind=CLASSES[_draw(index, key + 8) % len(CLASSES)],
        box=(x0, y0, x1, y1),
        colours=((first[0], first[1], first[2]), (second[0], second[1], second[2])),
        texture=_draw(index, key + 9) % 4,
        period=6 + _draw(index, key + 10) % 9,
    )


def _interval(size_draw: int, place_draw: int, low: int, high: int) -> tuple[int, int]:
    """Between 45 % and 75 % of the room between ``low`` and ``high``, anywhere inside it."""
    room = high - low - 2 * _MARGIN
    length = room * (45 + size_draw % 31) // 100
    start = low + _MARGIN + place_draw % (room - length + 1)
    return start, start + length


def _inside(shape: _Shape, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = shape.box
    width, height = x1 - x0, y1 - y0
    inside: NDArray[np.bool_] = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    # Twice the distance from the centre, so that a centre between two pixels stays whole.
    dx, dy = np.abs(2 * x - (x0 + x1 - 1)), np.abs(2 * y - (y0 + y1 - 1))
    if shape.kind == "ellipse":
        inside &= (dx * height) ** 2 + (dy * width) ** 2 <= (width * height) ** 2
    elif shape.kind == "diamond":
        # A little more than the diamond, so that its tips reach all four sides of the box.
        inside &= dx * height + dy * width <= width * height + max(width, height)
    return inside


def _texture(shape: _Shape, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the second colour goes: stripes across, stripes down, a chequerboard, diagonals."""
    patterns = (y // shape.period, x // shape.period, x // shape.period + y // shape.period)
    stripes = (*patterns, (x + y) // shape.period)[shape.texture]
    second: NDArray[np.bool_] = stripes % 2 == 1
    return second


def _noise(index: int, height: int, width: int) -> NDArray[np.int64]:
    count = height * width * 3
    values = mix(np.arange(count, dtype=np.uint64) + np.uint64((index + 1) << 32))
    levels = (values >> np.uint64(40)) % np.uint64(2 * _NOISE + 1)
    return levels.astype(np.int64).reshape(height, width, 3) - _NOISE


def _draw(index: int, key: int) -> int:
    """A number from 0 to 2^31 - 1 that depends on nothing but the two."""
    return int(mix(np.array([index * 1_000_003 + key], dtype=np.uint64))[0] >> np.uint64(33))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter whole numbers over 64 bits: the finaliser of SplitMix64 (Steele et al., 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
