"""Sums over patch tokens: likeness to neighbours, kinds, places, massive dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from harness.backbone.layout import Tokens
from harness.probes.anatomy_tables import positions_table, ratios, separates_at
from harness.probes.patch_anatomy import (
    COLUMNS,
    PatchAnatomy,
    border_of,
    massive_dimensions,
    neighbour_cosines,
    relative_map,
)


def tokens(patches: torch.Tensor, registers: torch.Tensor | None = None) -> Tokens:
    batch, width = patches.shape[0], patches.shape[-1]
    return Tokens(
        patches.mean((1, 2)),
        torch.zeros(batch, 0, width) if registers is None else registers,
        patches,
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_neighbours_are_the_four_beside_a_patch_that_count(
    rows: int, columns: int, masked: bool, seed: int
) -> None:
    patches = noise(2, rows, columns, 3, seed=seed)
    inside = noise(2, rows, columns, seed=seed + 1) > 0 if masked else None
    found = neighbour_cosines(patches, inside)
    for picture in range(2):
        for row in range(rows):
            for column in range(columns):
                beside = [
                    (row + down, column + across)
                    for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0))
                    if 0 <= row + down < rows and 0 <= column + across < columns
                ]
                if inside is not None:
                    own = bool(inside[picture, row, column])
                    beside = [at for at in beside if own and inside[picture][at]]
                one = patches[picture, row, column]
                values = [float(cosine_similarity(one, patches[picture][at], 0)) for at in beside]
                expected = np.mean(values) if values else np.nan
                value = float(found[picture, row, column])
                assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)


def planted(layers: int = 4, at: int = 2, seed: int = 0) -> tuple[list[Tokens], torch.Tensor]:
    """Three pictures of 4 x 5 patches; from layer ``at`` on two patches of the second and one of
    the third are ten times as long."""
    patches = [1 + noise(3, 4, 5, 8, seed=seed + layer) / 10 for layer in range(layers)]
    for layer in patches[at:]:
        for place in ((1, 0, 0), (1, 2, 2), (2, 3, 1)):
            layer[place] *= 10
    return [tokens(each) for each in patches], noise(3, 4, 5, 8, seed=99)


def test_planted_outliers_are_told_with_their_places_and_their_layer() -> None:
    fold = PatchAnatomy(4, 3, 10.0, 1)
    layers, embedding = planted()
    seen = fold.add(layers, embedding)
    rows = dict(zip(COLUMNS, seen.rows.T, strict=True))
    np.testing.assert_allclose(rows["outlier_share"], [0, 2 / 20, 1 / 20])
    np.testing.assert_array_equal(rows["border_share"], [np.nan, 0.5, 1])
    beside = neighbour_cosines(embedding)
    assert rows["outlier_neighbour_cosine"][2] == pytest.approx(float(beside[2, 3, 1]))
    assert np.isnan(rows["outliers_on_objects"]).all()
    assert seen.outliers.sum() == 3
    ratio = ratios(fold)
    assert separates_at(ratio, [0, 1, 2, 3], 3, 2) == 2
    assert ratio[3] == pytest.approx(10, rel=0.1) and ratio[0] == pytest.approx(1, rel=0.1)
    table = positions_table(fold, 1)
    expected = np.zeros((4, 5), int)
    expected[0, 0] = expected[2, 2] = expected[3, 1] = 1
    assert table["outliers_by_patch"] == expected.tolist()
    assert table["outliers_on_border"] == pytest.approx(100 * 2 / 3)
    assert table["patches_on_border"] == pytest.approx(100 * 14 / 20)


def test_separation_has_to_last_up_to_the_layer_where_outliers_are_told() -> None:
    layers = [3, 5, 7, 9]
    assert separates_at([9, 1, 2, 3], layers, 3, 2) == 7
    assert separates_at([9, 9, 9, 1], layers, 3, 2) is None
    assert separates_at([9, 9, 9, 1], layers, 2, 2) == 3
    assert separates_at([None] * 4, layers, 3, 2) is None


def test_what_is_on_objects_counts_outliers_apart() -> None:
    fold = PatchAnatomy(1, 0, 10.0, 1)
    layers, embedding = planted(1, 0)
    objects = torch.zeros(3, 4, 5)
    objects[1, 0, 0] = objects[1, 3, 3] = 1
    objects[2] = float("nan")
    rows = dict(zip(COLUMNS, fold.add(layers, embedding, None, objects).rows.T, strict=True))
    np.testing.assert_array_equal(rows["outliers_on_objects"], [np.nan, 0.5, np.nan])
    np.testing.assert_allclose(rows["patches_on_objects"], [0, 0.1, np.nan])


def test_patches_with_padding_count_for_nothing() -> None:
    layers, embedding = planted()
    inside = torch.ones(3, 4, 5, dtype=torch.bool)
    inside[:, :, 4:] = False
    padded, cut = PatchAnatomy(4, 3, 10.0, 1), PatchAnatomy(4, 3, 10.0, 1)
    for each in layers:
        each.patches[:, :, 4:] = 1e6
    rows = padded.add(layers, embedding, inside).rows
    smaller = [Tokens(each.cls, each.registers, each.patches[:, :, :4]) for each in layers]
    expected = cut.add(smaller, embedding[:, :, :4]).rows
    border = COLUMNS.index("border_share")  # the edge of the grid is where the padding is
    np.testing.assert_allclose(np.delete(rows, border, 1), np.delete(expected, border, 1))
    for name in ("histogram", "squares", "log_norm", "tokens", "class_cosine"):
        torch.testing.assert_close(padded.sums[name], cut.sums[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.peaks["patches"], cut.peaks["patches"])


def pieces(fold: PatchAnatomy) -> dict[str, Any]:
    return {**fold.sums, **fold.peaks, **{str(grid): n for grid, n in fold.grids.items()}}


def test_parts_merged_or_taken_up_again_are_the_whole_whatever_their_order() -> None:
    layers, embedding = planted()

    def part(*pictures: int) -> tuple[list[Tokens], torch.Tensor]:
        at = list(pictures)
        cut = [
            Tokens(t.cls[at], t.registers[at], t.patches[at]) for t in layers if t.cls is not None
        ]
        return cut, embedding[at]

    whole, left, right, resumed = (PatchAnatomy(4, 3, 10.0, 1) for _ in range(4))
    rows = whole.add(layers, embedding).rows
    last = right.add(*part(2)).rows
    first = left.add(*part(1, 0)).rows
    resumed.load(right.state())
    resumed.add(*part(1, 0))
    left.merge(right)
    np.testing.assert_allclose(np.vstack([first[::-1], last]), rows, atol=1e-6)
    for other in (left, resumed):
        for name, values in pieces(whole).items():
            torch.testing.assert_close(pieces(other)[name], values, rtol=1e-6, atol=1e-6)
    # What is merged into another is not changed by it.
    assert int(right.sums["pictures"]) == 1


def test_permuting_registers_moves_no_value_of_patches() -> None:
    layers, embedding = planted()
    registers = noise(3, 4, 8, seed=7) * 100
    rows = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        fold = PatchAnatomy(4, 3, 10.0, 1)
        own = [Tokens(each.cls, registers[:, order], each.patches) for each in layers]
        rows.append(fold.add(own, embedding).rows)
        norms = registers[:, order].norm(dim=-1).double().mean(0)
        torch.testing.assert_close(fold.sums["register_norm"][0] / 3, norms)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_norms_that_are_not_finite_are_refused() -> None:
    layers, embedding = planted()
    layers[1].patches[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        PatchAnatomy(4, 3, 10.0, 1).add(layers, embedding)


def test_a_massive_dimension_is_found_with_its_kind_and_how_large_it_is() -> None:
    layers, embedding = planted(2, 2)
    layers[1].patches[0, 1, 1, 6] = -500
    registers = torch.zeros(3, 1, 8)
    registers[1, 0, 2] = 3000
    layers[1] = Tokens(layers[1].cls, registers, layers[1].patches)
    layers[0] = Tokens(layers[0].cls, torch.zeros(3, 1, 8), layers[0].patches)
    fold = PatchAnatomy(2, 1, 1e9, 1)
    fold.add(layers, embedding)
    found = massive_dimensions(fold.peaks, fold.sums["squares"], 60, 100)
    assert found[0] == {"patches": [], "class": [], "registers": []}
    (patches,), (register,) = found[1]["patches"], found[1]["registers"]
    assert (patches["dimension"], patches["magnitude"]) == (6, 500)
    assert (register["dimension"], register["magnitude"]) == (2, 3000)
    assert patches["times_median"] == pytest.approx(500, rel=0.05)


def test_the_relative_map_counts_each_patch_once_whatever_the_grid() -> None:
    counts = {(3, 5): torch.ones(2, 3, 5), (37, 20): torch.ones(2, 37, 20)}
    found = relative_map(counts, 16)
    assert found.sum() == 2 * (15 + 740)
    corner = relative_map({(4, 4): torch.eye(4).expand(2, 4, 4)}, 16)[1]
    assert np.argwhere(corner).tolist() == [[2, 2], [6, 6], [10, 10], [14, 14]]


@pytest.mark.parametrize(
    ("rows", "columns", "width", "count"),
    [(4, 5, 1, 14), (2, 9, 1, 18), (5, 5, 2, 24), (3, 3, 9, 9)],
)
def test_the_border_is_so_many_patches_wide(
    rows: int, columns: int, width: int, count: int
) -> None:
    assert int(border_of(rows, columns, width).sum()) == count
