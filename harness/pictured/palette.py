"""A colour for every class, by its index alone: the same in every picture and every run."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

COLOURS = 256
_FIRST = (70, 110, 180)
_STEPS = 18  # levels of each of red, green and blue among which colours are looked for


@cache
def palette() -> NDArray[np.uint8]:
    """``[256, 3]`` RGB: each colour is the one farthest from all before it.

    Distances are in OKLab (Ottosson, 2020), in which equal ones look about equal; greys, near black
    and near white are left out, which stand for pixels without a label and for the page, and so is
    what glares. The order
    is that of Glasbey et al. (2007), "Colour displays for categorical images": the few classes of a
    small data set are as far apart as colours can be.
    """
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = oklab(grid)
    chroma = np.hypot(places[:, 1], places[:, 2])
    fit = (chroma > 0.05) & (chroma < 0.19) & (places[:, 0] > 0.36) & (places[:, 0] < 0.93)
    grid, places = grid[fit], places[fit]
    first = np.array([_FIRST], dtype=np.uint8)
    chosen = [first[0]]
    nearest = ((places - oklab(first)) ** 2).sum(1)
    for _ in range(COLOURS - 1):
        # Rounded, so that the last bit of a machine's cube root decides nothing.
        farthest = int(nearest.round(6).argmax())
        chosen.append(grid[farthest])
        nearest = np.minimum(nearest, ((places - places[farthest]) ** 2).sum(1))
    colours = np.stack(chosen)
    colours.setflags(write=False)
    return colours


def oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB ``[n, 3]`` -> OKLab lightness, a, b ``[n, 3]``."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    mixed = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(linear @ cones.T) @ mixed.T
    return lab
