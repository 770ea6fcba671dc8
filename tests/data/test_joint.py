from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from seen_labels import labelled, shown

from harness.data.dataset import IGNORED, MAX_PIXELS, Dataset, Dense, Sample
from harness.data.fixed_size import FixedSize
from harness.data.joint import Seen, centred, look, scaled_size
from harness.data.views import Geometry, WholePicture
from harness.errors import BadLabels, BadPicture

sides = st.integers(1, 60)


class One(Dataset):
    """One picture of 20 x 10 pixels with the labels it is given."""

    name, split = "one", "test"

    def __init__(self, dense: Dense | str) -> None:
        self.samples = [Sample("p0", (20, 10))]
        self._dense = dense

    def picture(self, index: int) -> NDArray[np.uint8]:
        return np.zeros((10, 20, 3), np.uint8)

    def dense(self, index: int) -> Dense:
        if isinstance(self._dense, str):
            raise BadPicture(self._dense)
        return self._dense


@given(sides, sides, st.integers(1, 20))
def test_a_centred_pad_makes_whole_patches_and_puts_the_odd_pixel_right_and_below(
    width: int, height: int, patch: int
) -> None:
    left, top, right, bottom = centred(width, height, patch)
    assert (width + left + right) % patch == (height + top + bottom) % patch == 0
    assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1
    assert max(left + right, top + bottom) < patch


@pytest.mark.parametrize(
    ("stored", "short", "longest", "expected"),
    [
        ((683, 512), 512, None, (683, 512)),
        ((640, 480), 512, None, (683, 512)),  # 682.67
        ((480, 640), 256, None, (256, 341)),  # 341.33
        ((4000, 500), 512, 2048, (2048, 256)),
        ((3, 3000), 1, None, (1, 1000)),
        ((1, 100_000), 100, 50, (1, 50)),  # never nothing
    ],
)
def test_a_size_is_scaled_and_rounded_as_mmcv_does(
    stored: tuple[int, int], short: int, longest: int | None, expected: tuple[int, int]
) -> None:
    assert scaled_size(stored, short, longest) == expected


def test_a_picture_that_a_resize_would_blow_up_is_refused() -> None:
    with pytest.raises(BadPicture, match=f"shorter side of 512.*{MAX_PIXELS:,}"):
        scaled_size((1, 3000), 512)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides)
def test_labels_are_resized_to_the_nearest_as_opencv_does(
    width: int, height: int, wider: int, higher: int
) -> None:
    dense = labelled(width, height, block=1)
    resized = Seen(shown(dense), dense).resized((wider, higher), "bilinear", False)
    rows, columns = (
        np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new))
        .astype(int)
        .clip(0, old - 1)
        for new, old in ((higher, height), (wider, width))
    )
    assert resized.size == (wider, higher) and resized.dense is not None
    for kind in ("semantic", "instances", "depth"):
        found, stored = getattr(resized.dense, kind), getattr(dense, kind)
        assert found.dtype == stored.dtype
        np.testing.assert_array_equal(found, stored[rows][:, columns])


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides)
def test_pixels_are_resized_bilinearly_on_the_same_grid(
    width: int, height: int, wider: int, higher: int
) -> None:
    picture = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), np.uint8)
    found = Seen(picture).resized((wider, higher), "bilinear", False).pixels.astype(float)

    def along(values: NDArray[Any], new: int, axis: int) -> NDArray[Any]:
        old = values.shape[axis]
        places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(places).astype(int)
        share = np.expand_dims(places - low, [1, 2] if axis == 0 else [0, 2])
        high = np.minimum(low + 1, old - 1)
        return values.take(low, axis) * (1 - share) + values.take(high, axis) * share

    expected = along(along(picture.astype(float), higher, 0), wider, 1)
    assert np.abs(found - expected).max() <= 1.1  # rounded along each side


def test_what_is_turned_in_from_outside_is_black_and_has_no_label() -> None:
    dense = Dense(
        semantic=np.full((60, 80), 3, np.uint8),
        instances=np.full((60, 80), 7, np.uint8),
        depth=np.full((60, 80), 2.5, np.float32),
    )
    turned = Seen(np.full((60, 80, 3), 200, np.uint8), dense).rotated(20)
    assert turned.size == (80, 60) and turned.dense is not None
    found = turned.dense
    assert found.semantic is not None and found.instances is not None and found.depth is not None
    outside = found.semantic == IGNORED
    assert 0.05 < outside.mean() < 0.5 and outside[0, 0] and not outside[30, 40]
    assert set(np.unique(found.semantic)) == {3, IGNORED}
    np.testing.assert_array_equal(found.instances, np.where(outside, 0, 7))
    np.testing.assert_array_equal(found.depth, np.where(outside, 0, np.float32(2.5)))
    assert (turned.pixels[outside] < 200).any() and turned.pixels[0, 0].tolist() == [0, 0, 0]


def test_a_crops_labels_are_padded_with_what_says_nothing() -> None:
    dense = labelled(5, 4)
    crop = Seen(shown(dense), dense).crop(Geometry((5, 4), (5, 4), (0, 0, 5, 4), (1, 2, 3, 4)))
    assert crop.dense is not None and crop.pixels.shape == (4, 5, 3)
    for kind, nothing in (("semantic", IGNORED), ("instances", 0), ("depth", 0)):
        found = getattr(crop.dense, kind).copy()
        assert found.shape == crop.geometry.padded == (10, 9)
        np.testing.assert_array_equal(found[2:6, 1:6], getattr(dense, kind))
        found[2:6, 1:6] = nothing
        assert (found == nothing).all()


@pytest.mark.parametrize("wanted", ["crops", "pictures"])
@pytest.mark.parametrize(
    ("dense", "what"),
    [
        (Dense(), "no labels"),
        (Dense(semantic=np.zeros((10, 21), np.uint8)), "semantic labels of 21x10.*20x10"),
        (Dense(depth=np.zeros((1, 10, 20), np.float32)), "depth labels of 20x10x1"),
        ("p0: torn mask", "torn mask"),
    ],
)
def test_labels_that_do_not_fit_are_told_from_a_bad_picture(
    dense: Dense | str, what: str, wanted: Any
) -> None:
    view = FixedSize(4, (8, 8))
    with pytest.raises(BadLabels, match=rf"p0.*{what}"):
        look(One(dense), 0, view, wanted, 0)
    crops, none = look(One(dense), 0, view, None, 0)  # whoever wants no labels does not care
    assert len(crops) == 1 and crops[0].dense is none is None


def test_labels_of_pictures_are_those_stored_and_those_of_crops_go_with_them() -> None:
    dense = labelled(20, 10)
    crops, found = look(One(dense), 0, WholePicture(4, 100), "pictures", 0)
    assert found is dense and crops[0].dense is None
    crops, found = look(One(dense), 0, FixedSize(4, (10, 20), interpolation="bilinear"), "crops", 0)
    assert found is None and crops[0].dense is not None
    assert crops[0].dense.semantic is not None and dense.semantic is not None
    np.testing.assert_array_equal(crops[0].dense.semantic[1:11], dense.semantic)
