"""Views of dense tasks: pixels and labels are cut by the same numbers, and nothing else decides."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_labels import labelled, read_back, shown

from harness.data.dataset import IGNORED, Dense, Target
from harness.data.depth_views import DepthTraining, WholeCentred, cut_of
from harness.data.fixed_size import FixedSize
from harness.data.segmentation_views import SegmentationTraining, SlidingWindows, starts
from harness.data.views import Crop, crops_of
from harness.errors import BadPicture

sides = st.integers(1, 90)
SEGMENTATION = SegmentationTraining(7, crop=40, short=40, colours=None)
DEPTH = DepthTraining(7, crop=(30, 40), cut=None, colours=None)
FIXED = FixedSize(7, (30, 40))
KINDS = ("semantic", "instances", "depth")


def seen(view: Any, dense: Dense, seed: int = 0, index: int = 0) -> Crop:
    (crop,) = view(shown(dense), Target(), seed, index, dense)
    assert crop.geometry.padded == view.padded == crop.dense.semantic.shape
    assert all(side % view.patch == 0 for side in view.padded)
    found: Crop = crop
    return found


def inside(crop: Crop) -> dict[str, Any]:
    """The labels of a crop without its padding, which must say nothing."""
    assert crop.dense is not None
    _, _, width, height = crop.geometry.crop
    left, top = crop.geometry.pad[:2]
    part, found = (slice(top, top + height), slice(left, left + width)), {}
    assert crop.pixels.shape == (height, width, 3)
    for kind, nothing in zip(KINDS, (IGNORED, 0, 0), strict=True):
        labels = getattr(crop.dense, kind)
        outside = np.ones(labels.shape, bool)
        outside[part] = False
        assert (labels[outside] == nothing).all()
        found[kind] = labels[part]
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 1000))
@pytest.mark.parametrize(
    "view", [replace(SEGMENTATION, scale=(1.0, 1.0)), replace(DEPTH, rotate=0.0)]
)
def test_a_crop_that_is_not_resized_shows_exactly_its_labels(
    view: Any, width: int, height: int, index: int
) -> None:
    if isinstance(view, SegmentationTraining):
        view = replace(view, short=min(width, height))
    crop = seen(view, labelled(width, height), index=index)
    there = inside(crop)
    shows = read_back(crop.pixels)
    for kind in KINDS:
        np.testing.assert_array_equal(there[kind], getattr(shows, kind))


@pytest.mark.parametrize("view", [SEGMENTATION, DEPTH, FIXED, replace(FIXED, takes="middle")])
def test_a_crop_that_is_resized_or_turned_shows_its_labels_but_at_their_edges(view: Any) -> None:
    dense = labelled(120, 100, block=30)
    for index in range(12):
        crop = seen(view, dense, index=index)
        there, shows = inside(crop), read_back(crop.pixels)
        for kind in KINDS:
            labels = there[kind]
            alike = np.abs(labels.astype(float) - getattr(shows, kind)) < 2
            assert alike.mean() > 0.7, (kind, index)


@pytest.mark.parametrize("view", [SEGMENTATION, DEPTH])
def test_seed_and_index_decide_and_nothing_else(view: Any) -> None:
    dense = labelled(100, 80)

    def bits(of: Any, seed: int, index: int) -> list[bytes]:
        crop = seen(of, dense, seed, index)
        return [crop.pixels.tobytes(), *(getattr(crop.dense, kind).tobytes() for kind in KINDS)]

    first = bits(view, 1, 2)
    torch.manual_seed(99)
    np.random.seed(99)
    assert bits(pickle.loads(pickle.dumps(view)), 1, 2) == first
    others = [bits(view, 2, 2), bits(view, 1, 3)]
    assert all(first[0] != other[0] and first[1] != other[1] for other in others)


@pytest.mark.parametrize("view", [SEGMENTATION, DEPTH])
def test_half_are_flipped_and_the_geometry_says_which(view: Any) -> None:
    plain = replace(view, flip=0.0)
    flips = 0
    for index in range(60):
        crop, straight = (seen(v, labelled(64, 64), index=index) for v in (view, plain))
        assert not straight.geometry.mirrored
        assert replace(crop.geometry, mirrored=False) == straight.geometry
        there, expected = inside(crop)["semantic"], inside(straight)["semantic"]
        if crop.geometry.mirrored:
            flips, expected = flips + 1, expected[:, ::-1]
        np.testing.assert_array_equal(there, expected)
    assert 18 < flips < 42


@pytest.mark.parametrize("view", [SEGMENTATION, DEPTH])
def test_colours_move_no_label_and_no_place(view: Any) -> None:
    default = type(view)(7).colours
    for index in range(10):
        plain, coloured = (
            seen(v, labelled(80, 64), index=index) for v in (view, replace(view, colours=default))
        )
        assert plain.geometry == coloured.geometry
        np.testing.assert_array_equal(inside(plain)["depth"], inside(coloured)["depth"])
    assert not np.array_equal(plain.pixels, coloured.pixels)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 1000))
def test_a_training_crop_lies_where_its_geometry_says(width: int, height: int, index: int) -> None:
    dense = labelled(width, height, block=1)
    crop = seen(SEGMENTATION, dense, index=index)
    x, y, wide, high = crop.geometry.crop
    across, down = crop.geometry.resized
    assert crop.geometry.stored == (width, height) and x + wide <= across and y + high <= down
    assert wide == min(40, across) and high == min(40, down)
    assert 0.5 * 40 - 1 <= min(across, down) <= 2 * 40
    stored = np.arange(width * height).reshape(height, width)
    rows = np.floor(np.arange(down, dtype=np.float32) * np.float32(height / down)).astype(int)
    columns = np.floor(np.arange(across, dtype=np.float32) * np.float32(width / across))
    places = stored[rows.clip(0, height - 1)][:, columns.astype(int).clip(0, width - 1)]
    places = places[y : y + high, x : x + wide]
    if crop.geometry.mirrored:
        places = places[:, ::-1]
    assert dense.semantic is not None
    np.testing.assert_array_equal(inside(crop)["semantic"], dense.semantic.ravel()[places])
    # What a small picture lacks lies right and below; the rest of the padding is centred.
    left, top, right, bottom = crop.geometry.pad
    assert (left, top) == (1, 1) and (right, bottom) == (1 + 40 - wide, 1 + 40 - high)


def test_a_crop_of_one_class_is_drawn_again() -> None:
    semantic = np.zeros((40, 400), np.uint8)
    semantic[:, 180:] = IGNORED  # counts for nothing
    semantic[:, 200:220] = 1
    semantic[:, 220:240] = 2
    dense = Dense(semantic=semantic)

    def mixed(view: SegmentationTraining) -> int:
        count = 0
        for index in range(60):
            (crop,) = view(np.zeros((40, 400, 3), np.uint8), Target(), 0, index, dense)
            assert crop.dense is not None and crop.dense.semantic is not None
            shares = np.bincount(crop.dense.semantic.ravel(), minlength=256)[:IGNORED]
            count += bool(shares.sum()) and shares.max() / shares.sum() < 0.75
        return count

    view = replace(SEGMENTATION, scale=(1.0, 1.0))
    assert mixed(replace(view, most_of_one=1.0)) < 15
    assert mixed(view) > 35


def test_without_labels_a_joint_view_gives_pixels_alone() -> None:
    for view in (SEGMENTATION, DEPTH, FIXED):
        (crop,) = view(np.zeros((90, 100, 3), np.uint8), Target(), 0, 0)
        assert crop.dense is None and crop.geometry.padded == view.padded


# ------------------------------------------------------------------------------------ windows


@given(st.integers(1, 300), st.integers(1, 100), st.data())
def test_windows_along_a_side_cover_it_and_none_is_needless(
    side: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    found = starts(side, window, stride)
    covered = {place for x in found for place in range(x, min(x + window, side))}
    assert covered == set(range(side)) and len(set(found)) == len(found)
    # mmseg's own arithmetic (slide_inference)
    count = max(side - window + stride - 1, 0) // stride + 1
    ends = [min(stride * number + window, side) for number in range(count)]
    assert found == [max(end - window, 0) for end in ends]


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.booleans(), st.sampled_from([(1.0,), (0.5, 1.0, 1.75)]))
def test_windows_show_every_pixel_where_their_geometry_says(
    width: int, height: int, flip: bool, scales: tuple[float, ...]
) -> None:
    view = SlidingWindows(7, 30, 20, 13, scales, flip)
    picture = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), np.uint8)
    crops = view(picture, Target(), 0, 0)
    assert len(crops) == crops_of(view, (width, height))
    seen: dict[Any, Any] = {}
    for crop in crops:
        geometry = crop.geometry
        x, y, wide, high = geometry.crop
        assert geometry.stored == (width, height) and crop.pixels.shape == (high, wide, 3)
        assert all(side % 7 == 0 for side in geometry.padded)
        across, down = geometry.resized
        at = seen.setdefault(geometry.resized, {}).setdefault(
            geometry.mirrored, np.full((down, across, 3), -1, int)
        )
        pixels = crop.pixels[:, ::-1] if geometry.mirrored else crop.pixels
        known = at[y : y + high, x : x + wide]
        assert ((known == -1) | (known == pixels)).all(), "windows that overlap agree"
        at[y : y + high, x : x + wide] = pixels
    assert len(seen) == len({min(size) for size in seen}) == len(scales)
    for found in seen.values():
        assert sorted(found) == [False, True][: 1 + flip]
        assert all((at >= 0).all() for at in found.values())
        assert not flip or np.array_equal(found[False], found[True])


@settings(max_examples=30, deadline=None)
@given(sides, sides)
def test_windows_of_the_flipped_picture_are_where_mmseg_has_them(width: int, height: int) -> None:
    """It flips the resized picture and then lets windows slide over it from the left."""
    view = SlidingWindows(7, min(width, height), 20, 13, flip=True)  # nothing is resized
    picture = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), np.uint8)
    flipped = [c for c in view(picture, Target(), 0, 0) if c.geometry.mirrored]
    expected = replace(view, flip=False)(picture[:, ::-1], Target(), 0, 0)
    assert len(flipped) == len(expected)
    for one, other in zip(flipped, expected, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_picture_no_larger_than_a_window_is_seen_whole() -> None:
    (crop,) = SlidingWindows(7, 30, 45, 13)(np.zeros((60, 90, 3), np.uint8), Target(), 0, 0)
    assert crop.geometry.crop == (0, 0, *crop.geometry.resized) == (0, 0, 45, 30)


def test_the_published_windows_of_a_picture_of_640_by_480() -> None:
    crops = SlidingWindows(14)(np.zeros((480, 640, 3), np.uint8), Target(), 0, 0)
    assert [crop.geometry.crop for crop in crops] == [(0, 0, 512, 512), (171, 0, 512, 512)]
    assert {crop.geometry.pad for crop in crops} == {(3, 3, 3, 3)}
    assert crops[0].geometry.padded == (518, 518)


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="gaps"):
        SlidingWindows(14, window=100, stride=101)


def test_a_picture_that_cannot_be_resized_has_no_window_to_plan_for() -> None:
    view = SlidingWindows(14)
    assert crops_of(view, (1, 5000)) == crops_of(view, (0, 0)) == 0
    with pytest.raises(BadPicture, match="shorter side of 512"):
        view(np.zeros((5000, 1, 3), np.uint8), Target(), 0, 0)


# -------------------------------------------------------------------------------------- depth


def test_the_cuts_are_the_toolboxs() -> None:
    grid = np.arange(640 * 480).reshape(480, 640)
    x, y, width, height = cut_of((640, 480), "nyu")
    np.testing.assert_array_equal(grid[y : y + height, x : x + width], grid[45:472, 43:608])
    assert cut_of((1242, 375), "kitti") == (13, 23, 1216, 352)
    assert cut_of((1241, 376), "kitti") == (12, 24, 1216, 352)
    assert cut_of((3, 4), None) == (0, 0, 3, 4)


@pytest.mark.parametrize(("size", "cut"), [((600, 480), "nyu"), ((1242, 351), "kitti")])
def test_a_picture_too_small_for_its_cut_is_refused(size: tuple[int, int], cut: Any) -> None:
    picture = np.zeros((*size[::-1], 3), np.uint8)
    for view in (DepthTraining(14, cut=cut), WholeCentred(14, 10_000, cut=cut)):
        with pytest.raises(BadPicture, match=f"{size[0]}x{size[1]} pixels.*{cut}"):
            view(picture, Target(), 0, 0)


def test_the_published_depth_crops_lie_in_the_cut() -> None:
    view, dense = DepthTraining(14), labelled(640, 480, block=40)
    corners = set()
    for index in range(12):
        crop = seen(view, dense, index=index)
        x, y, width, height = crop.geometry.crop
        assert (width, height) == (544, 416) and crop.geometry.padded == (420, 546)
        assert crop.geometry.pad == (1, 2, 1, 2)
        assert 43 <= x <= 608 - 544 and 45 <= y <= 472 - 416
        corners.add((x, y))
    assert len(corners) > 8


def test_half_are_turned_and_what_turns_in_has_no_depth() -> None:
    dense = Dense(depth=np.full((300, 300), 5, np.float32))
    view = replace(DEPTH, crop=(300, 300), degrees=10.0)
    empty = []
    for index in range(40):
        (crop,) = view(np.full((300, 300, 3), 9, np.uint8), Target(), 0, index, dense)
        assert crop.dense is not None and crop.dense.depth is not None
        assert set(np.unique(crop.dense.depth)) <= {0, 5}
        _, _, right, bottom = crop.geometry.pad
        high, wide = crop.geometry.padded
        empty.append(bool((crop.dense.depth[1 : high - bottom, 1 : wide - right] == 0).any()))
    assert 10 < sum(empty) < 30


@settings(max_examples=30, deadline=None)
@given(sides, sides)
def test_a_whole_picture_is_seen_twice_once_flipped(width: int, height: int) -> None:
    view = WholeCentred(7, 10_000)
    picture = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), np.uint8)
    plain, flipped = view(picture, Target(), 0, 0)
    assert crops_of(view, (width, height)) == 2 and crops_of(replace(view, flip=False), (9, 9)) == 1
    np.testing.assert_array_equal(plain.pixels, picture)
    np.testing.assert_array_equal(flipped.pixels, picture[:, ::-1])
    assert flipped.geometry == replace(plain.geometry, mirrored=True)
    assert len(replace(view, flip=False)(picture, Target(), 0, 0)) == 1


def test_a_whole_picture_of_too_many_patches_names_the_setting() -> None:
    with pytest.raises(BadPicture, match=r"90x20 pixels are 39 patches.*max_patches 38"):
        WholeCentred(7, 38)(np.zeros((20, 90, 3), np.uint8), Target(), 0, 0)


# -------------------------------------------------------------------------------------- fixed


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 60), st.integers(1, 60))
def test_any_picture_is_seen_at_the_fixed_size(
    width: int, height: int, high: int, wide: int
) -> None:
    for takes in ("whole", "middle"):
        view = FixedSize(7, (high, wide), takes)  # type: ignore[arg-type]
        crop = seen(view, labelled(width, height))
        x, y, found_wide, found_high = crop.geometry.crop
        across, down = crop.geometry.resized
        assert (found_high, found_wide) == (high, wide)
        if takes == "whole":
            assert (x, y, across, down) == (0, 0, wide, high)
        else:
            assert min(across - wide, down - high) == 0, "no more is cut off than must be"
            assert 0 <= across - wide - 2 * x <= 1 and 0 <= down - high - 2 * y <= 1
            assert abs(across * height - down * width) <= max(width, height)  # its shape is kept


def test_a_picture_that_covering_would_blow_up_is_refused() -> None:
    with pytest.raises(BadPicture, match="cover 500x500"):
        FixedSize(7, (500, 500), "middle")(np.zeros((1, 3000, 3), np.uint8), Target(), 0, 0)
