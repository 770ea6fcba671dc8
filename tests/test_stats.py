"""Bootstrap intervals: their algebra, and that 95 % means 95 %."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.stats import Interval, bootstrap, bootstrap_difference, bootstrap_mean

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(values, seeds)
def test_the_interval_is_ordered_and_lies_within_the_values(sample: list[float], seed: int) -> None:
    low, high = bootstrap_mean(sample, seed, draws=50)
    assert low <= high
    slack = 1e-9 * (1 + max(map(abs, sample)))
    assert min(sample) - slack <= low
    assert high <= max(sample) + slack


@settings(deadline=None)
@given(values, seeds, st.integers(1, 200), st.integers(1, 60))
def test_the_chunk_size_moves_no_number(
    sample: list[float], seed: int, chunk_values: int, draws: int
) -> None:
    whole = bootstrap_mean(sample, seed, draws=draws)
    assert bootstrap_mean(sample, seed, draws=draws, chunk_values=chunk_values) == whole


@settings(deadline=None)
@given(values, seeds, st.integers(-8, 8))
def test_values_in_another_unit_give_the_interval_in_that_unit(
    sample: list[float], seed: int, power: int
) -> None:
    low, high = bootstrap_mean(sample, seed, draws=50)
    scale = 2.0**power  # exact in binary, so that equality holds and not only closeness
    scaled = bootstrap_mean(np.asarray(sample) * scale, seed, draws=50)
    assert scaled == pytest.approx((low * scale, high * scale), rel=1e-12, abs=1e-300)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(2, 40), seeds)
def test_constant_values_give_an_interval_of_no_width_at_the_mean(
    value: float, count: int, seed: int
) -> None:
    low, high = bootstrap_mean([value] * count, seed, draws=20)
    assert low == high == pytest.approx(value)


def test_the_seed_decides_and_nothing_else_does() -> None:
    sample = np.random.default_rng(0).normal(size=50)
    np.random.seed(1)
    first = bootstrap_mean(sample, seed=7)
    np.random.seed(2)
    assert bootstrap_mean(sample, seed=7) == first
    assert bootstrap_mean(sample, seed=8) != first


def test_one_picture_gives_its_own_value_twice() -> None:
    assert bootstrap_mean([0.3], seed=0) == Interval(0.3, 0.3)


def test_a_higher_level_gives_a_wider_interval_and_more_pictures_a_narrower_one() -> None:
    sample = np.random.default_rng(3).normal(size=400)
    wide, narrow = bootstrap_mean(sample, 0, level=0.99), bootstrap_mean(sample, 0, level=0.8)
    assert wide.low < narrow.low < sample.mean() < narrow.high < wide.high
    few = bootstrap_mean(sample[:40], 0, level=0.8)
    assert few.high - few.low > narrow.high - narrow.low


def test_hits_and_misses_may_be_truth_values() -> None:
    hits = np.array([True, False, True, True])
    assert bootstrap_mean(hits, 0) == bootstrap_mean(hits.astype(float), 0)


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ([], "n > 0"),
        ([[1.0, 2.0]], r"\[n\]"),
        (3.0, r"\[n\]"),
        ([1.0, float("nan")], "finite"),
        ([1.0, float("inf")], "finite"),
    ],
)
def test_values_without_a_mean_are_refused(sample: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bootstrap_mean(sample, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"level": 0.0}, {"level": 1.0}, {"level": 95.0}])
def test_draws_and_level_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and level between"):
        bootstrap_mean([1.0, 2.0], seed=0, **wrong)  # type: ignore[arg-type]


def test_the_interval_is_close_to_the_normal_one_where_that_is_exact() -> None:
    sample = np.random.default_rng(5).normal(size=1000)
    half = 1.96 * sample.std() / np.sqrt(sample.size)
    expected = (sample.mean() - half, sample.mean() + half)
    assert bootstrap_mean(sample, 0) == pytest.approx(expected, abs=half / 10)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_about_95_of_100_intervals_contain_the_truth(share: float) -> None:
    generator = np.random.default_rng(11)
    contained = 0
    for trial in range(600):
        hits = generator.random(150) < share
        low, high = bootstrap_mean(hits, seed=trial, draws=300)
        contained += low <= share <= high
    # 600 trials of a true 95 % stray by 0.9 % (one standard deviation); the percentile interval of
    # 150 hits and misses is itself a little short of 95 %.
    assert 0.92 <= contained / 600 <= 0.975


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1), seeds)
def test_a_paired_interval_is_that_of_the_differences_and_turns_round_with_them(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    first, second = np.array(pairs).T
    low, high = bootstrap_difference(first, second, seed, draws=50)
    assert (low, high) == bootstrap_mean(first - second, seed, draws=50)
    turned = bootstrap_difference(second, first, seed, draws=50)
    assert turned == pytest.approx((-high, -low), abs=1e-9)


@settings(deadline=None)
@given(values, seeds)
def test_pictures_with_a_scene_each_are_drawn_as_ever_to_the_bit(
    sample: list[float], seed: int
) -> None:
    alone = bootstrap_mean(sample, seed, draws=50)
    names = [f"scene {place}" for place in range(len(sample))][::-1]
    assert bootstrap_mean(sample, seed, draws=50, clusters=names) == alone
    weighed = [
        bootstrap(
            lambda weights: weights @ np.array(sample), len(sample), seed, 50, clusters=clusters
        )
        for clusters in (None, names)
    ]
    assert weighed[0] == weighed[1]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-99, 99), min_size=1, max_size=4), min_size=2, max_size=9))
def test_scenes_are_drawn_with_all_their_pictures(scenes: list[list[int]]) -> None:
    sample = np.concatenate(scenes) / 8
    clusters = np.repeat(np.arange(len(scenes)), [len(scene) for scene in scenes])
    drawn = np.random.default_rng(3).integers(0, len(scenes), (2000, len(scenes)))[:40]
    if len(sample) > len(scenes):
        means = [np.mean(np.concatenate([scenes[one] for one in row])) / 8 for row in drawn]
        expected = tuple(np.quantile(means, [0.025, 0.975]))
        found = bootstrap_mean(sample, 3, draws=40, clusters=clusters)
        assert found == pytest.approx(expected)
        cut = bootstrap_mean(sample, 3, draws=40, clusters=clusters, chunk_values=5)
        assert cut == found, "the chunk size moves no number"


def test_neither_the_names_of_scenes_nor_the_order_of_their_pictures_matter() -> None:
    sample = np.random.default_rng(0).normal(size=6)
    first = bootstrap_mean(sample, 0, draws=20, clusters=[0, 0, 1, 1, 2, 2])
    names = ["z", "z", "a", "a", "m", "m"]
    assert bootstrap_mean(sample, 0, draws=20, clusters=names) == first
    order = [0, 2, 1, 4, 3, 5]
    mixed = bootstrap_mean(sample[order], 0, draws=20, clusters=[0, 1, 0, 2, 1, 2])
    assert mixed == pytest.approx(first)


def test_of_one_scene_pictures_are_drawn_and_clusters_of_another_length_are_refused() -> None:
    alone = bootstrap_mean([1.0, 2.0, 3.0], 0)
    assert bootstrap_mean([1.0, 2.0, 3.0], 0, clusters=["one"] * 3) == alone
    with pytest.raises(ValueError, match=r"clusters must be \[3\], not \[2\]"):
        bootstrap_mean([1.0, 2.0, 3.0], 0, clusters=[0, 1])


def test_about_95_of_100_intervals_over_scenes_contain_the_truth_and_over_frames_fewer() -> None:
    generator = np.random.default_rng(12)
    scenes = np.repeat(np.arange(40), 5)
    contained = {"scenes": 0, "frames": 0}
    for trial in range(400):
        sample = np.repeat(generator.normal(size=40), 5) + 0.1 * generator.normal(size=200)
        for name, clusters in (("scenes", scenes), ("frames", None)):
            low, high = bootstrap_mean(sample, trial, draws=300, clusters=clusters)
            contained[name] += low <= 0 <= high
    assert 0.9 <= contained["scenes"] / 400 <= 0.98
    assert contained["frames"] / 400 < 0.7


def test_a_difference_over_scenes_is_that_of_the_differences() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 12))
    scenes = np.repeat([0, 1, 2], 4)
    found = bootstrap_difference(first, second, 1, clusters=scenes)
    assert found == bootstrap_mean(first - second, 1, clusters=scenes)


def test_pairing_takes_out_what_makes_a_picture_hard_for_both() -> None:
    random = np.random.default_rng(0)
    hard, better = random.normal(0, 10, size=200), random.normal(1, 0.1, size=200)
    paired = bootstrap_difference(hard + better, hard, seed=0)
    assert 0.9 < paired.low < paired.high < 1.1
    alone = bootstrap_mean(hard + better, seed=0)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_unequal_lengths_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="the same pictures"):
        bootstrap_difference([1.0, 2.0], [1.0], seed=0)
