from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.probes import ranking
from harness.probes.ranking import average_precision, precision_at, ranked, ranks

Case = tuple[list[int], list[int], list[int]]


@st.composite
def rankings(draw: st.DrawFn) -> Case:
    """An order of places, some of them positive (at least one) and others ignored."""
    count = draw(st.integers(1, 25))
    order = draw(st.permutations(range(count)))
    kinds = draw(st.lists(st.sampled_from("+-? "), min_size=count, max_size=count))
    kinds[draw(st.integers(0, count - 1))] = "+"
    positive, ignored = ([p for p, k in enumerate(kinds) if k == kind] for kind in "+?")
    return order, positive, ignored


def literally(order: list[int], positive: list[int], ignored: list[int]) -> float:
    """The area under the precision-recall curve as the definition has it: rank by rank, a
    trapezoid wherever recall grows."""
    left = [place for place in order if place not in ignored]
    recall, precision, found, area = 0.0, 1.0, 0, 0.0
    for seen, place in enumerate(left, 1):
        if place in positive:
            found += 1
            higher, now = found / len(positive), found / seen
            area += np.trapezoid([precision, now], [recall, higher])
            recall = higher
        precision = found / seen
    return area


@settings(max_examples=300, deadline=None)
@given(rankings())
def test_average_precision_is_the_area_under_precision_over_recall(case: Case) -> None:
    order, positive, ignored = case
    found = ranks(np.array(order), positive, ignored)
    assert average_precision(found, len(positive)) == pytest.approx(literally(*case))


@settings(max_examples=200, deadline=None)
@given(rankings(), st.integers(1, 12))
def test_precision_counts_positives_up_to_k_or_to_the_last_of_them(case: Case, k: int) -> None:
    order, positive, ignored = case
    left = [place for place in order if place not in ignored]
    last = max(left.index(place) for place in positive) + 1
    first = left[: min(k, last)]
    expected = sum(place in positive for place in first) / len(first)
    assert precision_at(ranks(np.array(order), positive, ignored), k) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(rankings(), st.randoms(use_true_random=False))
def test_where_the_ignored_stand_moves_nothing(case: Case, random: object) -> None:
    order, positive, ignored = case
    elsewhere = [place for place in order if place not in ignored]
    for place in ignored:
        elsewhere.insert(random.randint(0, len(elsewhere)), place)  # type: ignore[attr-defined]
    here, there = (ranks(np.array(each), positive, ignored) for each in (order, elsewhere))
    np.testing.assert_array_equal(here, there)


def test_average_precision_of_worked_examples() -> None:
    assert average_precision(np.array([0, 1, 2]), 3) == 1
    # 1, then from 1/2 to 2/3
    assert average_precision(np.array([0, 2]), 2) == pytest.approx((1 + 7 / 12) / 2)
    # the first at rank 3 of 1: from 0 to 1/4
    assert average_precision(np.array([3]), 1) == pytest.approx(1 / 8)
    # one of two was never found
    assert average_precision(np.array([0]), 2) == pytest.approx(1 / 2)


def test_measures_of_nothing_are_refused() -> None:
    none = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="0 ranks of 2"):
        average_precision(none, 2)
    with pytest.raises(ValueError, match="2 ranks of 1"):
        average_precision(np.array([0, 1]), 1)
    with pytest.raises(ValueError, match="with 0 positives"):
        precision_at(none, 5)
    with pytest.raises(ValueError, match="precision at 0"):
        precision_at(np.array([0]), 0)


def test_the_more_similar_come_first_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(5, 16, generator=generator))
    gallery = torch.nn.functional.normalize(torch.randn(50, 16, generator=generator))
    order = ranked(queries, gallery)
    similar = (queries.double() @ gallery.double().T).numpy()
    for query in range(5):
        assert sorted(order[query]) == list(range(50))
        assert (np.diff(similar[query, order[query]]) <= 1e-7).all()
    monkeypatch.setattr(ranking, "_VECTORS", 7)
    np.testing.assert_array_equal(ranked(queries, gallery), order)


def test_of_equally_similar_places_the_lowest_comes_first() -> None:
    generator = torch.Generator().manual_seed(1)
    gallery = torch.nn.functional.normalize(torch.randn(3, 32, generator=generator))
    gallery = gallery[torch.tensor([2, 0, 1, 0, 2, 1, 1, 0, 2])]
    order = ranked(gallery[1:2], gallery)[0].tolist()
    assert order[:3] == [1, 3, 7]
    assert sorted(order[3:6]) == order[3:6] and sorted(order[6:]) == order[6:]
    nothing = torch.zeros(1, 32)
    assert ranked(nothing, gallery)[0].tolist() == list(range(9))
