"""Which patches are of the picture, and which lie on objects."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.coverage import by_patch, in_boxes, inside, masks_tell_objects, on_objects
from harness.data.dataset import IGNORED, Boxes, Dense, Target
from harness.data.fixed_size import FixedSize
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry, WholePicture
from harness.nano.scenes import ScenesDataset


def boxes(*xyxy: tuple[float, ...], crowd: bool = False) -> Boxes:
    flags = np.zeros(len(xyxy), bool)
    return Boxes(np.array(xyxy, float), ("thing",) * len(xyxy), flags | crowd, flags, flags)


def test_patches_with_padding_are_not_of_the_picture() -> None:
    wide, exact = (
        WholePicture(14, 99)(np.zeros((28, width, 3), np.uint8), Target(), 0, 0)[0].geometry
        for width in (30, 42)
    )
    found = inside([wide, exact], 14)
    np.testing.assert_array_equal(found[0], [[True, True, False]] * 2)
    assert found[1].all()
    high = WholePicture(14, 99)(np.zeros((30, 28, 3), np.uint8), Target(), 0, 0)[0].geometry
    np.testing.assert_array_equal(inside([high], 14)[0], [[True] * 2, [True] * 2, [False] * 2])
    centred = Geometry((20, 20), (20, 20), (0, 0, 20, 20), (4, 4, 4, 4))
    np.testing.assert_array_equal(inside([centred], 14), np.zeros((1, 2, 2)))


def test_a_patch_counts_as_much_of_it_as_is_on_an_object() -> None:
    pixels = np.zeros((2, 4, 6), np.float32)
    pixels[0, :2, :3] = 1
    np.testing.assert_allclose(by_patch(pixels, 4)[0], [[6 / 16, 0]])
    assert not by_patch(pixels, 4)[1].any()


def test_objects_come_from_instances_or_from_classes_that_are_no_background() -> None:
    instances = np.array([[0, 3]], np.uint8)
    semantic = np.array([[2, 0, IGNORED, 1]], np.uint8)
    assert on_objects(Dense(semantic, instances), 0).tolist() == [[0, 1]]
    assert on_objects(Dense(semantic), 0).tolist() == [[1, 0, 0, 1]]
    assert on_objects(Dense(semantic), 2).tolist() == [[0, 1, 0, 1]]
    with pytest.raises(ValueError, match="neither"):
        on_objects(Dense(), 0)
    assert masks_tell_objects(ScenesDataset("s", "test", 1, (32, 32)))
    assert not masks_tell_objects(GeneratedDataset("g", 1))


def test_boxes_go_through_the_view_with_the_picture() -> None:
    # 40 x 20 pixels, resized to 80 x 40, of which the middle 40 x 40 is taken.
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[5:15, 15:25] = 255
    crop = FixedSize(8, (40, 40), "middle")(picture, Target(), 0, 0)[0]
    found = in_boxes(boxes((15, 5, 25, 15)), crop.geometry)
    white = crop.pixels[..., 0] > 127
    np.testing.assert_array_equal(found > 0, white)
    assert 0 < white.sum() < white.size


def test_a_box_beyond_the_crop_is_cut_and_a_crowd_is_no_object() -> None:
    whole = WholePicture(8, 99)(np.zeros((10, 10, 3), np.uint8), Target(), 0, 0)[0].geometry
    found = in_boxes(boxes((-4, 2, 50, 4)), whole)
    assert found.shape == (16, 16)
    assert found.sum() == 20 and found[2:4, :10].all()
    assert not in_boxes(boxes((0, 0, 9, 9), crowd=True), whole).any()
    centred = Geometry((10, 10), (10, 10), (0, 0, 10, 10), (3, 2, 3, 4))
    assert np.argwhere(in_boxes(boxes((1, 0, 2, 1)), centred)).tolist() == [[2, 4]]
