"""Position embeddings at other sizes than the stored one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from harness.backbone.position import PositionRule, resample

TIMM = PositionRule()
DINOV2 = PositionRule(antialias=False, offset=0.1)
grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
rules = st.builds(PositionRule, st.booleans(), st.sampled_from([0.0, 0.1]))


def embedding(grid: tuple[int, int], width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, grid[0] * grid[1], width, generator=generator)


@given(grids, rules)
def test_at_the_stored_grid_nothing_changes(grid: tuple[int, int], rule: PositionRule) -> None:
    stored = embedding(grid)
    assert torch.equal(resample(stored, grid, grid, rule), stored)


@given(grids, grids)
def test_timms_rule_equals_timm(stored: tuple[int, int], grid: tuple[int, int]) -> None:
    given_ = embedding(stored)
    theirs = resample_abs_pos_embed(
        given_, new_size=list(grid), old_size=list(stored), num_prefix_tokens=0
    )
    assert torch.equal(resample(given_, stored, grid, TIMM), theirs)


@given(grids, grids, rules)
def test_any_grid_gives_one_position_for_each_patch(
    stored: tuple[int, int], grid: tuple[int, int], rule: PositionRule
) -> None:
    given_ = embedding(stored)
    result = resample(given_, stored, grid, rule)
    assert result.shape == (1, grid[0] * grid[1], 3)
    assert result.dtype == given_.dtype
    assert bool(torch.isfinite(result).all())


def cubic_weights(size: int, target: int, scale: float) -> np.ndarray:
    """Bicubic interpolation along one axis, as a matrix ``[target, size]``: Keys' kernel with
    a = -0.75, edges repeated, centres aligned: source = (i + 1/2) / scale - 1/2."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((target, size))
    for i in range(target):
        centre = (i + 0.5) / scale - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(tap, 0), size - 1)] += kernel(centre - tap)
    return matrix


@pytest.mark.parametrize("grid", [(5, 11), (16, 16), (7, 8), (3, 3), (9, 7)])
def test_with_an_offset_the_scale_itself_decides_where_positions_are_read(
    grid: tuple[int, int],
) -> None:
    stored = (7, 7)
    plane = embedding(stored).reshape(*stored, 3).double().numpy()
    rows, columns = (
        cubic_weights(old, new, (new + 0.1) / old) for old, new in zip(stored, grid, strict=True)
    )
    by_hand = np.einsum("ir,jc,rcd->ijd", rows, columns, plane).reshape(1, -1, 3)
    ours = resample(embedding(stored), stored, grid, DINOV2)
    np.testing.assert_allclose(ours.numpy(), by_hand, atol=1e-5)
    without = resample(embedding(stored), stored, grid, PositionRule(False, 0.0))
    assert (ours - without).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(5, 11), (16, 16), (3, 3)])
def test_with_an_offset_it_is_the_official_interpolate(grid: tuple[int, int]) -> None:
    # dinov2/models/vision_transformer.py, interpolate_pos_encoding
    plane = embedding((7, 7)).reshape(1, 7, 7, 3).permute(0, 3, 1, 2)
    scale = (float(grid[0] + 0.1) / 7, float(grid[1] + 0.1) / 7)
    official = F.interpolate(plane, scale_factor=scale, mode="bicubic", antialias=False)
    official = official.permute(0, 2, 3, 1).reshape(1, -1, 3)
    assert torch.equal(resample(embedding((7, 7)), (7, 7), grid, DINOV2), official)


def test_rows_stay_rows_on_a_rectangle() -> None:
    # An embedding that names its row and its column must still name them, in order.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    stored = torch.stack((rows, columns), dim=-1).reshape(1, 36, 2)
    for rule in (TIMM, DINOV2):
        result = resample(stored, (6, 6), (3, 9), rule).reshape(3, 9, 2)
        assert bool((result[1:, :, 0] > result[:-1, :, 0]).all())
        assert bool((result[:, 1:, 1] > result[:, :-1, 1]).all())
        torch.testing.assert_close(result[:, 0, 0], result[:, 8, 0])


def test_antialiasing_matters_when_the_grid_shrinks() -> None:
    stored = embedding((8, 8))
    plain, smooth = PositionRule(False, 0.0), PositionRule(True, 0.0)
    down = [resample(stored, (8, 8), (4, 4), rule) for rule in (plain, smooth)]
    assert not torch.allclose(*down, atol=1e-2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_positions_are_resampled_in_float32(kind: torch.dtype) -> None:
    stored = embedding((7, 7)).to(kind)
    exact = resample(stored.float(), (7, 7), (4, 9), DINOV2)
    assert torch.equal(resample(stored, (7, 7), (4, 9), DINOV2), exact.to(kind))
