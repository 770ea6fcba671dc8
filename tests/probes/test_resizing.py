from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from harness.probes import resizing
from harness.probes.resizing import class_map


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([1, 300, 2**20]),
    st.integers(0, 2**32 - 1),
)
def test_a_few_classes_at_a_time_give_the_map_of_all(
    classes: int, grid: tuple[int, int], size: tuple[int, int], floats: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few whole numbers, so that classes are level and the lowest is to win.
    scores = torch.randint(3, (2, classes, *grid), generator=generator).float()
    larger = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "_MAPS", floats)
        found, unresized = class_map(scores, size), class_map(scores, grid)
    # What a resize rounds depends on how much it is given: of level classes either may come out.
    there = larger.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(there, larger.amax(1), rtol=0, atol=1e-6)
    assert torch.equal(unresized, scores.argmax(1)), "of level classes the lowest"


def test_a_large_map_needs_no_memory_for_all_classes() -> None:
    scores = torch.randn(1, 30, 4, 5, generator=torch.Generator().manual_seed(0))
    scores[:, 7] -= 9  # wins nowhere, and need not be resized
    tallest: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "_MAPS", 40_000)
        whole = resizing.resized
        patch.setattr(resizing, "resized", lambda maps, size: _noted(whole(maps, size), tallest))
        found = class_map(scores, (100, 90))
    assert max(tallest) <= 40_000 and sum(tallest) == 29 * 100 * 90
    larger = functional.interpolate(scores, (100, 90), mode="bilinear", align_corners=False)
    assert torch.equal(found, larger.argmax(1))


def _noted(maps: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    sizes.append(maps.numel())
    return maps
