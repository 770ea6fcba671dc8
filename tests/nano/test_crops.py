"""Multi-crop: what is drawn from what, and colours against torchvision's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.data.generated import paint
from harness.nano import crops as module
from harness.nano.crops import make_crops
from harness.nano.recipe import Recipe

RECIPE = Recipe(data="x", out=Path("x"))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plan(**changes: object) -> module._Plan:
    """A crop of a whole 64x64 picture that nothing is done to."""
    plain: dict[str, object] = {
        "box": (0, 0, 64, 64),
        "flip": False,
        "jitter": (),
        "grey": False,
        "blur": 0.0,
        "solarise": False,
    }
    return module._Plan(**{**plain, **changes})  # type: ignore[arg-type]


def cut(picture: NDArray[np.uint8], *plans: module._Plan, side: int = 64) -> torch.Tensor:
    stored = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)
    return module._cut(stored, list(plans), side)


def test_a_picture_gives_two_global_and_the_local_crops_of_the_recipe() -> None:
    crops = make_crops(paint(0), RECIPE, 0, 0)
    assert crops.whole.shape == (2, 3, 96, 96)
    assert crops.local.shape == (4, 3, 48, 48)
    assert crops.whole.dtype == crops.local.dtype == torch.uint8
    bare = Recipe(data="x", out=Path("x"), crop=32, local_crop=16, local_crops=0)
    crops = make_crops(paint(0), bare, 0, 0)
    assert crops.whole.shape == (2, 3, 32, 32)
    assert crops.local.shape == (0, 3, 16, 16)


def test_crops_depend_on_seed_epoch_and_picture_and_on_nothing_else() -> None:
    first = make_crops(paint(0), RECIPE, 3, 7)
    torch.manual_seed(5)
    np.random.seed(5)
    again = make_crops(paint(0), Recipe(data="y", out=Path("y"), registers=4, batch_size=9), 3, 7)
    assert torch.equal(first.whole, again.whole)
    assert torch.equal(first.local, again.local)
    others = (
        make_crops(paint(0), Recipe(data="x", out=Path("x"), seed=1), 3, 7),
        make_crops(paint(0), RECIPE, 4, 7),
        make_crops(paint(0), RECIPE, 3, 8),
    )
    for other in others:
        assert not torch.equal(first.whole, other.whole)


def test_the_two_global_crops_are_not_one() -> None:
    whole = make_crops(paint(1), RECIPE, 0, 0).whole
    assert not torch.equal(whole[0], whole[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 999))
def test_a_picture_of_any_size_has_crops(height: int, width: int, index: int) -> None:
    crops = make_crops(noise(height, width), RECIPE, 0, index)
    assert crops.whole.shape == (2, 3, 96, 96)


def test_a_flat_picture_that_nothing_is_done_to_stays_flat() -> None:
    flat = np.full((20, 30, 3), (10, 128, 250), dtype=np.uint8)
    crop = cut(flat, plan(box=(2, 3, 15, 20)), side=48)
    assert torch.equal(crop[0], torch.tensor([10, 128, 250]).view(3, 1, 1).expand(3, 48, 48))


def test_a_whole_picture_that_nothing_is_done_to_is_itself() -> None:
    picture = noise(64, 64)
    crops = cut(picture, plan(), plan(flip=True))
    assert np.array_equal(crops[0].permute(1, 2, 0).numpy(), picture)
    assert np.array_equal(crops[1].permute(1, 2, 0).numpy(), picture[:, ::-1])


@pytest.mark.parametrize(
    ("kind", "adjust"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
    ],
)
@pytest.mark.parametrize("strength", [0.7, 1.0, 1.25])
def test_jitter_is_torchvisions(kind: str, adjust: object, strength: float) -> None:
    picture = (noise(64, 64) // 2 + 50).astype(np.uint8)  # so that nothing is clamped
    ours = cut(picture, plan(jitter=((kind, strength),)))[0]
    theirs = adjust(torch.from_numpy(picture).permute(2, 0, 1), strength)  # type: ignore[operator]
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_jitter_in_an_order_is_one_after_the_other() -> None:
    picture = (noise(64, 64) // 2 + 50).astype(np.uint8)
    ours = cut(picture, plan(jitter=(("contrast", 0.8), ("brightness", 1.1))))[0]
    whole = torch.from_numpy(picture).permute(2, 0, 1)
    theirs = TF.adjust_brightness(TF.adjust_contrast(whole, 0.8), 1.1)
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_hue_leaves_grey_alone_and_comes_round() -> None:
    grey = np.repeat(noise(64, 64)[..., :1], 3, axis=2)
    assert np.array_equal(cut(grey, plan(jitter=(("hue", 0.3),)))[0].permute(1, 2, 0).numpy(), grey)
    picture = (noise(64, 64) // 4 + 90).astype(np.uint8)
    turned = cut(picture, plan(jitter=(("hue", 0.5), ("hue", 0.5))))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(turned, picture)


def test_blur_is_torchvisions_away_from_the_edge() -> None:
    picture = noise(64, 64)
    ours = cut(picture, plan(blur=1.3))[0][:, 12:-12, 12:-12]
    theirs = TF.gaussian_blur(torch.from_numpy(picture).permute(2, 0, 1), [21, 21], [1.3, 1.3])
    assert (ours.int() - theirs[:, 12:-12, 12:-12].int()).abs().max() <= 1


def test_grey_and_solarised() -> None:
    picture = noise(64, 64)
    grey, solarised = cut(picture, plan(grey=True), plan(solarise=True))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    theirs = TF.solarize(torch.from_numpy(picture).permute(2, 0, 1), 128)
    assert torch.equal(solarised, theirs)


def test_crops_do_not_hold_up_training() -> None:
    """6 ms a picture is what one core may spend, whoever else is at work; it is about 1."""
    picture = noise(128, 128)
    make_crops(picture, RECIPE, 0, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = []
        for index in range(40):
            began = time.process_time()
            make_crops(picture, RECIPE, 0, index)
            spent.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert sorted(spent)[len(spent) // 2] < 0.006
