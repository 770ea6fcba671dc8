"""Paired tests: exact where they can be counted, of the level that they claim, and Holm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, permutation_test

from harness.aggregates import intersections_over_unions, mean_of_parts
from harness.significance import holm, mcnemar, permutation, sign_flips
from harness.stats import bootstrap_together

counts = st.integers(0, 60)


@given(counts, counts)
def test_mcnemar_exact_is_scipys_binomial_test(first: int, second: int) -> None:
    found = float(mcnemar(first, second).exact)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found == pytest.approx(expected)


@given(counts, counts)
def test_mid_p_is_the_exact_p_without_half_of_what_was_seen(first: int, second: int) -> None:
    found = mcnemar(first, second)
    total = first + second
    seen = binomtest(first, total).pvalue if total else 1.0
    from scipy.stats import binom

    likely = binom.pmf(min(first, second), total, 0.5)
    expected = 1.0 if first == second else seen - likely
    assert float(found.mid) == pytest.approx(expected)
    assert found.mid <= found.exact
    assert mcnemar(second, first)[2:] == found[2:]


def test_five_to_none_cannot_show_a_difference_and_six_to_none_can() -> None:
    assert float(mcnemar(5, 0).exact) == 0.0625
    assert float(mcnemar(6, 0).exact) == 0.03125


def test_the_permutation_test_agrees_with_scipy_and_with_all_sign_flips() -> None:
    differences = np.array([0.9, -0.2, 1.4, 0.3, 0.8, -0.1, 0.6, 0.7])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    found = permutation(sign_flips(differences[:, None]), 8, [differences.sum()], 0, 20_000, 1e-12)
    scipys = permutation_test(
        (differences, np.zeros(8)), lambda a, b: np.sum(a - b), permutation_type="samples"
    )
    assert scipys.pvalue == pytest.approx(exact)
    assert float(found[0]) == pytest.approx(exact, abs=0.005)


def test_p_is_never_zero_and_no_difference_gives_one() -> None:
    columns = np.stack([np.ones(500), np.zeros(500)], axis=1)
    found = permutation(sign_flips(columns), 500, columns.sum(axis=0), 0, 999)
    assert list(found) == [1 / 1000, 1.0]


def test_more_draws_go_on_from_fewer() -> None:
    seen: list[list[np.ndarray]] = [[], []]
    for kept, draws in zip(seen, (7, 20), strict=True):
        permutation(lambda f, kept=kept: (kept.append(f), np.zeros((len(f), 1)))[1],
                    33, [1.0], 3, draws)  # fmt: skip
    few, many = (np.concatenate(each) for each in seen)
    assert np.array_equal(many[:7], few) and len(many) == 20


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_rejects_what_his_steps_reject_and_follows_the_order(
    p_values: list[float], random: object
) -> None:
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    going, rejected = True, set()
    for step, place in enumerate(order):
        going = going and p_values[place] * (len(p_values) - step) < 0.05
        if going:
            rejected.add(int(place))
    assert set(np.flatnonzero(adjusted < 0.05)) == rejected
    assert all(adjusted >= np.asarray(p_values)) and max(adjusted) <= 1
    random.shuffle(shuffled := list(range(len(p_values))))  # type: ignore[attr-defined]
    again = holm([p_values[place] for place in shuffled])
    assert np.allclose(again, adjusted[shuffled])


def test_several_scores_have_the_intervals_that_each_has_alone() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))

    def of(weights: np.ndarray) -> np.ndarray:
        return weights @ values / 50

    together, alone = bootstrap_together([of, lambda w: of(w)[:, 1]], 50, 4, 60)
    assert together.shape == (2, 3) and np.array_equal(together[:, 1], alone)
    nothing = bootstrap_together([lambda w: np.full((len(w), 2), np.nan)], 50, 4, 60)[0]
    assert np.isnan(nothing).all()


def two_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """2,000 pictures that are hard for both models alike; the second finds 2 points more."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(size=2000)
    own = 0.15 * generator.normal(size=(2, 2000))
    spread = float(np.hypot(1, 0.15))
    cuts = norm.ppf([0.60, 0.62]) * spread
    return hard + own[0] < cuts[0], hard + own[1] < cuts[1]


def test_a_difference_of_two_points_is_found_paired_and_missed_unpaired() -> None:
    found = {"paired": 0, "unpaired": 0}
    for seed in range(100):
        first, second = two_points(seed)
        test = mcnemar((first & ~second).sum(), (second & ~first).sum())
        found["paired"] += bool(test.mid < 0.05)
        pooled = (first.mean() + second.mean()) / 2
        error = np.sqrt(2 * pooled * (1 - pooled) / 2000)
        found["unpaired"] += bool(abs(second.mean() - first.mean()) / error > norm.ppf(0.975))
    assert found["paired"] >= 80 and found["unpaired"] <= 20, found


@pytest.mark.slow
def test_the_level_of_exact_mcnemar_is_at_most_5_percent_and_that_of_mid_p_4_to_6() -> None:
    generator = np.random.default_rng(1)
    discordant = generator.binomial(1000, 0.1, size=10_000)
    test = mcnemar(first := generator.binomial(discordant, 0.5), discordant - first)
    assert (test.exact < 0.05).mean() <= 0.05
    assert 0.04 <= (test.mid < 0.05).mean() <= 0.06


@pytest.mark.slow
def test_the_level_of_the_permutation_test_is_4_to_6_percent() -> None:
    generator = np.random.default_rng(2)
    rejected = []
    for trial in range(20):
        # Skewed values of 300 pictures, 500 models a round, which share the flips.
        values = generator.exponential(size=(2, 300, 500))
        apart = values[0] - values[1]
        p = permutation(sign_flips(apart), 300, apart.sum(axis=0), trial, 1_999)
        rejected.append(p < 0.05)
    assert 0.04 <= np.mean(rejected) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["accuracy", "corloc", "rmse", "accuracy difference"])
def test_95_percent_intervals_of_means_contain_the_truth_in_93_to_97_of_100(kind: str) -> None:
    generator = np.random.default_rng(3)
    shape = 1000, 1000
    if kind == "rmse":
        values, truth = generator.gamma(2.0, 0.2, size=shape), 0.4
    elif kind == "accuracy difference":
        hard = generator.random(shape)
        values = (hard + 0.2 * generator.random(shape) < 0.8).astype(float)
        values -= hard + 0.2 * generator.random(shape) < 0.7
        truth = 0.1
    else:
        truth = {"accuracy": 0.8, "corloc": 0.3}[kind]
        values = (generator.random(shape) < truth).astype(float)
    (found,) = bootstrap_together([lambda w: w.astype(float) @ values / 1000], 1000, 0)
    contained = (found[0] <= truth) & (truth <= found[1])
    assert 0.93 <= contained.mean() <= 0.97


@pytest.mark.slow
def test_95_percent_intervals_of_miou_contain_the_truth_in_93_to_97_of_100() -> None:
    generator = np.random.default_rng(4)
    pictures, classes, sets = 1000, 4, 1000
    size = np.array([100.0, 60.0, 40.0, 30.0])
    right = np.array([0.8, 0.6, 0.5, 0.7])

    def drawn() -> list[np.ndarray]:
        labelled = generator.poisson(size * generator.gamma(4, 0.25, (pictures, classes)))
        intersection = generator.binomial(labelled, right)
        predicted = intersection + generator.poisson(0.2 * size, (pictures, classes))
        return [intersection, predicted, labelled]

    truth = float(np.mean(size * right / (size + 0.2 * size)))
    tables = [drawn() for _ in range(sets)]
    scores = [lambda w, t=table: mean_of_parts(intersections_over_unions(t, w)) for table in tables]
    found = np.stack(bootstrap_together(scores, pictures, 0, 1000))
    contained = (found[:, 0] <= truth) & (truth <= found[:, 1])
    assert 0.93 <= contained.mean() <= 0.97
