from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.data import typographic
from harness.data.dataset import Labels, Target
from harness.data.typographic import WordPainted, check_words, fitted, right_of, wrong_class
from harness.data.views import CentreCrop
from harness.errors import HarnessError
from harness.features.keys import can_be_keyed
from harness.language.pictures import Squashed

WORDS = ("cat", "fire truck", "black-footed albatross", "кот", "größe")
CROP = CentreCrop(112, 112)
PIXELS = "a33a9d9d48355af0b7624f69dec77814c8cbd939e3c0a9cde19db367ec795de1"


def grey(width: int = 150, height: int = 120) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def painted(view: WordPainted, label: int = 0, seed: int = 0, index: int = 0) -> NDArray[np.uint8]:
    (crop,) = view(grey(), Target(label=label), seed, index)
    return crop.pixels


def test_the_pixels_are_those_that_are_pinned() -> None:
    digest = hashlib.sha256()
    for index in range(6):
        digest.update(painted(WordPainted(CROP, WORDS), index % 5, 7, index).tobytes())
    assert digest.hexdigest() == PIXELS


def test_a_word_is_drawn_from_seed_and_index_and_is_never_a_right_ones() -> None:
    view = WordPainted(CROP, WORDS)
    assert np.array_equal(painted(view, seed=3, index=4), painted(view, seed=3, index=4))
    looks = {painted(view, seed=seed, index=i).tobytes() for seed in (0, 1) for i in range(8)}
    assert len(looks) == 16
    chosen = [wrong_class(WORDS, (0, 3), 0, index) for index in range(300)]
    assert set(chosen) == {1, 2, 4}
    assert min(chosen.count(place) for place in (1, 2, 4)) > 70
    assert {wrong_class(("a", "b", "a", "c"), (2,), 0, i) for i in range(40)} == {1, 3}
    with pytest.raises(HarnessError, match="no wrong name"):
        wrong_class(("a", "a"), (0,), 0, 0)


def test_classes_that_are_unclear_are_not_painted_either() -> None:
    assert right_of(Target(labels=Labels((1, 2), (4,)))) == (1, 2, 4)
    assert right_of(Target(label=3)) == (3,)
    assert right_of(Target()) == ()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([*WORDS, "a", "W" * 30, "three toed sloth of the northern woods"]),
    st.integers(48, 260),
    st.integers(48, 260),
    st.booleans(),
    st.integers(0, 9),
)
def test_every_word_is_wholly_within_the_picture(
    word: str, width: int, height: int, outline: bool, index: int
) -> None:
    try:
        em, text = fitted(word, (width, height), round(0.4 * min(width, height)), outline)
    except HarnessError:
        assert len(word) > 20 and width < 200
        return
    left, top, right, bottom = typographic._box(text, em, em // 14 + 1 if outline else 0)
    assert right - left <= width + 2 and bottom - top <= height + 2
    assert text.split() == word.split()
    view = WordPainted(
        Squashed(max(width, height)), (word, "other"), letters=0.4, outline=outline, ink="white"
    )
    seen = painted(view, label=1, index=index)
    changed = (seen != 128).any(axis=2)
    assert changed.any()


def test_a_place_a_colour_an_edge_and_opacity_are_settings_that_show() -> None:
    rows = {}
    for place in ("top", "middle", "bottom"):
        found = painted(WordPainted(CROP, WORDS, place=place, ink="white"))  # type: ignore[arg-type]
        rows[place] = np.flatnonzero((found != 128).any(axis=(1, 2)))
    assert rows["top"][0] <= 1
    assert rows["bottom"][-1] >= 110
    assert abs(int(rows["middle"][0]) - (111 - int(rows["middle"][-1]))) <= 2
    white, black, bare, faint = (
        painted(WordPainted(CROP, WORDS, place="middle", **changes))  # type: ignore[arg-type]
        for changes in (
            {"ink": "white"},
            {"ink": "black"},
            {"ink": "white", "outline": False},
            {"ink": "white", "opacity": 0.25},
        )
    )
    for seen in (white, black):  # an edge is of the other colour
        assert (seen == 255).any() and (seen == 0).any()
    assert not np.array_equal(white, black)
    assert bare.min() == 128 and bare.max() == 255
    assert 128 < faint.max() < 170
    small = painted(WordPainted(CROP, WORDS, letters=0.1, place="middle", ink="white"))
    assert (small != 128).sum() < (white != 128).sum() / 2


def test_its_view_can_be_keyed_and_every_setting_is_in_the_key() -> None:
    views = {
        WordPainted(CROP, WORDS),
        WordPainted(CROP, WORDS[:4]),
        WordPainted(CROP, WORDS, letters=0.3),
        WordPainted(CROP, WORDS, place="top"),
        WordPainted(CROP, WORDS, ink="black"),
        WordPainted(CROP, WORDS, outline=False),
        WordPainted(CROP, WORDS, opacity=0.5),
        WordPainted(Squashed(112), WORDS),
    }
    assert len(views) == 8
    assert all(can_be_keyed(view) for view in views)
    assert WordPainted(CROP, WORDS).padded == (112, 112)
    assert getattr(WordPainted(CROP, WORDS), "seeded", True)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("猫", "has no '猫' (CJK UNIFIED IDEOGRAPH-732B)"),
        ("a\u0007b", "has no '\\x07' (U+0007)"),
        ("قط", "(ARABIC LETTER QAF) has to be set with others"),
        ("e\u0301", "(COMBINING ACUTE ACCENT) has to be set with others"),
    ],
)
def test_a_name_that_the_font_cannot_set_is_refused_by_its_letter(word: str, what: str) -> None:
    check_words(WORDS)
    with pytest.raises(HarnessError, match=re.escape(what)) as refused:
        check_words(["cat", word])
    assert "--set prompts=FILE" in str(refused.value)


def test_a_word_that_does_not_fit_is_refused() -> None:
    with pytest.raises(HarnessError, match="does not fit in a picture of 40x40 pixels"):
        fitted("x" * 80, (40, 40), 20, True)


def test_another_font_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    typographic._font_file.cache_clear()
    monkeypatch.setattr(typographic, "FONT_SHA256", "0" * 64)
    try:
        with pytest.raises(HarnessError, match="another font than words are painted in"):
            typographic._font_file()
    finally:
        typographic._font_file.cache_clear()
