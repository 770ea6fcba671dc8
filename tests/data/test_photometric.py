from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.photometric import GammaColour, PhotometricDistortion, from_hsv, to_hsv
from harness.nano.draw import Draw

EVERY = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), -1).reshape(-1, 3)


def test_hue_saturation_and_value_are_the_definitions_to_a_level() -> None:
    found = to_hsv(EVERY).astype(int)
    expected = np.array([colorsys.rgb_to_hsv(*(each / 255)) for each in EVERY]) * [180, 255, 255]
    difference = np.abs(found - expected)
    difference[:, 0] = np.minimum(difference[:, 0], 180 - difference[:, 0])
    assert difference[:, :2].max() < 1 and not difference[:, 2].round(6).any()
    assert found[:, 0].max() < 180


@pytest.mark.parametrize(
    ("rgb", "hsv"),  # as cv2.cvtColor(…, cv2.COLOR_RGB2HSV) gives them
    [
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((255, 255, 255), (0, 0, 255)),
        ((0, 0, 0), (0, 0, 0)),
        ((128, 128, 0), (30, 255, 128)),
        ((255, 0, 2), (0, 255, 255)),  # 359.5 degrees: 0, not 180
    ],
)
def test_colours_are_opencvs_whole_numbers(rgb: tuple[int, ...], hsv: tuple[int, ...]) -> None:
    assert tuple(to_hsv(np.array(rgb, np.uint8)).tolist()) == hsv


def test_the_way_back_is_the_definition_to_a_level() -> None:
    hsv = (
        np.stack(np.meshgrid(np.arange(180), np.arange(0, 256, 15), np.arange(0, 256, 15)), -1)
        .reshape(-1, 3)
        .astype(np.uint8)
    )
    found = from_hsv(hsv).astype(int)
    expected = np.array([colorsys.hsv_to_rgb(h / 180, s / 255, v / 255) for h, s, v in hsv]) * 255
    assert np.abs(found - expected).max() < 0.51


@given(st.integers(0, 500))
def test_grey_stays_grey_and_a_draw_decides_all(seed: int) -> None:
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    found = PhotometricDistortion()(grey, Draw(seed))
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 1] == found[..., 2]).all()
    np.testing.assert_array_equal(found, PhotometricDistortion()(grey, Draw(seed)))
    assert (np.diff(found[0, :, 0].astype(int)) >= 0).all()


class Scripted(Draw):
    """A draw that takes what it is told: all or nothing, in one order, one end of each range."""

    def __init__(self, chances: list[bool], high: bool) -> None:
        self._chances, self._high = list(chances), high

    def chance(self, probability: float) -> bool:
        assert probability == 0.5
        return self._chances.pop(0)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return high if self._high else low

    def integer(self, low: int, high: int) -> int:
        return high if self._high else low


def test_each_change_is_made_in_its_turn() -> None:
    picture = np.array([[[100, 50, 30], [200, 250, 100]]], np.uint8)
    change = PhotometricDistortion()

    def made(*chances: bool, high: bool = True) -> list[list[int]]:
        # brightness, contrast first?, [contrast], saturation, hue, [contrast]
        result: list[list[int]] = change(picture, Scripted(list(chances), high))[0].tolist()
        return result

    assert made(False, False, False, False, False) == picture[0].tolist()
    assert made(True, False, False, False, False) == [[132, 82, 62], [232, 255, 132]]
    assert made(True, False, False, False, False, high=False) == [[68, 18, 0], [168, 218, 68]]
    assert made(False, True, True, False, False) == [[150, 75, 45], [255, 255, 150]]
    assert made(False, False, False, False, True, high=False) == [[50, 25, 15], [100, 125, 50]]
    # Contrast before saturation and after it differ: the first clips what the second reads.
    before = made(False, True, True, True, False)
    after = made(False, False, True, False, True)
    assert before != after
    red = np.array([[[255, 0, 0]]], np.uint8)
    turned = [
        change(red, Scripted([False, False, False, True, False], high)) for high in (True, False)
    ]
    # mmseg's randint leaves the upper end out: from -18 to 17.
    assert [int(to_hsv(each)[0, 0, 0]) for each in turned] == [17, 180 - 18]


def test_the_changes_of_half_the_pictures_spread_over_their_ranges() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)
    change = PhotometricDistortion(contrast=(1, 1), saturation=(1, 1), hue=1)
    found = np.array([change(grey, Draw(seed))[0, 0, 0] for seed in range(2000)], int)
    assert np.mean(found == 100) == pytest.approx(0.5, abs=0.05)
    assert found.min() in (68, 69) and found.max() in (130, 131)


def test_gamma_brightness_and_colours_are_the_toolboxs_to_half_a_level() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    change, changed = GammaColour(), 0
    for seed in range(40):
        draw = Draw(seed)
        expected = picture.astype(float)
        if draw.chance(0.5):
            changed += 1
            expected = expected ** draw.uniform(0.9, 1.1)
            expected = expected * draw.uniform(0.75, 1.25)
            expected = np.clip(expected * [draw.uniform(0.9, 1.1) for _ in range(3)], 0, 255)
        found = change(picture, Draw(seed))
        assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 0.5 + 1e-9
    assert 10 < changed < 30
