from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.dataset import Boxes
from harness.discovery import component_box, finds, intersection_over_union, objects


def mask(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def boxes(
    xyxy: list[tuple[float, float, float, float]],
    crowd: list[bool] | None = None,
    hard: list[bool] | None = None,
) -> Boxes:
    none = [False] * len(xyxy)
    return Boxes(
        np.array(xyxy, float).reshape(-1, 4),
        ("thing",) * len(xyxy),
        np.array(crowd or none),
        np.array(hard or none),
        np.array(none),
    )


def test_the_box_goes_round_the_seeds_component_only() -> None:
    assert component_box(mask("##..", "....", "..##"), 0, 10, (40, 30)) == (0, 0, 20, 10)


def test_patches_that_touch_at_a_corner_are_not_one_component() -> None:
    assert component_box(mask("#..", ".#.", "..."), 0, 10, (30, 30)) == (0, 0, 10, 10)


def test_a_seed_outside_the_mask_gives_its_own_patch() -> None:
    assert component_box(mask("##", "#."), 3, 14, (28, 28)) == (14, 14, 28, 28)


def test_a_box_is_clipped_to_the_picture_and_not_to_its_padding() -> None:
    assert component_box(mask("##", "##"), 0, 14, (20, 15)) == (0, 0, 20, 15)


def test_an_iou_of_exactly_one_half_is_found() -> None:
    target = np.array([[0, 0, 10, 10]])
    assert intersection_over_union((0, 0, 10, 5), target)[0] == np.float32(0.5)
    assert finds((0, 0, 10, 5), target)
    assert not finds((0, 0, 10, 4), target)


def test_any_target_may_be_the_one_that_is_found() -> None:
    assert finds((0, 0, 4, 4), np.array([[50, 50, 60, 60], [0, 0, 4, 4]]))


@given(
    st.lists(st.integers(0, 400), min_size=4, max_size=4),
    st.lists(st.integers(0, 400), min_size=4, max_size=4),
)
def test_iou_agrees_with_a_count_of_pixels(one: list[int], other: list[int]) -> None:
    def ordered(v: list[int]) -> tuple[int, int, int, int]:
        return min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1

    a, b = ordered(one), ordered(other)
    canvas = np.zeros((2, 402, 402), bool)
    for layer, (x0, y0, x1, y1) in zip(canvas, (a, b), strict=True):
        layer[y0:y1, x0:x1] = True
    expected = (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()
    assert intersection_over_union(a, np.array([b]))[0] == pytest.approx(expected, abs=1e-6)


def test_crowds_never_count_and_hard_objects_only_if_kept() -> None:
    given_boxes = boxes(
        [(0, 0, 9, 9), (1, 1, 5, 5), (2, 2, 8, 8)], [True, False, False], [False, True, False]
    )
    assert objects(given_boxes).tolist() == [[1, 1, 5, 5], [2, 2, 8, 8]]
    assert objects(given_boxes, keep_hard=False).tolist() == [[2, 2, 8, 8]]


def test_boxes_are_rounded_half_to_even_as_pythons_round_does() -> None:
    assert objects(boxes([(0.5, 1.5, 9.4, 9.6)])).tolist() == [
        [round(0.5), round(1.5), round(9.4), round(9.6)]
    ]


def test_a_picture_without_boxes_has_no_objects() -> None:
    assert objects(None).shape == (0, 4)
    assert objects(boxes([])).shape == (0, 4)
