"""How pictures are seen for retrieval."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from harness.data.dataset import Query, Target
from harness.data.within_side import SCALES, WithinSide, WithinSideThrice
from harness.errors import BadPicture

VIEW = WithinSide(14, 70)
BOXED = WithinSide(14, 70, region=True)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def asking(*region: float) -> Target:
    return Target(query=Query(region or None, (), (), ()))  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(st.integers(14, 200), st.integers(14, 200))
def test_a_picture_is_pils_thumbnail_in_whole_patches(height: int, width: int) -> None:
    picture = noise(height, width)
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((70, 70), Image.Resampling.LANCZOS)
    expected = np.array(thumbnail)
    if min(expected.shape[:2]) < 14:
        with pytest.raises(BadPicture, match="less than a patch of 14"):
            VIEW(picture, Target(), 0, 0)
        return
    (crop,) = VIEW(picture, Target(), 0, 0)
    high, wide = (side // 14 * 14 for side in expected.shape[:2])
    np.testing.assert_array_equal(crop.pixels, expected[:high, :wide])
    assert crop.geometry.padded == (high, wide)
    assert crop.geometry.stored == (width, height)
    assert crop.geometry.resized == (expected.shape[1], expected.shape[0])
    assert max(high, wide) <= 70


def test_nothing_is_enlarged() -> None:
    picture = noise(28, 42)
    (crop,) = VIEW(picture, Target(), 0, 0)
    np.testing.assert_array_equal(crop.pixels, picture)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 30), st.floats(0, 30), st.floats(20, 100), st.floats(20, 100))
def test_a_query_is_what_its_box_cuts_out_as_pil_cuts(
    left: float, top: float, width: float, height: float
) -> None:
    picture = noise(140, 150)
    region = left, top, left + width, top + height
    alone = np.array(Image.fromarray(picture).crop(region))  # type: ignore[arg-type]
    (expected,) = VIEW(alone, Target(), 0, 0)
    (crop,) = BOXED(picture, asking(*region), 0, 0)
    np.testing.assert_array_equal(crop.pixels, expected.pixels)
    assert crop.geometry.stored == (150, 140)


def test_without_a_box_or_without_being_told_to_the_whole_picture_is_seen() -> None:
    picture = noise(60, 60)
    (whole,) = VIEW(picture, asking(0, 0, 20, 20), 0, 0)
    for target in (Target(), asking()):
        (crop,) = BOXED(picture, target, 0, 0)
        np.testing.assert_array_equal(crop.pixels, whole.pixels)


def test_a_box_ends_where_the_picture_does() -> None:
    picture = noise(60, 60)
    (crop,) = BOXED(picture, asking(20, -5, 90, 1e300), 0, 0)
    (expected,) = VIEW(picture[:, 20:], Target(), 0, 0)
    np.testing.assert_array_equal(crop.pixels, expected.pixels)


@pytest.mark.parametrize("region", [(60, 0, 90, 20), (-9, 0, 0, 30), (5.1, 0, 5.4, 30)])
def test_a_box_with_nothing_of_the_picture_in_it_is_a_bad_picture(
    region: tuple[float, float, float, float],
) -> None:
    with pytest.raises(BadPicture, match="nothing of that is in the picture"):
        BOXED(noise(60, 60), asking(*region), 0, 0)


def test_a_crops_geometry_says_where_the_box_was() -> None:
    (crop,) = BOXED(noise(200, 400), asking(100, 40, 240, 180), 0, 0)
    assert crop.geometry.resized == (200, 100)
    assert crop.geometry.crop == (50, 20, 70, 70)


def test_three_scales_are_dinos_within_half_a_level() -> None:
    picture = noise(110, 173)
    thrice = WithinSideThrice(14, 96)
    crops = thrice(picture, Target(), 0, 0)
    assert len(crops) == thrice.crops_per_picture == 3
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((96, 96), Image.Resampling.LANCZOS)
    whole = torch.from_numpy(np.array(thumbnail)).permute(2, 0, 1)[None].double()
    for scale, crop in zip(SCALES, crops, strict=True):
        expected = whole
        if scale != 1:
            expected = interpolate(whole, scale_factor=scale, mode="bilinear", align_corners=False)
        high, wide = (side // 14 * 14 for side in expected.shape[2:])
        away = expected[0, :, :high, :wide].permute(1, 2, 0).numpy() - crop.pixels
        assert np.abs(away).max() <= 0.5001
        assert crop.geometry.padded == crop.pixels.shape[:2] == (high, wide)


@pytest.mark.parametrize("side", [14, 1])
def test_a_scale_of_less_than_a_patch_is_a_bad_picture(side: int) -> None:
    with pytest.raises(BadPicture, match="less than a patch"):
        WithinSideThrice(14, 96)(noise(90, side), Target(), 0, 0)


def test_views_travel_to_workers_and_differ_by_what_they_do() -> None:
    for view in (VIEW, BOXED, WithinSideThrice(14, 70)):
        assert pickle.loads(pickle.dumps(view)) == view
    assert len({VIEW, BOXED, WithinSide(14, 70), WithinSideThrice(14, 70)}) == 3
