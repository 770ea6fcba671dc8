from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.probes import neighbours as module
from harness.probes.neighbours import (
    MOST,
    Approximate,
    NeighbourIndex,
    Neighbours,
    _flat,
    _Part,
    judge,
    votes,
)


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features, dim=1)


def drawn(count: int, width: int, seed: int) -> torch.Tensor:
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def plainly(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> Neighbours:
    """Every pair compared; sorted by falling similarity, then by rising place."""
    similarities = (queries.double() @ vectors.double().T).float()
    order = np.lexsort(
        (np.broadcast_to(np.arange(len(vectors)), similarities.shape), -similarities.numpy())
    )
    places = torch.from_numpy(order[:, :k].copy())
    return Neighbours(similarities.gather(1, places), places)


def same(found: Neighbours, expected: Neighbours) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_probabilities_are_those_of_the_official_code(shared_reference: Path) -> None:
    with np.load(shared_reference / "knn_reference.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    index = NeighbourIndex(unit(arrays["train_features"]))
    found = index.search(unit(arrays["test_features"]), 200)
    ks = []
    for k, total in votes(found, arrays["train_labels"], 20, (200, 10, 100, 20), 0.07):
        np.testing.assert_allclose(total, arrays[f"probability_k{k}"], rtol=0, atol=1e-5)
        hits = total.argmax(1) == arrays["test_labels"]
        assert 100 * hits.double().mean().item() == pytest.approx(arrays[f"top1_k{k}"].item())
        ks.append(k)
    assert ks == [10, 20, 100, 200]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 150), st.integers(1, 3), st.integers(1, 150), st.integers(0, 3), st.integers(0)
)
def test_neighbours_are_the_definitions_with_ties_by_lowest_place(
    count: int, width: int, k: int, spread: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    shape = count + 20, width
    # Few whole numbers in few dimensions: most vectors are there several times, some are 0.
    numbers = torch.randint(-spread, spread + 1, shape, generator=generator).float()
    vectors, queries = unit(numbers[:count]), unit(numbers[count:])
    k = min(k, count)
    assert same(NeighbourIndex(vectors).search(queries, k), plainly(vectors, queries, k))


def test_of_a_thousand_equal_vectors_the_first_are_taken() -> None:
    vectors = unit(torch.ones(1000, 48))
    found = NeighbourIndex(vectors).search(vectors[:3], 200)
    assert torch.equal(found.places, torch.arange(200).expand(3, -1))


@pytest.mark.parametrize("size", [5000, 4096])
def test_ties_reach_over_the_blocks_that_are_compared_at_a_time(size: int) -> None:
    vectors = drawn(size, 8, 0)
    equal = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:300]
    vectors[equal] = vectors[7].clone()
    queries = torch.cat([vectors[7:8], drawn(3, 8, 2)])
    found = NeighbourIndex(vectors).search(queries, 100)
    assert same(found, plainly(vectors, queries, 100))
    assert found.similarities[0].unique().numel() == 1, "the case has no tie: it shows nothing"


def test_without_ties_the_candidates_of_faiss_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = drawn(20_000, 384, 0), drawn(30, 384, 1)
    monkeypatch.delattr(_Part, "_among_all")
    found = NeighbourIndex(vectors).search(queries, 200)
    assert same(found, plainly(vectors, queries, 200))


def test_the_order_of_the_vectors_moves_nothing() -> None:
    vectors, queries = drawn(3000, 48, 0), drawn(100, 48, 1)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(2))
    found = NeighbourIndex(vectors).search(queries, 200)
    permuted = NeighbourIndex(vectors[order]).search(queries, 200)
    assert same(Neighbours(permuted.similarities, order[permuted.places]), found)


def test_queries_are_answered_alike_alone_and_together() -> None:
    vectors, queries = drawn(3000, 48, 3), drawn(70, 48, 4)
    index = NeighbourIndex(vectors)
    together = index.search(queries, 50)
    for size in (1, 7, 64):
        parts = [index.search(some, 50) for some in queries.split(size)]
        assert same(Neighbours(*map(torch.cat, zip(*parts, strict=True))), together)


def test_parts_of_the_vectors_find_what_the_whole_does() -> None:
    """As vectors shared out over several GPUs, one of which has fewer than k."""
    vectors, queries = drawn(500, 16, 5), drawn(20, 16, 6)
    vectors[100:300] = vectors[0]
    whole, shared = NeighbourIndex(vectors), NeighbourIndex(vectors)
    shared._parts = [
        _Part(piece, start, _flat(piece))
        for start, piece in zip((0, 240, 480), vectors.split(240), strict=True)
    ]
    assert same(shared.search(queries, 60), whole.search(queries, 60))


def test_an_inverted_file_of_which_all_is_searched_finds_everything() -> None:
    vectors, queries = drawn(2000, 16, 7), drawn(50, 16, 8)
    found = NeighbourIndex(vectors, approximate=Approximate(20, 20)).search(queries, 20)
    exact = NeighbourIndex(vectors).search(queries, 20)
    # 8 bits a number can misplace candidates about the last one; what is found is told exactly.
    agree = found.places == exact.places
    assert agree.float().mean() > 0.9
    assert torch.equal(found.similarities[agree], exact.similarities[agree])
    assert (found.similarities.diff(dim=1) <= 0).all()


def test_an_inverted_file_finds_less_where_less_is_searched() -> None:
    vectors, queries = drawn(2000, 16, 9), drawn(50, 16, 10)
    exact = NeighbourIndex(vectors).search(queries, 20)
    shares = []
    for probes in (1, 5, 20):
        index = NeighbourIndex(vectors, approximate=Approximate(20, probes))
        found = index.search(queries, 20)
        shares.append(np.mean([np.isin(*pair).mean() for pair in zip(found[1], exact[1])]))  # noqa: B905
    assert shares[0] < shares[1] < shares[2]


def test_where_the_cells_searched_hold_too_few_all_vectors_are_compared() -> None:
    vectors, queries = drawn(300, 16, 11), drawn(10, 16, 12)
    found = NeighbourIndex(vectors, approximate=Approximate(30, 1)).search(queries, 200)
    assert same(found, NeighbourIndex(vectors).search(queries, 200))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.integers(0))
def test_votes_are_what_one_hot_vectors_give(q: int, most: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    similarities = torch.rand(q, most, generator=generator).sort(descending=True).values
    places = torch.randint(0, 30, (q, most), generator=generator)
    labels = torch.randint(0, classes, (30,), generator=generator)
    weights = (similarities.double() / 0.07).softmax(1)
    one_hot = torch.nn.functional.one_hot(labels[places], classes) * weights[:, :, None]
    ks = sorted({1, (most + 1) // 2, most})
    for k, total in votes(Neighbours(similarities, places), labels, classes, ks, 0.07):
        torch.testing.assert_close(total, one_hot[:, :k].sum(1), rtol=1e-12, atol=1e-12)


def test_equal_votes_and_none_go_to_the_lowest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    labels, queries = torch.tensor([3, 1, 4]), vectors[:1].expand(6, -1)
    monkeypatch.setattr(module, "QUERIES", 4)
    found = judge(NeighbourIndex(vectors), labels, 6, queries, torch.arange(6), [2], 0.07)[2]
    assert found.predicted.tolist() == [1] * 6
    assert found.rank.tolist() == [2, 0, 3, 1, 4, 5]  # 1 and 3 tie; then 0, 2, 4, 5 without a vote


@pytest.mark.parametrize("k", [0, 4, MOST + 1])
def test_more_neighbours_than_there_are_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"k {k}: from 1 to 3"):
        NeighbourIndex(drawn(3, 4, 0)).search(drawn(1, 4, 1), k)


def test_a_vote_of_more_neighbours_than_were_found_is_an_error() -> None:
    found = NeighbourIndex(drawn(9, 4, 0)).search(drawn(1, 4, 1), 3)
    with pytest.raises(ValueError, match="from 1 to the 3 neighbours"):
        list(votes(found, torch.zeros(9, dtype=torch.int64), 1, [2, 4], 0.07))


@pytest.mark.parametrize("size", [7, 100, 3000])
def test_without_faiss_on_the_gpu_products_find_the_same(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MULTIPLIED", size)
    vectors, queries = drawn(3000, 48, 13), drawn(100, 48, 14)
    vectors[100:400] = vectors[0]
    queries[0] = vectors[0]
    part = _Part(vectors, 0, module.flat_by_products(vectors))
    assert same(part.nearest(queries, 200), plainly(vectors, queries, 200))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("approximate", [None, Approximate(20, 20)])
def test_a_gpu_finds_what_the_cpu_does(approximate: Approximate | None) -> None:
    vectors, queries = drawn(3000, 48, 13), drawn(100, 48, 14)
    vectors[100:400] = vectors[0]
    queries[0] = vectors[0]
    on_cpu = NeighbourIndex(vectors, "cpu", approximate).search(queries, 200)
    on_gpu = NeighbourIndex(vectors, "cuda", approximate).search(queries, 200)
    if approximate is None:
        assert same(on_gpu, on_cpu)
    else:
        assert (on_gpu.places == on_cpu.places).float().mean() > 0.9
