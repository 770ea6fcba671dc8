"""Tests against a margin: what they are made of, and that they keep their level."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multinomial, norm, ttest_1samp

from harness.gate.margin import _likeliest_gain, _score, of_error, of_hits, of_mean


@pytest.mark.parametrize(("lost", "gained"), [(60, 30), (12, 0), (90, 60), (1, 0)])
@pytest.mark.parametrize("margin", [0.005, 0.02])
def test_the_gain_is_the_likeliest_at_the_margin(lost: int, gained: int, margin: float) -> None:
    def unlikely(gain: float) -> float:
        rest = 1000 - lost - gained
        return -(
            lost * np.log(gain + margin)
            + gained * np.log(gain)
            + rest * np.log(1 - 2 * gain - margin)
        )

    best = minimize_scalar(unlikely, bounds=(1e-12, (1 - margin) / 2), method="bounded",
                           options={"xatol": 1e-10})  # fmt: skip
    assert float(_likeliest_gain(lost, gained, 1000, margin)) == pytest.approx(best.x, abs=1e-6)


def test_without_a_margin_the_statistic_is_mcnemars() -> None:
    assert float(_score(30, 12, 500, 0.0)) == pytest.approx(18 / np.sqrt(42))


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (4, 1), (6, 2)])
def test_a_small_p_is_counted_out_over_all_tables(lost: int, gained: int) -> None:
    pictures, margin = 12, 0.05
    observed = float(_score(lost, gained, pictures, margin))
    gain = float(_likeliest_gain(lost, gained, pictures, margin))
    shares = [gain + margin, gain, 1 - 2 * gain - margin]
    expected = sum(
        multinomial.pmf([b, c, pictures - b - c], pictures, shares)
        for b, c in product(range(pictures + 1), repeat=2)
        if b + c <= pictures and float(_score(b, c, pictures, margin)) >= observed - 1e-9
    )
    assert of_hits(lost, gained, pictures, margin) == pytest.approx(expected, rel=1e-6)


def test_where_many_pictures_move_the_p_is_the_normal_one() -> None:
    p = of_hits(900, 700, 20_000, 0.005)
    assert p == pytest.approx(float(norm.sf(float(_score(900, 700, 20_000, 0.005)))), rel=0.05)


@pytest.mark.parametrize("case", [(0, 0), (5, 5), (3, 30), (5, 0)])
def test_no_loss_beyond_the_margin_has_a_large_p(case: tuple[int, int]) -> None:
    assert of_hits(*case, 1000, 0.005) > 0.2
    assert of_hits(*case, 1000, 1.0) == 1.0


def test_more_lost_has_a_smaller_p() -> None:
    found = [of_hits(lost, 20, 1000, 0.005) for lost in range(20, 120, 4)]
    assert found == sorted(found, reverse=True) and found[-1] < 1e-8


def test_every_picture_lost_is_certain() -> None:
    assert of_hits(1000, 0, 1000, 0.005) < 1e-9
    assert of_hits(400, 0, 400, 0.0) < 1e-9


def test_a_mean_has_students_p() -> None:
    losses = np.random.default_rng(0).normal(1, 3, 300)
    expected = ttest_1samp(losses, 0.6, alternative="greater").pvalue
    assert of_mean(losses, 0.6) == pytest.approx(expected)
    alone = np.arange(300)
    assert of_mean(losses, 0.6, alone) == pytest.approx(expected)


def test_scenes_are_the_units_of_a_mean() -> None:
    of_scene = np.random.default_rng(0).normal(1, 1, 20)
    losses, scenes = np.repeat(of_scene, 50), np.repeat(np.arange(20), 50)
    expected = ttest_1samp(of_scene, 0.6, alternative="greater").pvalue
    assert of_mean(losses, 0.6, scenes) == pytest.approx(expected)
    assert of_mean(losses, 0.6) < expected / 10
    assert of_mean(losses, 0.6, np.zeros(1000)) == 1.0, "of one scene nothing follows"


def test_what_moved_by_the_same_everywhere_is_certain_and_rounding_is_no_spread() -> None:
    assert of_mean(np.full(300, 0.6), 0.5) == 0.0
    assert of_mean(np.full(300, 0.1) + 0.2, 0.1 + 0.2) == 1.0
    assert of_error(1.0, float("nan"), 0.5, 300) == 1.0
    assert of_error(float("nan"), 1.0, 0.5, 300) == 1.0


def rejected(pictures: int, gain: float, margin: float, level: float) -> float:
    """How often the true loss at the margin is called more: counted out, not drawn."""
    losses, gains = (np.arange(*ends(pictures, share)) for share in (gain + margin, gain))
    total = 0.0
    for lost in losses:
        chance = binom.pmf(lost, pictures, gain + margin)
        rest = binom.pmf(gains, pictures - lost, gain / (1 - gain - margin))
        # p falls with fewer pictures gained: find where it passes the level.
        low, high = 0, len(gains)
        while low < high:
            middle = (low + high) // 2
            if of_hits(int(lost), int(gains[middle]), pictures, margin) < level:
                low = middle + 1
            else:
                high = middle
        total += chance * rest[:low].sum()
    return float(total)


def ends(pictures: int, share: float) -> tuple[int, int]:
    return (int(binom.ppf(1e-9, pictures, share)), int(binom.isf(1e-9, pictures, share)) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [200, 1000])
@pytest.mark.parametrize("gain", [0.0005, 0.005, 0.07])
@pytest.mark.parametrize("level", [0.05, 0.05 / 20])
def test_the_level_is_kept_at_the_margin(pictures: int, gain: float, level: float) -> None:
    found = rejected(pictures, gain, 0.005, level)
    print(f"{pictures} pictures, gain {gain}, level {level}: {found:.5f}")
    assert found <= 1.1 * level
