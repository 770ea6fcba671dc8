"""Scores made of columns: their algebra under resampling, and average precision by definition."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from harness.aggregates import AGGREGATES, complete, difference, find, score, values
from harness.errors import HarnessError
from harness.stats import bootstrap, bootstrap_difference, bootstrap_mean

ELEVEN, AREA = "mean_average_precision_11_point", "mean_average_precision_area"
IOU, ACCURACY, PIXELS = "mean_intersection_over_union", "mean_class_accuracy", "pixel_accuracy"
MEDIAN = "median_rank"
Columns = list[NDArray[np.generic]]


@st.composite
def rankings(draw: st.DrawFn, draws: int = 1) -> Columns:
    """Scores with ties, and what three classes are present, absent or unclear in."""
    count = draw(st.integers(1, 25))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([2, 5, 1000]))
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (count, 3 * draws)).astype(np.float32) / 7
    return [scores, generator.choice([1, 0, 0, -1], (count, 3)).astype(np.int8)]


@st.composite
def counts(draw: st.DrawFn, draws: int = 1) -> Columns:
    """Pixels of four classes, some of which no picture shows and some of which none predicts."""
    count = draw(st.integers(1, 25))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shown, said = (generator.random((2, 1, 4)) < 0.8).astype(np.int64)
    labelled = generator.integers(0, 100, (count, 4)) * shown
    predicted = np.tile(generator.integers(0, 100, (count, 4)) * said, draws)
    predicted += generator.integers(0, 3, (count, 4 * draws)) * (predicted > 0)
    most = np.minimum(predicted, np.tile(labelled, draws))
    return [generator.integers(0, most + 1), predicted, labelled]


@st.composite
def columns_of(draw: st.DrawFn, name: str) -> Columns:
    if name in (IOU, ACCURACY, PIXELS):
        return draw(counts(draws=draw(st.integers(1, 2))))
    if name == "mean":
        return [np.array(draw(st.lists(st.integers(-50, 50), min_size=1, max_size=25))) / 8]
    if name == MEDIAN:
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        shape = draw(st.sampled_from([(1,), (7,), (1, 1), (12, 3)]))
        ranks = generator.integers(0, 9, shape)
        ranks.flat[0] = 1  # there is one at least
        return [ranks]
    return draw(rankings(draws=draw(st.integers(1, 2))))


def eleven_points(scores: Sequence[float], present: Sequence[int]) -> float:
    """VOC2007's definition word by word, in fractions; cut only between unequal scores."""
    ranked = [(s, p) for s, p in zip(scores, present, strict=True) if p != -1]
    total = sum(p for _, p in ranked)
    curve = []
    for level in {s for s, _ in ranked}:
        above = [p for s, p in ranked if s >= level]
        curve.append((Fraction(sum(above), total), Fraction(sum(above), len(above))))
    highest = [
        max((precision for recall, precision in curve if recall >= Fraction(tenth, 10)), default=0)
        for tenth in range(11)
    ]
    return float(sum(highest, Fraction(0)) / 11)


def area(scores: Sequence[float], present: Sequence[int]) -> float:
    known = np.asarray(present) != -1
    return float(
        average_precision_score(np.asarray(present)[known] == 1, np.asarray(scores)[known])
    )


@pytest.mark.parametrize(("name", "literal"), [(ELEVEN, eleven_points), (AREA, area)])
@settings(deadline=None)
@given(data=st.data())
def test_each_classs_average_precision_is_the_literal_one(
    name: str, literal: object, data: st.DataObject
) -> None:
    scores, present = data.draw(rankings())
    for found, own, shown in zip(values(name, [scores, present]), scores.T, present.T, strict=True):
        if (shown == 1).any():
            assert found == pytest.approx(literal(own.tolist(), shown.tolist()), abs=1e-12)  # type: ignore[operator]
        else:
            assert np.isnan(found)


def test_a_worked_example() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]], np.float32)
    present = np.array([[1], [-1], [0], [1], [0]], np.int8)
    # Precision is 1 at recall 1/2 and 2/3 at recall 1: six recalls up to 0.5, five above.
    assert values(ELEVEN, [scores, present]) == pytest.approx([(6 + 5 * 2 / 3) / 11])
    assert values(AREA, [scores, present]) == pytest.approx([(1 + 2 / 3) / 2])


def test_a_recall_of_three_in_ten_is_the_recall_0_3() -> None:
    present = np.array([[1]] * 3 + [[0]] * 90 + [[1]] * 7, np.int8)
    scores = -np.arange(100, dtype=np.float32)[:, None]
    # Recalls 0 to 0.3 have precision 1, those above at most 10 %, which the last picture has.
    assert values(ELEVEN, [scores, present]) == pytest.approx([(4 + 7 * 0.1) / 11])


@pytest.mark.parametrize("name", AGGREGATES)
@settings(deadline=None)
@given(data=st.data())
def test_weights_count_a_picture_as_often_as_if_it_were_repeated(
    name: str, data: st.DataObject
) -> None:
    columns = data.draw(columns_of(name))
    count = len(columns[0])
    drawn = st.lists(st.integers(0, count - 1), min_size=count, max_size=count)
    chosen = data.draw(st.lists(drawn, min_size=1, max_size=4))
    weights = np.stack([np.bincount(rows, minlength=count) for rows in chosen])
    weighted = find(name)(columns, weights)
    for found, rows in zip(weighted, chosen, strict=True):
        np.testing.assert_allclose(found, values(name, [column[rows] for column in columns]))


@pytest.mark.parametrize("name", AGGREGATES)
@settings(deadline=None)
@given(data=st.data())
def test_the_order_of_pictures_moves_nothing(name: str, data: st.DataObject) -> None:
    columns = data.draw(columns_of(name))
    order = data.draw(st.permutations(range(len(columns[0]))))
    permuted = [column[list(order)] for column in columns]
    np.testing.assert_allclose(values(name, permuted), values(name, columns))


@pytest.mark.parametrize("name", [ELEVEN, AREA])
@settings(deadline=None)
@given(data=st.data())
def test_what_ranks_alike_scores_alike(name: str, data: st.DataObject) -> None:
    scores, present = data.draw(rankings())
    alike = np.exp(scores.astype(np.float64) / 200) - 4
    np.testing.assert_allclose(values(name, [alike, present]), values(name, [scores, present]))


def test_a_perfect_ranking_is_1_and_equal_scores_are_the_share_of_positives() -> None:
    present = np.array([[1], [1], [0], [0], [0]], np.int8)
    for name in (ELEVEN, AREA):
        assert values(name, [np.array([[5], [4], [3], [2], [1]]), present]) == pytest.approx([1])
        assert values(name, [np.zeros((5, 1)), present]) == pytest.approx([2 / 5])


@pytest.mark.parametrize("name", [ELEVEN, AREA])
@given(data=st.data())
def test_of_several_draws_a_class_has_the_mean(name: str, data: st.DataObject) -> None:
    scores, present = data.draw(rankings(draws=2))
    apart = [values(name, [scores[:, part], present]) for part in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(values(name, [scores, present]), np.mean(apart, axis=0))


def test_a_class_that_no_picture_shows_is_not_in_the_mean() -> None:
    scores = np.array([[3.0, 1.0], [2.0, 5.0], [1.0, 2.0]])
    present = np.array([[0, -1], [1, 0], [0, 0]], np.int8)
    value, interval = score(ELEVEN, [scores, present], 100, seed=0)
    assert value == pytest.approx(50) and interval.low <= value <= interval.high
    none = score(ELEVEN, [scores, np.zeros((3, 2), np.int8)], 100, seed=0)
    assert np.isnan([none[0], *none[1]]).all()


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 99))
def test_a_mean_and_its_interval_are_those_of_the_values(sample: list[float], seed: int) -> None:
    column = np.array(sample)
    value, interval = score("mean", [column], 100, seed)
    assert value == (column * 100).mean() and interval == bootstrap_mean(column * 100, seed)
    value, interval = difference("mean", [column], [column[::-1]], 100, seed)
    assert value == np.mean(column * 100 - column[::-1] * 100)
    assert interval == bootstrap_difference(column * 100, column[::-1] * 100, seed)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=20), st.integers(0, 99))
def test_weights_draw_the_pictures_that_a_mean_is_drawn_of(sample: list[int], seed: int) -> None:
    column = np.array(sample)
    by_weights = bootstrap(
        lambda weights: find("mean")([column], weights)[:, 0], len(column), seed, draws=40
    )
    assert by_weights == pytest.approx(bootstrap_mean(column, seed, draws=40))


@pytest.mark.parametrize("chunk_values", [1, 7, 1000])
def test_the_chunk_size_moves_no_interval(chunk_values: int) -> None:
    generator = np.random.default_rng(0)
    columns = [generator.normal(size=(12, 3)), generator.choice([0, 1], (12, 3)).astype(np.int8)]

    def of(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.nanmean(find(ELEVEN)(columns, weights), axis=1)

    whole = bootstrap(of, 12, 3, draws=50)
    assert bootstrap(of, 12, 3, draws=50, chunk_values=chunk_values) == whole


@settings(deadline=None, max_examples=20)
@given(rankings(), st.integers(0, 99))
def test_an_interval_is_that_of_scores_of_resampled_pictures(columns: Columns, seed: int) -> None:
    assume((columns[1] == 1).any())
    value, interval = score(ELEVEN, columns, 100, seed)
    generator, count = np.random.default_rng(seed), len(columns[0])
    scores = []
    for rows in generator.integers(0, count, (2000, count))[:200]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resample in which no class has a positive
            scores.append(100 * np.nanmean(values(ELEVEN, [column[rows] for column in columns])))
    found = bootstrap(
        lambda weights: _mean_of_those_there(find(ELEVEN)(columns, weights)), count, seed, draws=200
    )
    assume(not np.isnan(scores).all())
    assert (100 * found.low, 100 * found.high) == pytest.approx(
        tuple(np.nanquantile(scores, [0.025, 0.975]))
    )
    assert value == pytest.approx(100 * np.nanmean(values(ELEVEN, columns)))
    assert 0 <= interval.low <= interval.high <= 100


def _mean_of_those_there(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean: NDArray[np.float64] = np.nanmean(parts, axis=1)
    return mean


def test_a_difference_is_paired_and_that_of_the_scores() -> None:
    generator = np.random.default_rng(0)
    present = generator.choice([0, 0, 1], (300, 4)).astype(np.int8)
    theirs = [present + generator.normal(size=(300, 4)), present]
    ours = [theirs[0] + 0.08 * (present - 0.3), present]
    value, interval = difference(ELEVEN, ours, theirs, 100, seed=5)
    apart = [score(ELEVEN, columns, 100, seed=5) for columns in (ours, theirs)]
    assert value == pytest.approx(apart[0][0] - apart[1][0])
    assert 0 < interval.low < value < interval.high
    assert apart[0][1].low < apart[1][0], "apart, the intervals do not tell the two from each other"
    turned = difference(ELEVEN, theirs, ours, 100, seed=5)
    assert (turned[0], *turned[1]) == pytest.approx((-value, -interval.high, -interval.low))


def test_a_class_that_one_of_two_lacks_is_in_neither_score() -> None:
    generator = np.random.default_rng(0)
    present = generator.choice([0, 1], (40, 3)).astype(np.int8)
    ours, theirs = (generator.normal(size=(40, 3)) for _ in range(2))
    lacking = present.copy()
    lacking[:, 1] = -1
    found = difference(AREA, [ours, present], [theirs, lacking], 1, seed=0)
    both = [0, 2]
    alone = difference(
        AREA, [ours[:, both], present[:, both]], [theirs[:, both], present[:, both]], 1, seed=0
    )
    assert (found[0], *found[1]) == pytest.approx((alone[0], *alone[1]))


@given(counts())
def test_scores_of_pixels_are_those_of_the_pixels_of_all_pictures(columns: Columns) -> None:
    together = [column.sum(axis=0).tolist() for column in columns]
    for place, (both, said, true) in enumerate(zip(*together, strict=True)):
        union = said + true - both
        expected = both / union if union else np.nan
        assert values(IOU, columns)[place] == pytest.approx(expected, nan_ok=True)
        expected = both / true if true else np.nan
        assert values(ACCURACY, columns)[place] == pytest.approx(expected, nan_ok=True)
    total = sum(together[2])
    expected = sum(together[0]) / total if total else np.nan
    assert values(PIXELS, columns) == pytest.approx([expected], nan_ok=True)


@settings(deadline=None)
@given(counts(draws=2))
def test_of_several_draws_a_class_has_the_mean_of_those_that_have_a_value(columns: Columns) -> None:
    both, said, true = columns
    apart = [[both[:, part], said[:, part], true] for part in (slice(0, 4), slice(4, 8))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that has none in either
        for name in (IOU, ACCURACY, PIXELS):
            expected = np.nanmean([values(name, one) for one in apart], axis=0)
            np.testing.assert_allclose(values(name, columns), expected)


def test_counts_beyond_what_float32_holds_are_exact() -> None:
    pixels = np.array([[2**40 + 1], [2**40 + 3]])
    weights = np.array([[3, 5]])
    (part,) = find(PIXELS)([pixels - 1, pixels, pixels], weights)[0]
    total = 3 * (2**40 + 1) + 5 * (2**40 + 3)
    assert part == (total - 8) / total


def test_an_interval_of_miou_draws_pictures_and_a_difference_is_paired() -> None:
    generator = np.random.default_rng(0)
    labelled = generator.integers(100, 1000, (60, 5))
    share = generator.uniform(0.3, 0.9, (60, 1))  # some pictures are hard for both
    theirs = [(share * labelled).astype(int), labelled, labelled]
    ours = [(share * labelled * 1.05).astype(int), labelled, labelled]
    value, interval = difference(IOU, ours, theirs, 100, seed=0)
    apart = [score(IOU, columns, 100, seed=0) for columns in (ours, theirs)]
    assert value == pytest.approx(apart[0][0] - apart[1][0])
    assert 0 < interval.low < value < interval.high < 2 * value
    assert apart[0][1].low < apart[1][1].high, "apart, the two are not told from each other"


@pytest.mark.parametrize("name", ["mean", IOU])
def test_where_pictures_share_scenes_scenes_are_drawn(name: str) -> None:
    generator = np.random.default_rng(0)
    level = np.repeat(generator.uniform(0.2, 0.8, 8), 6)
    columns: Columns = [level]
    if name == IOU:
        whole = np.full((48, 1), 1000)
        columns = [(1000 * level[:, None]).astype(int), whole, whole]
    scenes = np.repeat(np.arange(8), 6)
    alone, together = (score(name, columns, 1, 0, clusters) for clusters in (None, scenes))
    assert alone[0] == together[0]
    wide, narrow = (one[1].high - one[1].low for one in (together, alone))
    assert wide > 1.7 * narrow, "six frames of a scene say no more than one"
    other: Columns = [column * 0 if place == 0 else column for place, column in enumerate(columns)]
    assert difference(name, columns, other, 1, 0, scenes) == together
    assert score(name, columns, 1, 0, np.arange(48)) == alone


def test_pictures_without_a_value_in_any_column_are_left_out() -> None:
    one, several = np.array([1.0, np.nan, 3.0, 4.0]), np.arange(8.0).reshape(4, 2)
    several[3, 1] = np.nan
    left = complete([one, several, np.array([True, False, True, True])])
    assert [column.tolist() for column in left] == [[1, 3], [[0, 1], [4, 5]], [True, True]]


def test_no_draw_with_a_score_and_no_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="no draw of the pictures has a score"):
        bootstrap(lambda weights: np.full(len(weights), np.nan), 3, seed=0)
    with pytest.raises(ValueError, match="n > 0"):
        bootstrap(lambda weights: np.zeros(len(weights)), 0, seed=0)


def test_an_aggregate_of_another_version_is_told_by_name() -> None:
    with pytest.raises(HarnessError, match="no aggregate 'median': there are mean, mean_average"):
        find("median")


@given(columns_of(MEDIAN), st.integers(0, 2**32 - 1))
def test_a_median_rank_is_that_of_all_ranks_that_there_are(columns: Columns, seed: int) -> None:
    ranks = columns[0].astype(np.int64)
    assert values(MEDIAN, columns).tolist() == [float(np.median(ranks[ranks > 0]))]
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(ranks)))
    found = find(MEDIAN)(columns, weights)[:, 0]
    for row, median in zip(weights, found, strict=True):
        drawn = np.repeat(ranks, row, axis=0)
        drawn = drawn[drawn > 0]
        assert np.isnan(median) if not drawn.size else median == np.median(drawn)
