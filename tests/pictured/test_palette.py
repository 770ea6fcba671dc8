from __future__ import annotations

import numpy as np

from harness.pictured.palette import oklab, palette


def test_the_colours_are_pinned() -> None:
    first = palette()[:6].tolist()
    assert first == [
        [70, 110, 180],
        [240, 240, 60],
        [255, 165, 255],
        [120, 0, 15],
        [90, 165, 0],
        [225, 90, 60],
    ]


def test_every_class_has_a_colour_of_its_own_and_unlike_its_neighbours() -> None:
    colours = oklab(palette())
    apart = np.sqrt(((colours[:, None] - colours) ** 2).sum(-1)) + 9 * np.eye(len(colours))
    assert apart.shape == (256, 256)
    assert apart.min() > 0.04  # about 0.02 is just to be seen
    assert apart[:20, :20].min() > 0.13 and apart[:40, :40].min() > 0.1
    neighbours = apart[np.arange(255), np.arange(255) + 1]
    assert neighbours.min() > 0.06


def test_oklab_is_that_of_its_author() -> None:
    # https://bottosson.github.io/posts/oklab: white is (1, 0, 0); red's values are the well-known.
    colours = np.array([[255, 255, 255], [255, 0, 0]], dtype=np.uint8)
    assert np.allclose(oklab(colours), [[1, 0, 0], [0.628, 0.2249, 0.1258]], atol=1e-3)
