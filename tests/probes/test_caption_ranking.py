from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.probes import caption_ranking
from harness.probes.caption_ranking import ranks_of_own


def brute(
    queries: torch.Tensor, vectors: torch.Tensor, first: list[int], past: list[int]
) -> NDArray[np.int64]:
    """Sort everything, and look where the first of a query's own is."""
    similar = (queries.double() @ vectors.double().T).float().numpy()
    order = np.argsort(-similar, axis=1, kind="stable").tolist()
    return np.array(
        [
            next(rank for rank, place in enumerate(row) if low <= place < high)
            for row, low, high in zip(order, first, past, strict=True)
        ]
    )


def drawn(
    pictures: int, most: int, levels: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Pictures, captions, and where each picture's captions begin. Few levels make many ties."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most + 1, pictures)
    starts = [0, *np.cumsum(counts).tolist()]
    sides = [generator.integers(1, levels + 1, (n, 3)) for n in (pictures, starts[-1])]
    unit = [torch.nn.functional.normalize(torch.from_numpy(each).float()) for each in sides]
    return unit[0], unit[1], starts


@settings(deadline=None, max_examples=60)
@given(
    pictures=st.integers(1, 40),
    most=st.integers(1, 4),
    levels=st.integers(1, 6),
    near=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_ranks_are_those_of_a_full_sort_with_ties_to_the_lowest_place(
    pictures: int, most: int, levels: int, near: int, seed: int
) -> None:
    of_pictures, of_captions, starts = drawn(pictures, most, levels, seed)
    low, high = torch.tensor(starts[:-1]), torch.tensor(starts[1:])
    found = ranks_of_own(of_pictures, of_captions, low, high, near)
    assert found.tolist() == brute(of_pictures, of_captions, starts[:-1], starts[1:]).tolist()
    own = torch.repeat_interleave(torch.arange(pictures), high - low)
    back = ranks_of_own(of_captions, of_pictures, own, own + 1, near)
    expected = brute(of_captions, of_pictures, own.tolist(), (own + 1).tolist())
    assert back.tolist() == expected.tolist()


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    of_pictures, of_captions, starts = drawn(60, 3, 5, 0)
    low, high = torch.tensor(starts[:-1]), torch.tensor(starts[1:])
    whole = ranks_of_own(of_pictures, of_captions, low, high, 2)
    assert (whole >= 2).any(), "nothing is counted: the case shows little"
    monkeypatch.setattr(caption_ranking, "_QUERIES", 7)
    monkeypatch.setattr(caption_ranking, "_VECTORS", 11)
    assert ranks_of_own(of_pictures, of_captions, low, high, 2).tolist() == whole.tolist()


def test_a_query_without_its_own_is_refused() -> None:
    unit = torch.eye(3)
    with pytest.raises(ValueError, match="at least one place"):
        ranks_of_own(unit, unit, torch.tensor([0, 1, 2]), torch.tensor([1, 1, 3]), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same() -> None:
    of_pictures, of_captions, starts = drawn(300, 5, 4, 1)
    low, high = torch.tensor(starts[:-1]), torch.tensor(starts[1:])
    here, there = (
        ranks_of_own(of_pictures, of_captions, low, high, 10, device) for device in ("cpu", "cuda")
    )
    assert here.tolist() == there.tolist()
