"""Pictures that show their own labels: what a joint view did to the one it must do to the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dense

CLASSES = 5


def labelled(width: int, height: int, seed: int = 0, block: int = 8) -> Dense:
    """Blocks of classes, objects and depths, each drawn by itself."""
    draw = np.random.default_rng((seed, width, height))

    def blocks(most: int) -> NDArray[np.uint8]:
        coarse = draw.integers(0, most, (-(-height // block), -(-width // block)), np.uint8)
        return coarse.repeat(block, 0).repeat(block, 1)[:height, :width]

    depth = blocks(100).astype(np.float32) + 1
    return Dense(semantic=blocks(CLASSES), instances=blocks(50) + 1, depth=depth)


def shown(dense: Dense) -> NDArray[np.uint8]:
    """Red tells the class, green the object, blue the depth."""
    assert dense.semantic is not None and dense.instances is not None and dense.depth is not None
    return np.stack(
        [10 + 40 * dense.semantic, 3 * dense.instances, dense.depth.astype(np.uint8)], axis=-1
    )


def read_back(pixels: NDArray[np.uint8]) -> Dense:
    """The nearest labels that a picture shows."""
    red, green, blue = (pixels[..., channel].astype(float) for channel in range(3))
    return Dense(
        semantic=np.clip(np.rint((red - 10) / 40), 0, CLASSES - 1).astype(np.uint8),
        instances=np.rint(green / 3).astype(np.uint8),
        depth=blue.astype(np.float32),
    )
