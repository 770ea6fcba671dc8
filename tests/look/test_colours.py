from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.look.colours import as_colours


def noise(rows: int, columns: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    # A spectrum that falls: components that are as long as each other have no order.
    scale = 0.5 ** np.arange(width)
    return np.random.default_rng(seed).gamma(2, size=(rows, columns, width)) * scale


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(3, 40), st.integers(0, 99))
def test_a_models_own_axes_and_lengths_move_no_colour(
    rows: int, columns: int, width: int, seed: int
) -> None:
    patches = noise(rows, columns, width, seed)
    generator = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(generator.normal(size=(width, width)))
    lengths = generator.uniform(0.1, 1000, size=(rows, columns, 1))
    ours, theirs = as_colours(patches).astype(int), as_colours(lengths * patches @ turn).astype(int)
    assert ours.shape == (rows, columns, 3)
    # A sign is not settled where a component is as long on both sides, nor what rounding leaves.
    flat = patches.reshape(-1, width)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    scores, spectrum, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    for channel in range(min(3, len(spectrum))):
        apart = spectrum[channel] - np.append(spectrum, 0)[channel + 1]
        there = spectrum[channel] > 1e-3 * spectrum[0] and apart > 1e-3 * spectrum[channel]
        if there and abs((scores[:, channel] ** 3).sum()) > 1e-6:
            assert abs(ours[..., channel] - theirs[..., channel]).max() <= 1


def test_few_tokens_however_long_decide_no_colour() -> None:
    patches = noise(12, 12, 16)
    outliers = patches.copy()
    outliers[3, 4] *= 1000
    assert np.array_equal(as_colours(patches), as_colours(outliers))


def test_the_smaller_of_two_parts_is_bright_and_the_rest_grey() -> None:
    patches = np.zeros((6, 8, 5))
    patches[..., 0] = 1
    patches[2:4, 2:5] = [0, 1, 0, 0, 0]
    colours = as_colours(patches)
    assert (colours[2:4, 2:5, 0] == 255).all() and (colours[..., 0] == 255).sum() == 6
    assert (colours[..., 1:] == 128).all()


def test_equal_patches_are_grey() -> None:
    for shape in ((4, 4, 3), (1, 1, 200), (20, 20, 2)):
        assert (as_colours(np.ones(shape)) == 128).all()
        assert (as_colours(np.zeros(shape)) == 128).all()
