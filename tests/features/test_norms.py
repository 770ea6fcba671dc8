"""Norms in fixed bins: quantiles, modes, and the valley between two of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.features.norms import (
    BINS,
    HIGHEST,
    LOWEST,
    PER_OCTAVE,
    bimodality,
    edge,
    histogram,
    quantile,
    trimmed,
    valley,
)

BIN = 2 ** (1 / PER_OCTAVE)


def draw(middle: float, count: int, spread: float = 0.15, seed: int = 0) -> np.ndarray:
    """Norms about ``middle``, normal in log norm."""
    apart = np.random.default_rng(seed).normal(0, spread, count)
    return (middle * np.exp(apart)).astype(np.float32)


def test_every_norm_is_in_a_bin_and_each_bin_holds_what_its_edges_say() -> None:
    norms = np.array([0, 1e-30, 1, 1.0001 * BIN, 2, 1e30], np.float32)
    counts = histogram(norms)
    assert counts.sum() == len(norms)
    assert counts[0] == 2 and counts[-1] == 1
    one = -LOWEST * PER_OCTAVE
    assert (counts[one], counts[one + 1], counts[one + PER_OCTAVE]) == (1, 1, 1)
    np.testing.assert_allclose(edge([one, one + PER_OCTAVE, BINS]), [1, 2, 2.0**HIGHEST])


@given(st.lists(st.floats(2**-10, 2**17, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_are_the_samples_own_to_within_a_bin(values: list[float], share: float) -> None:
    norms = np.array(values, np.float32)
    found = quantile(histogram(norms), share)
    low = np.quantile(norms.astype(float), share, method="inverted_cdf")
    assert low / BIN * (1 - 1e-5) <= found <= low * BIN * (1 + 1e-5)


@pytest.mark.parametrize("few", [30, 200, 4000])
@pytest.mark.parametrize("times", [4, 10, 60])
def test_the_valley_parts_a_few_high_norms_from_the_rest(few: int, times: float) -> None:
    norms, high = draw(50, 20_000), draw(50 * times, few, seed=1)
    place = valley(histogram(np.concatenate([norms, high])))
    assert place is not None
    assert norms.max() * 0.95 < edge(place) < high.min() * 1.05
    if times > 4:
        assert norms.max() < edge(place) < high.min()


@pytest.mark.parametrize(
    "norms",
    [
        draw(50, 20_000),
        draw(50, 300),
        np.random.default_rng(0).gamma(2, 20, 20_000).astype(np.float32),
        (30 * (1 + np.random.default_rng(1).pareto(3, 5_000))).astype(np.float32),
        np.append(draw(50, 20_000), np.float32([400, 900, 2000])),
        np.append(draw(50, 60_000), draw(85, 40_000, seed=3)),
        np.full(400, 7, np.float32),
        np.empty(0, np.float32),
    ],
    ids=[
        "one hump",
        "few patches",
        "skewed",
        "heavy tail",
        "three strays",
        "a shallow dip",
        "all one",
        "none",
    ],
)
def test_without_a_second_mode_there_is_no_valley(norms: np.ndarray) -> None:
    assert valley(histogram(norms)) is None


def test_a_second_mode_of_more_than_half_of_all_is_no_outliers() -> None:
    # Narrow and high, then wide and low but with more in it.
    norms = np.concatenate([draw(10, 8000, 0.02), draw(200, 10_000, 0.5, seed=2)])
    assert valley(histogram(norms)) is None


def test_bimodality_is_sarles_coefficient() -> None:
    two = np.repeat(np.float32([2, 64]), [900, 100])
    assert bimodality(histogram(two)) == pytest.approx(1)
    even = 2 ** np.linspace(0, 8, 100_000, dtype=np.float32)
    assert bimodality(histogram(even)) == pytest.approx(5 / 9, abs=0.01)
    assert bimodality(histogram(draw(50, 200_000))) == pytest.approx(1 / 3, abs=0.01)
    assert bimodality(histogram(np.full(9, 3, np.float32))) is None


def test_a_histogram_is_told_without_its_empty_ends() -> None:
    told = trimmed(histogram(np.float32([1, 1, 2])))
    assert told["lowest"] == 1
    assert told["counts"] == [2, *[0] * (PER_OCTAVE - 1), 1]
    assert trimmed(np.zeros(BINS, np.int64))["counts"] == []
