"""Neighbours among vectors in blocks are those among all, for any block, with ties and few."""

from __future__ import annotations

import pytest
import torch
from blocked import InMemory
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.probes.blocked_neighbours import BlockedIndex
from harness.probes.neighbours import Approximate, NeighbourIndex, judge, sampled


def unit(count: int, width: int, seed: int, distinct: int) -> torch.Tensor:
    """So many vectors, of which only ``distinct`` differ."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.nn.functional.normalize(torch.randn(distinct, width, generator=generator))
    return found[torch.randint(distinct, (count,), generator=generator)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 120),
    block=st.integers(1, 130),
    width=st.integers(1, 12),
    distinct=st.integers(1, 120),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_block_finds_what_the_whole_finds(
    count: int, block: int, width: int, distinct: int, seed: int, data: st.DataObject
) -> None:
    vectors, queries = unit(count, width, seed, distinct), unit(9, width, seed, distinct)
    k = data.draw(st.integers(1, count))  # often more than a block
    whole = NeighbourIndex(vectors).search(queries, k)
    blocked = BlockedIndex(InMemory(vectors), block).search(queries, k)
    assert torch.equal(whole.places, blocked.places)
    assert torch.equal(whole.similarities, blocked.similarities)


@settings(max_examples=25, deadline=None)
@given(block=st.integers(1, 300), probes=st.integers(1, 12), seed=st.integers(0, 9))
def test_cells_that_are_filled_in_blocks_find_what_cells_of_the_whole_find(
    block: int, probes: int, seed: int
) -> None:
    vectors, queries = unit(250, 8, seed, 200), unit(20, 8, seed, 200)
    settings_ = Approximate(12, probes)
    whole = NeighbourIndex(vectors, approximate=settings_).search(queries, 20)
    blocked = BlockedIndex(InMemory(vectors), block, approximate=settings_).search(queries, 20)
    assert torch.equal(whole.places, blocked.places)
    assert torch.equal(whole.similarities, blocked.similarities)


def test_cells_are_trained_on_a_sample_that_is_always_the_same() -> None:
    assert sampled(1_000, 30).tolist() == list(range(1_000))
    many = sampled(14_197_122, 3_768)
    assert len(many) == 64 * 3_768 and (many[1:] > many[:-1]).all()
    assert (many == sampled(14_197_122, 3_768)).all()


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, 80), asked=st.integers(1, 40))
def test_votes_are_the_same_though_a_class_is_missing_from_most_blocks(
    block: int, asked: int
) -> None:
    vectors, queries = unit(70, 6, 3, 70), unit(31, 6, 4, 31)
    labels = torch.arange(70) // 10  # classes in turn: a block has one or two
    truth = torch.arange(31) % 8  # the last is in no block
    ks = (1, 5, 20)
    whole = judge(NeighbourIndex(vectors), labels, 8, queries, truth, ks, 0.07)
    index = BlockedIndex(InMemory(vectors), block)
    index.at_once = asked
    blocked = judge(index, labels, 8, InMemory(queries), truth, ks, 0.07)
    for k in ks:
        assert torch.equal(whole[k].rank, blocked[k].rank)
        assert torch.equal(whole[k].predicted, blocked[k].predicted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("approximate", [None, Approximate(30, 4)])
def test_blocks_on_a_gpu_find_what_the_whole_finds_there(approximate: Approximate | None) -> None:
    vectors, queries = unit(3_000, 32, 0, 2_000), unit(700, 32, 0, 2_000)
    whole = NeighbourIndex(vectors, "cuda", approximate).search(queries, 50)
    blocked = BlockedIndex(InMemory(vectors), 512, "cuda", approximate).search(queries, 50)
    assert torch.equal(whole.places, blocked.places)
    assert torch.equal(whole.similarities, blocked.similarities)


def test_more_neighbours_than_there_are_vectors_are_refused() -> None:
    index = BlockedIndex(InMemory(unit(5, 3, 0, 5)), 2)
    with pytest.raises(ValueError, match="k 6: from 1 to 5"):
        index.search(unit(1, 3, 0, 1), 6)
