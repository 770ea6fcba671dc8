"""The floors: ``pixels`` gives back the picture, ``chance`` gives back nothing of it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness import evaluate, load_backbone, plan
from harness.backbone.layout import FACETS
from harness.backbone.vit import Backbone, Read
from harness.data import generated
from harness.data.generated import paint
from harness.data.views import Crop, Geometry
from harness.errors import HarnessError
from harness.features.extract import normalise
from harness.nano import floors
from harness.options import Options

PATCH = 8
DEPTH = 4
READS = [
    Read("embedding"),
    Read("embedding", norm=True),
    *(Read(layer, facet) for layer in range(DEPTH) for facet in FACETS),
    *(Read(layer, norm=True) for layer in range(DEPTH)),
]
LAST = Read(DEPTH - 1, norm=True)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**32 - 1)


@cache
def floor(name: str) -> Backbone:
    return load_backbone(name, device="cpu")


def noise_picture(seed: int, grid: tuple[int, int]) -> np.ndarray:
    size = (grid[0] * PATCH, grid[1] * PATCH, 3)
    return np.random.default_rng(seed).integers(0, 256, size=size).astype(np.uint8)


def as_input(backbone: Backbone, *pictures: np.ndarray) -> Tensor:
    """What the harness itself makes of pictures ``[H, W, 3]`` of one size."""
    crops = []
    for picture in pictures:
        height, width = picture.shape[:2]
        size, pad = (width, height), (0, 0, -width % PATCH, -height % PATCH)
        crops.append(Crop(picture, Geometry(size, size, (0, 0, width, height), pad)))
    return normalise(backbone, crops)


@pytest.mark.parametrize("name", ["pixels", "chance"])
def test_a_floor_has_patches_and_nothing_else(name: str) -> None:
    facts = floor(name).architecture
    assert (facts.layout.classes, facts.layout.registers, facts.position) == (0, 0, None)
    assert (facts.patch, facts.depth, facts.global_feature) == (PATCH, DEPTH, "mean of patches")
    assert facts.width == {"pixels": 192, "chance": 64}[name]


@settings(deadline=None, max_examples=15)
@given(sizes, seeds)
@pytest.mark.parametrize("name", ["pixels", "chance"])
def test_every_layer_and_facet_gives_the_same_tokens(
    name: str, grid: tuple[int, int], seed: int
) -> None:
    backbone = floor(name)
    batch = as_input(backbone, noise_picture(seed, grid), noise_picture(seed + 1, grid))
    result = backbone(batch, READS, attention=range(DEPTH))
    first = result.tokens[Read("embedding")].patches
    assert first.shape == (2, *grid, backbone.architecture.width)
    for read in READS:
        assert torch.equal(result.tokens[read].patches, first), read
    torch.testing.assert_close(result.tokens[LAST].global_, first.mean(dim=(1, 2)))
    assert result.attention[0].shape == (2, 1, 0, *grid), "nobody but patches attends"


@pytest.mark.parametrize("name", ["pixels", "chance"])
def test_timms_own_forward_agrees(name: str) -> None:
    backbone = floor(name)
    batch = as_input(backbone, noise_picture(0, (3, 5)))
    module = backbone.module
    with torch.no_grad():
        features = module.forward_features(batch)  # type: ignore[operator]
        for block in module.blocks:  # type: ignore[union-attr]
            # The weights say what the block spares itself: it adds nothing.
            plain = super(type(block), block).forward(features)
            assert torch.equal(plain, features)
    assert torch.equal(backbone(batch, [LAST]).tokens[LAST].patches.flatten(1, 2), features)


# ------------------------------------------------------------------------------------------ pixels


@settings(deadline=None, max_examples=15)
@given(sizes, seeds)
def test_pixels_are_the_pictures_own_patches(grid: tuple[int, int], seed: int) -> None:
    backbone = floor("pixels")
    batch = as_input(backbone, noise_picture(seed, grid))
    patches = backbone(batch, [LAST]).tokens[LAST].patches[0]
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = row * PATCH, column * PATCH
            own = batch[0, :, y : y + PATCH, x : x + PATCH].flatten()
            assert torch.equal(patches[row, column], own)


def test_pixels_are_normalised_so_that_affinities_have_both_signs() -> None:
    batch = as_input(floor("pixels"), paint(0))
    assert batch.min() < 0 < batch.max()


def test_a_floor_of_another_patch_size_can_be_made() -> None:
    module = floors.pixels(patch=14, depth=1).eval()
    features = module.forward_features(torch.randn(1, 3, 28, 42))  # type: ignore[operator]
    assert features.shape == (1, 6, 588)
    noise = floors.chance(patch=14, width=8, seed=3).eval()
    assert noise.forward_features(torch.rand(1, 3, 28, 42)).shape == (1, 6, 8)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------ chance

# Of picture 0's tokens as odd whole numbers. It may change with the entry's seed or width, and then
# every stored score of `chance` is of another model.
DIGEST = "829713b875deda570a37f7c0b2c7e39de8b810b214a61ecb8aa052f03b470eab"


def tokens(backbone: Backbone, *pictures: np.ndarray) -> Tensor:
    """``[B, rows, columns, D]``."""
    return backbone(as_input(backbone, *pictures), [LAST]).tokens[LAST].patches


def test_chance_is_the_same_everywhere() -> None:
    whole = (tokens(floor("chance"), paint(0)) * 256).to(torch.int16)
    assert torch.equal(whole.float() / 256, tokens(floor("chance"), paint(0)))
    assert bool((whole % 2 != 0).all())
    assert hashlib.sha256(whole.numpy().astype("<i2").tobytes()).hexdigest() == DIGEST


def by_hand(picture: np.ndarray, row: int, column: int) -> list[float]:
    """One token of ``chance`` in Python's own whole numbers."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    y, x = row * PATCH, column * PATCH
    octets = picture[y : y + PATCH, x : x + PATCH].transpose(2, 0, 1).tobytes()
    state = mix(row << 32 | column)  # the seed is 0
    for start in range(0, len(octets), 8):
        state = mix(state ^ int.from_bytes(octets[start : start + 8], "little"))
    words = [mix((state + step * 0x9E3779B97F4A7C15) % 2**64) for step in range(1, 9)]
    noise = b"".join(word.to_bytes(8, "little") for word in words)
    return [(2 * octet - 255) / 256 for octet in noise]


def test_chance_is_a_hash_that_whole_numbers_give_too() -> None:
    picture = noise_picture(7, (3, 4))
    found = tokens(floor("chance"), picture)[0]
    for row, column in ((0, 0), (0, 3), (2, 1)):
        assert found[row, column].tolist() == by_hand(picture, row, column)


def test_its_hash_is_the_one_that_paints_the_generated_pictures() -> None:
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=1000)
    ours = floors._mix(torch.from_numpy(values)).numpy().view(np.uint64)
    assert np.array_equal(ours, generated.mix(values.view(np.uint64)))


@settings(deadline=None, max_examples=10)
@given(sizes, seeds, st.integers(2, 6))
def test_chance_does_not_depend_on_the_batch(grid: tuple[int, int], seed: int, count: int) -> None:
    pictures = [noise_picture(seed + index, grid) for index in range(count)]
    together = tokens(floor("chance"), *pictures)
    for index, picture in enumerate(pictures):
        assert torch.equal(tokens(floor("chance"), picture)[0], together[index])


@settings(deadline=None, max_examples=10)
@given(sizes, seeds, st.data())
def test_one_grey_level_changes_its_own_patch_and_no_other(
    grid: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    picture = noise_picture(seed, grid)
    changed = picture.copy()
    y = data.draw(st.integers(0, picture.shape[0] - 1))
    x = data.draw(st.integers(0, picture.shape[1] - 1))
    changed[y, x, data.draw(st.integers(0, 2))] ^= 1
    before, after = tokens(floor("chance"), picture, changed)
    same = (before == after).float().mean(dim=-1)
    assert same[y // PATCH, x // PATCH] < 0.2
    same[y // PATCH, x // PATCH] = 1
    assert bool((same == 1).all())


def test_patches_of_a_plain_picture_differ_from_each_other() -> None:
    plain = np.full((8 * PATCH, 8 * PATCH, 3), 127, np.uint8)
    (patches,) = tokens(floor("chance"), plain).flatten(1, 2)
    assert len(patches.unique(dim=0)) == 64
    lengths = patches / patches.norm(dim=1, keepdim=True)
    cosines = (lengths @ lengths.T)[~torch.eye(64, dtype=torch.bool)]
    assert cosines.abs().mean() < 0.15 and abs(float(cosines.mean())) < 0.01


def test_chance_is_spread_evenly_about_nought() -> None:
    values = tokens(floor("chance"), noise_picture(0, (40, 40))).flatten()
    count = values.numel()
    deviation = float(np.sqrt((256**2 - 1) / 3) / 256)  # of the odd multiples of 1/256
    assert abs(float(values.mean())) < 4 * deviation / count**0.5
    assert float(values.std()) == pytest.approx(deviation, rel=0.01)
    assert len(values.unique()) == 256


def test_chance_says_nothing_of_the_pixels() -> None:
    picture = noise_picture(0, (50, 50))
    noise = tokens(floor("chance"), picture)[0].flatten(0, 1).numpy()
    shown = tokens(floor("pixels"), picture)[0].flatten(0, 1).numpy()
    table = np.corrcoef(noise.T, shown.T)[:64, 64:]
    # 12,288 coefficients of 2,500 patches: of independent numbers the largest is about 4.2 / 50.
    assert np.abs(table).max() < 5.5 / 50
    assert np.sqrt((table**2).mean()) == pytest.approx(1 / 50, rel=0.05)


def test_another_seed_is_another_model() -> None:
    one, other = floors.chance().eval(), floors.chance(seed=1).eval()
    batch = torch.zeros(1, 3, 16, 16)
    first, second = (
        module.forward_features(batch)  # type: ignore[operator]
        for module in (one, other)
    )
    assert (first == second).float().mean() < 0.05
    assert {**one.state_dict()}["patch_embed.seed"] != {**other.state_dict()}["patch_embed.seed"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chance_is_exact_in_every_precision(precision: str) -> None:
    backbone = floor("chance")
    batch = as_input(backbone, paint(1))
    key = Read(DEPTH - 1, "key")
    exact = tokens(backbone, paint(1))
    found = backbone(batch, [key], precision=precision).tokens[key].patches  # type: ignore[arg-type]
    assert torch.equal(found.float(), exact)


@pytest.mark.parametrize(
    "arguments",
    [{"width": 12}, {"width": 0}, {"seed": -1}, {"seed": 2**63}, {"patch": 0}, {"depth": 0}],
)
def test_impossible_floors_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        floors.chance(**arguments)


# ---------------------------------------------------------------------------------------- in a run


def test_lost_runs_on_both_floors_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    def scores() -> dict[str, float]:
        records = evaluate(
            "lost", ["pixels", "chance"], "generated", out=tmp_path, workers=0, device="cpu"
        )
        return {record.model.name: record.metrics["corloc"].value for record in records}

    found = scores()
    # Plain backgrounds and coloured shapes: pixels alone find most of them, noise next to none.
    assert found["pixels"] > 50 > 10 > found["chance"]
    wanted = Options(["lost"], ["pixels", "chance"], ["generated"], out=tmp_path)
    assert [cell.state for cell in plan.plan(wanted)] == ["done", "done"]
    assert scores() == found


def test_random_weights_are_refused_as_for_any_factory() -> None:
    with pytest.raises(HarnessError, match="brings its own weights"):
        load_backbone("chance", device="cpu", weights="random")
