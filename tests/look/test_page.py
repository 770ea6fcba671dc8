from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.discovery import Discovered, component_box
from harness.errors import HarnessError
from harness.look.html import page
from harness.look.page import draw, form_of
from harness.look.sections import BOX, NORM_COLOURS, SEED, Bar, Section, sections
from harness.look.seen import Map, Seen

HOSTILE = ["$x_1$ \\frac{a}{b}", "<b>&amp;{}%", "水 🐶", "very " * 900, ""]


def seen(
    picture: tuple[int, int],
    patch: int = 8,
    model: str = "model",
    registers: int = 2,
    level: int = 0,
) -> Seen:
    """Of a picture (height, width), norms that count patches from ``level``."""
    rows, columns = (-(-side // patch) for side in picture)
    count = rows * columns
    values = (np.arange(count, dtype=np.float32) + level).reshape(rows, columns)
    mask = np.zeros((rows, columns), bool)
    mask[0, 0] = True
    box = component_box(mask, 0, patch, (picture[1], picture[0]))
    names = ["class token", *(f"register {number}" for number in range(registers))]
    return Seen(
        model=model,
        told="told",
        patch=patch,
        norms=[Map(f"layer {layer}", values) for layer in range(5)],
        attention=[Map(name, values) for name in names] if registers else [],
        absent=None if registers else "for a reason",
        colours=np.zeros((rows, columns, 3), np.uint8),
        discovered=Discovered(0, values.astype(np.int64), mask, box, False),
        patch_norms=values,
        class_norm=None,
        register_norms=[1.0] * registers,
    )


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG" and image.mode == "RGB" and not image.info
        return np.array(image)


def norms_of(made: list[Section], model: int) -> NDArray[np.uint8]:
    panel = made[0].rows[model].panels[0]
    assert panel is not None
    return panel.pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from((4, 8, 14)))
def test_a_patch_is_shown_where_it_is_in_the_picture(height: int, width: int, patch: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    one = seen((height, width), patch)
    form = form_of(width, height, 5)
    panel = norms_of(sections(picture, [one], form.size), 0)
    assert panel.shape == (form.height, form.width, 3)
    high = max(one.patch_norms.max(), 1e-6)
    colours = matplotlib.colormaps[NORM_COLOURS]
    for y in {0, form.height // 2, form.height - 1}:
        for x in {0, form.width // 2, form.width - 1}:
            row, column = (
                int((at + 0.5) * side / shown) // patch
                for at, side, shown in ((y, height, form.height), (x, width, form.width))
            )
            value = np.float64(one.patch_norms[row, column]) / high
            assert tuple(panel[y, x]) == tuple(colours(value, bytes=True)[:3])


def test_models_of_other_patches_share_the_scale_of_every_layer() -> None:
    picture = np.zeros((56, 56, 3), np.uint8)
    models = [seen((56, 56), 8), seen((56, 56), 14, level=33)]
    made = sections(picture, models, (224, 224))
    bar = made[0].feet[0]
    assert isinstance(bar, Bar) and bar.limits == (0, 48)
    first, second = (norms_of(made, model) for model in range(2))
    # 48 is the last patch of both; 33 the first of one, and in row 4 of the other.
    assert tuple(first[-1, -1]) == tuple(second[-1, -1])
    assert tuple(second[0, 0]) == tuple(first[4 * 32 + 9, 5 * 32 + 9])
    assert tuple(first[0, 0]) != tuple(second[0, 0])


def test_seed_and_box_are_framed_where_they_are() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    panel = sections(picture, [seen((40, 80))], (400, 200))[2].rows[0].panels[2]
    assert panel is not None
    where = np.argwhere((panel.pixels == SEED).all(-1))
    assert where.min() == 0 and where.max() <= 41
    far = seen((40, 80))
    far = far._replace(discovered=far.discovered._replace(seed=49, box=(16, 8, 64, 32)))
    panel = sections(picture, [far], (400, 200))[2].rows[0].panels[2]
    assert panel is not None
    frame = np.argwhere((panel.pixels == BOX).all(-1))
    np.testing.assert_allclose(frame.min(0), (40, 80), atol=2)
    np.testing.assert_allclose(frame.max(0), (160, 320), atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 640), (640, 2), (37, 61)])
def test_any_picture_has_a_page_and_one_picture_always_the_same(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    models = [seen(size, 8, HOSTILE[0]), seen(size, 14, HOSTILE[1], registers=0)]
    heading = [HOSTILE[3], HOSTILE[2]]
    first = draw(picture, heading, models)
    if size == (37, 61):
        assert first == draw(picture, heading, models)
    shown = pixels(first)
    assert 400 < shown.shape[1] < 1700
    assert (shown[:8] == 255).all() and (shown[:, -8:] == 255).all()  # nothing beyond the margin


def test_what_a_model_lacks_is_said_and_a_section_goes_on_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness.pictured.sheet import Sheet

    said: list[str] = []
    plain = Sheet.text

    def text(self: Sheet, x: int, y: int, words: str, *rest: Any, **more: Any) -> None:
        said.append(words)
        plain(self, x, y, words, *rest, **more)

    monkeypatch.setattr(Sheet, "text", text)
    picture = np.zeros((32, 32, 3), np.uint8)
    models = [seen((32, 32), model="many", registers=12), seen((32, 32), model="none", registers=0)]
    draw(picture, ["heading"], models)
    assert said.count("left out: for a reason") == 1
    assert [said.count(f"register {number}") for number in range(12)] == [1] * 12
    assert said.count("many") > said.count("none")


def test_a_page_too_tall_to_be_drawn_is_an_error() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(HarnessError, match=r"pixels high.*fewer --layers or models"):
        draw(picture, ["heading"], [seen((32, 32))] * 60)


def test_the_html_page_escapes_names_and_needs_no_other_file() -> None:
    facts = {
        "picture": "<script>alert('x')</script>\".jpg",
        "size": [3, 2],
        "models": [
            {
                "model": "a&b",
                "grid": [1, 2],
                "patch_norm": {"median": 1.5, "largest": 2.5},
                "class_norm": None,
                "register_norms": [],
                "lost": {"box": [0, 0, 1, 1]},
            }
        ],
    }
    text = page("a&b", [(facts, b"PNG"), (facts, b"PNG")])
    assert "<script" not in text and "a&amp;b" in text and "a&b" not in text
    assert text.count('src="') == text.count('src="data:image/png;base64,UE5H"') == 2
    assert "http" not in text and text.count("<img alt=") == 2 and 'lang="en"' in text
    assert "prefers-color-scheme: dark" in text
    assert 'href="#picture-2"' in text and 'id="picture-2"' in text


def test_five_panels_of_a_wide_picture_stand_in_one_row() -> None:
    wide = form_of(600, 304, 5)
    assert wide.columns == 5 and wide.page <= 1600
    assert form_of(2_000, 300, 5).columns < 5  # a panorama is not made a slit
