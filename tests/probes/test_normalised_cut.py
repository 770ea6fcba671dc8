from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from discovered import REAL
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from harness import load_backbone
from harness.backbone.vit import Backbone, Read
from harness.data.catalog import Catalog
from harness.data.views import WholePicture
from harness.discovery import component_box
from harness.features.extract import normalise
from harness.probes import normalised_cut
from harness.probes.normalised_cut import cosines
from harness.probes.normalised_cut import normalised_cut as cut

TAU, EPSILON, TOLERANCE = 0.2, 1e-5, 1e-8


class Dense(NamedTuple):
    """``clear``: no two entries that decide are equal but for rounding."""

    seed: int
    mask: np.ndarray
    clear: bool


def densely(features: torch.Tensor, tau: float = TAU) -> Dense:
    """Seed and mask [N] as the official code has them (object_discovery.py of TokenCut): all of the
    generalised problem, by LAPACK. Where rounding would decide, what is equal is taken as equal."""
    unit = torch.nn.functional.normalize(features, p=2)
    similarity = (unit @ unit.transpose(1, 0)).numpy()
    weights = np.where(similarity > tau, 1.0, EPSILON)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 2])
    second = vectors[:, 0]
    average = second.sum() / len(second)
    bipartition = second > average
    seed = int(np.argmax(np.abs(second)))
    near = TOLERANCE * np.abs(second[seed])
    first = int(np.flatnonzero(np.abs(second) >= np.abs(second[seed]) - near)[0])
    tied = (np.abs(second) >= np.abs(second[seed]) - near).sum() > 1
    if not tied and (np.abs(second - average) > near).all():
        return Dense(seed, bipartition if bipartition[seed] else ~bipartition, True)
    sign = np.sign(second[first])
    return Dense(first, sign * second > sign * average + near, False)


def box(grid: tuple[int, int], seed: int, mask: np.ndarray) -> tuple[int, int, int, int]:
    size = grid[1] * 14, grid[0] * 14
    return component_box(mask.reshape(grid), seed, 14, size)


def drawn(case: int) -> tuple[tuple[int, int], torch.Tensor, float]:
    """A rectangle of one kind on a ground of another, in noise; the threshold differs by case."""
    draw = np.random.default_rng(case)
    rows, columns = (int(n) for n in draw.integers(5, 20, 2))
    ground, thing = draw.standard_normal((2, 24))
    features = np.tile(ground, (rows, columns, 1))
    top, left = draw.integers(0, rows - 2), draw.integers(0, columns - 2)
    height, width = draw.integers(2, rows // 2 + 1), draw.integers(2, columns // 2 + 1)
    features[top : top + height, left : left + width] = thing
    features += draw.uniform(0.2, 1.5) * draw.standard_normal(features.shape)
    flat = torch.from_numpy(features).float().flatten(0, 1)
    return (rows, columns), flat, float(draw.choice([0.0, 0.1, 0.2, 0.4]))


@pytest.mark.parametrize("case", range(20))
def test_boxes_of_drawn_maps_are_those_of_the_dense_solution(case: int) -> None:
    grid, features, tau = drawn(case)
    found = cut(cosines(features), tau, EPSILON, TOLERANCE)
    seed, mask, _ = densely(features, tau)
    assert not found.degenerate
    assert (found.seed, box(grid, found.seed, found.foreground)) == (seed, box(grid, seed, mask))


def test_the_drawn_maps_are_solved_both_ways_mostly_without_ties_and_with_small_objects() -> None:
    maps = [drawn(case) for case in range(20)]
    sizes = [len(features) for _, features, _ in maps]
    assert min(sizes) <= normalised_cut._DENSE < max(sizes)
    dense = [densely(features, tau) for _, features, tau in maps]
    assert sum(one.clear for one in dense) >= 12
    assert sum(one.mask.mean() < 0.4 for one in dense) >= 10


def real_maps(backbone: Backbone, data: Path, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and normed tokens [rows, columns, D] of ten pictures of raccoon of all sizes."""
    listed = folder / "real.yaml"
    listed.write_text(REAL.format(data))
    pictures = Catalog.load([listed]).open("raccoon")["test"]
    area = [sample.size[0] * sample.size[1] for sample in pictures.samples]
    for index in np.argsort(area, kind="stable")[::20]:
        target = pictures.samples[index].target
        view = WholePicture(backbone.architecture.patch, 16_384)
        pixels = normalise(backbone, view(pictures.picture(index), target, 0, index))
        for read in (Read(3, "key"), Read(3, "token", True)):
            yield f"{index} {read.facet}", backbone(pixels, [read]).tokens[read].patches[0]


@pytest.mark.slow
def test_boxes_of_real_maps_are_those_of_the_dense_solution(
    shared_data: Path, tiny_models: Path, tmp_path: Path
) -> None:
    backbone = load_backbone("tiny-reg4", [tiny_models], "cpu")
    seen: list[bool] = []
    for name, patches in real_maps(backbone, shared_data, tmp_path):
        rows, columns = patches.shape[:2]
        flat = patches.flatten(0, 1)
        found = cut(cosines(flat), TAU, EPSILON, TOLERANCE)
        seed, mask, clear = densely(flat)
        assert not found.degenerate, name
        assert found.seed == seed, name
        expected = box((rows, columns), seed, mask)
        assert box((rows, columns), found.seed, found.foreground) == expected, name
        seen.append(clear)
    assert len(seen) == 20 and sum(seen) >= 14


def groups(*sizes: int) -> torch.Tensor:
    """Cosines of patches that are alike within their group and at right angles between groups."""
    which = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return (which[:, None] == which).float()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(70, 90), st.sampled_from([0.02, 0.1, 0.3, 0.8]))
def test_lanczos_finds_the_cut_that_the_whole_matrix_gives(
    case: int, count: int, density: float
) -> None:
    draw = np.random.default_rng(case).random((count, count)) < density
    similarity = torch.from_numpy(draw | draw.T | np.eye(count, dtype=bool)).float()
    assert count > normalised_cut._DENSE
    by_lanczos = cut(similarity, TAU, EPSILON, TOLERANCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalised_cut, "_DENSE", count)
        whole = cut(similarity, TAU, EPSILON, TOLERANCE)
    assert by_lanczos[0] == whole[0] and by_lanczos[2:] == whole[2:]
    np.testing.assert_array_equal(by_lanczos.foreground, whole.foreground)


@pytest.mark.parametrize("sizes", [(4, 9), (40, 90)])
def test_a_graph_in_two_parts_is_cut_between_them_and_counted(sizes: tuple[int, int]) -> None:
    found = cut(groups(*sizes), TAU, EPSILON, TOLERANCE)
    assert found.disconnected and not found.degenerate
    assert found.seed == 0 and found.tied  # the smaller part lies farther out, all of it alike
    assert found.foreground.tolist() == [True] * sizes[0] + [False] * sizes[1]


def test_of_two_equal_parts_the_first_patch_is_the_seed() -> None:
    found = cut(groups(40, 40), TAU, EPSILON, TOLERANCE)
    assert (found.seed, found.tied, found.degenerate) == (0, True, False)
    assert found.foreground.tolist() == [True] * 40 + [False] * 40


@pytest.mark.parametrize("sizes", [(5, 5, 5), (30, 30, 30), (50, 50, 50, 50)])
def test_three_equal_parts_have_no_one_cut(sizes: tuple[int, ...]) -> None:
    found = cut(groups(*sizes), TAU, EPSILON, TOLERANCE)
    assert (found.seed, found.tied, found.degenerate, found.disconnected) == (0, True, True, True)
    assert found.foreground.all()


@pytest.mark.parametrize("count", [3, 5, 100])
@pytest.mark.parametrize("alike", [True, False])
def test_affinities_on_one_side_of_tau_are_degenerate(count: int, alike: bool) -> None:
    similarity = torch.ones(count, count) if alike else torch.eye(count)
    found = cut(similarity, TAU, EPSILON, TOLERANCE)
    assert found.degenerate and found.foreground.all() and found.seed == 0
    assert found.disconnected != alike


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_patches_are_not_cut(count: int) -> None:
    found = cut(torch.eye(count), TAU, EPSILON, TOLERANCE)
    assert found.degenerate and found.foreground.all()


def test_a_patch_of_zeros_is_no_crash() -> None:
    _, features, _ = drawn(3)
    features[7] = 0
    found = cut(cosines(features), TAU, EPSILON, TOLERANCE)
    assert found.disconnected
    seed, mask, _ = densely(features)
    assert (found.seed, found.foreground.tolist()) == (seed, mask.tolist())


def test_a_spectrum_that_lanczos_does_not_resolve_is_decomposed_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = torch.arange(600.0)
    chain = ((steps[:, None] - steps).abs() < 2).float()
    whole: list[int] = []
    densely = normalised_cut._densely
    monkeypatch.setattr(
        normalised_cut, "_densely", lambda *given: whole.append(1) or densely(*given)
    )
    found = cut(chain, TAU, 1e-9, 1e-12)
    assert whole
    assert found.foreground.tolist() in ([True] * 300 + [False] * 300, [False] * 300 + [True] * 300)


def test_a_pair_whose_halves_were_rounded_apart_is_linked() -> None:
    similarity = groups(4, 9)
    similarity[0, 5] = 0.3
    one, other = (cut(s, TAU, EPSILON, TOLERANCE) for s in (similarity, similarity.T))
    assert not one.disconnected and not other.disconnected
    assert one.seed == other.seed and (one.foreground == other.foreground).all()


def test_lengths_of_patches_do_not_matter() -> None:
    _, features, _ = drawn(0)
    lengths = torch.linspace(0.5, 8, len(features))[:, None]
    one, other = (cut(cosines(f), TAU, EPSILON, TOLERANCE) for f in (features, features * lengths))
    assert one.seed == other.seed and (one.foreground == other.foreground).all()


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        cut(groups(40, 90), TAU, EPSILON, TOLERANCE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
