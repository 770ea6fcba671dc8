"""The sentences about painted scenes are true, varied, and the same every time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from harness.data.catalog import Catalog
from harness.data.dataset import First
from harness.nano.captions import CAPTIONS, captions, colour_name, plural
from harness.nano.kinds import KINDS
from harness.nano.layouts import CLASSES, describe
from harness.nano.render import masks
from harness.nano.scenes import SEED, ScenesDataset

NUMBERS = ("a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
SIDE = 64


def told(index: int) -> tuple[str, ...]:
    scene = describe(SEED, index)
    return captions(scene, masks(scene, SIDE, SIDE))


def test_only_the_data_set_that_asks_has_captions_and_scenes_keep_their_fingerprint() -> None:
    plain = ScenesDataset("scenes", "test", 3, (SIDE, SIDE))
    captioned = ScenesDataset("scenes", "test", 3, (SIDE, SIDE), captions=True)
    assert all(sample.target.captions is None for sample in plain.samples)
    assert all(len(sample.target.captions or ()) == CAPTIONS for sample in captioned.samples)
    assert plain.fingerprint() != captioned.fingerprint()
    assert np.array_equal(plain.picture(2), captioned.picture(2))
    # As it was before there were captions.
    assert Catalog.load().open("scenes-demo")["test"].fingerprint().startswith("c576baed87faf11a")


def test_the_catalog_has_them_and_a_limit_keeps_them() -> None:
    roles = Catalog.load().open("scenes-captions")
    assert {role: len(each.samples) for role, each in roles.items()} == {
        "train": 16_000,
        "test": 400,
    }
    first = First(roles["test"], 2).samples[1].target.captions
    assert first == roles["test"].samples[1].target.captions
    assert first is not None and len(first) == CAPTIONS


def test_a_scene_is_told_the_same_way_every_time_and_scenes_differ() -> None:
    assert told(7) == told(7)
    assert len({text for index in range(40) for text in told(index)}) > 120


@pytest.mark.parametrize("index", range(26))
def test_the_first_caption_counts_what_is_to_be_seen(index: int) -> None:
    scene = describe(SEED, index)
    instances = masks(scene, SIDE, SIDE)
    pixels = np.bincount(instances.ravel(), minlength=len(scene.things) + 1)[1:]
    kinds = [
        thing.kind
        for thing, count in zip(scene.things, pixels, strict=True)
        if 500 * count >= SIDE * SIDE
    ]
    first = told(index)[0]
    assert CLASSES[scene.label].replace("_", " ") in first
    for kind in KINDS:
        count = kinds.count(kind)
        name = kind if count == 1 else plural(kind)
        wanted = rf"\b{NUMBERS[count - 1]} {name}\b" if count else rf"\b({kind}|{plural(kind)})\b"
        assert bool(re.search(wanted, first)) == bool(count), first


def test_left_of_is_left_of() -> None:
    """Of pictures with one thing of each of two kinds, so that words name things."""
    checked = 0
    for index in range(200):
        scene = describe(SEED, index)
        instances = masks(scene, SIDE, SIDE)
        kinds = [thing.kind for thing in scene.things]
        for text in told(index):
            match = re.search(r"(\w+) to the (left|right) of an? (?:\w+ )*?(\w+)(?: in |$)", text)
            if match is None:
                continue
            one, side, other = match.groups()
            if kinds.count(one) != 1 or kinds.count(other) != 1:
                continue
            middles = []
            for kind in (one, other):
                columns = np.nonzero((instances == kinds.index(kind) + 1).any(axis=0))[0]
                middles.append(columns[0] + columns[-1])
            assert (middles[0] < middles[1]) == (side == "left"), text
            checked += 1
    assert checked >= 5


def test_colours_have_their_names() -> None:
    named = {
        "red": (0.9, 0.1, 0.1),
        "orange": (1.0, 0.5, 0.1),
        "brown": (0.5, 0.3, 0.1),
        "green": (0.2, 0.8, 0.2),
        "blue": (0.1, 0.2, 0.9),
        "grey": (0.5, 0.5, 0.52),
        "pink": (0.95, 0.1, 0.6),
    }
    for name, (red, green, blue) in named.items():
        assert colour_name((red, green, blue)) == name


def test_a_scene_of_which_nothing_is_to_be_seen_is_told_by_its_place() -> None:
    scene = describe(SEED, 3)
    place = CLASSES[scene.label].replace("_", " ")
    assert all(place in text for text in captions(scene, np.zeros((8, 8), dtype=np.uint8)))
