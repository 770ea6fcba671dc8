from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.pictured import panels
from harness.pictured.contract import Shown
from harness.pictured.palette import palette
from harness.pictured.panels import LEGEND, draw, layout
from harness.pictured.sheet import coloured, drawable, fitted, plain_settings, text_width

HEADING = "worst 1: mIoU 41.2 %", "an id", "model · data set · protocol"
NAMES = [f"class {number}" for number in range(150)]
RED = np.array((225, 25, 40))
HOSTILE = [
    "$x_1$ \\frac{a}{b}",
    "$unbalanced_{",
    "$\\no{$ mathematics",
    "very " * 4000 + "long",
    "水のボトル 🐶",
    "_under_\\\\",
    "\x00\x1b[31m\n\ttabs \ud800",
    "مرحبا",
    "",
    "<b>&amp;{}%",
]


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def of_classes(truth: Any, prediction: Any) -> Shown:
    maps = np.asarray(prediction, np.uint8), np.asarray(truth, np.uint8)
    return Shown("id", *maps, "classes", "mIoU 41.2 %")


def of_depth(truth: Any, prediction: Any) -> Shown:
    maps = np.asarray(prediction, np.float32), np.asarray(truth, np.float32)
    return Shown("id", *maps, "depth", "RMSE 0.43 m")


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG" and image.mode == "RGB" and not image.info
        return np.array(image)


def panel(page: NDArray[np.uint8], number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """What the panel of a picture of that (height, width) shows."""
    form = layout(size[1], size[0])
    top = panels._MARGIN + panels._HEAD * len(HEADING) + panels._GAP + panels._LINE
    x, y = form.left(number), top + number // form.columns * form.row
    return page[y : y + form.height, x : x + form.width]


def test_the_panels_show_input_truth_prediction_and_what_is_wrong() -> None:
    picture, truth = noise(100, 100), np.repeat([[0] * 50 + [7] * 50], 100, axis=0)
    told = truth.copy()
    told[:20] = 3
    truth[80:] = 255
    page = pixels(draw(picture, of_classes(truth, told), NAMES, HEADING))
    view, true, predicted, error = (
        panel(page, number, (100, 100))[2::4, 2::4].astype(int) for number in range(4)
    )
    assert (view == picture).all()
    assert (true[:80] == palette()[truth[:80]]).all()
    assert (predicted == palette()[told]).all()
    assert (true[80:] == error[80:]).all(), "what is not labelled is hatched"
    assert {tuple(each) for each in true[80:].reshape(-1, 3)} == {(165,) * 3, (215,) * 3}
    assert (abs(error[:20] - RED).max(-1) < 80).all(), "wrong is red"
    right = error[20:80]
    assert (right[..., 0] == right[..., 1]).all() and (right[..., 1] == right[..., 2]).all()
    grey = picture[20:80] @ np.array([0.299, 0.587, 0.114])
    assert np.corrcoef(right[..., 0].ravel(), grey.ravel())[0, 1] > 0.99


def test_depths_share_their_colours_and_errors_have_their_own() -> None:
    truth = np.linspace(1, 5, 100 * 100).reshape(100, 100)
    told = truth[::-1].copy()
    truth[:10], told[10, 0] = 0, np.nan
    page = pixels(draw(noise(100, 100), of_depth(truth, told), (), HEADING))
    true, predicted, error = (panel(page, number, (100, 100))[2::4, 2::4] for number in range(1, 4))
    low, high = np.float32(truth[10:]).min(), np.float32(truth).max()
    with plain_settings():
        assert (true[10:] == coloured(np.float32(truth[10:]), "viridis", low, high)).all()
        assert (predicted[11:] == coloured(np.float32(told[11:]), "viridis", low, high)).all()
    hatched = {(165, 165, 165), (215, 215, 215)}
    assert {tuple(each) for each in true[:10].reshape(-1, 3).tolist()} == hatched
    assert {tuple(each) for each in error[:10].reshape(-1, 3).tolist()} == hatched
    assert tuple(predicted[10, 0]) in hatched and tuple(error[10, 0]) in hatched
    rows = error[11:].astype(int).sum(-1).mean(1)
    assert rows.argmin() in range(37, 41), "the two agree in the middle"
    assert rows[0] > rows[20] > rows[38] < rows[60] < rows[88]


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        (np.zeros((9, 9)), np.full((9, 9), 2)),
        (np.full((9, 9), np.nan), np.full((9, 9), np.nan)),
        (np.full((9, 9), 3), np.full((9, 9), 3)),
        (np.full((9, 9), 3), np.full((9, 9), np.inf)),
        (np.full((9, 9), np.inf), np.full((9, 9), np.inf)),
        (np.eye(9) * 1e-3, np.full((9, 9), -1e30)),
        (np.eye(9) * 80, np.zeros((9, 9))),
    ],
)
def test_depths_that_say_little_are_drawn_without_a_warning(truth: Any, told: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(draw(noise(9, 9), of_depth(truth, told), (), HEADING))


@pytest.mark.parametrize(
    ("size", "columns", "panel_size"),
    [
        ((32, 32), 4, (384, 384)),
        ((1, 1), 4, (400, 400)),
        ((360, 480), 4, (360, 480)),
        ((480, 640), 4, (360, 480)),
        ((3000, 2000), 4, (480, 320)),
        ((2000, 3000), 4, (320, 480)),
        ((375, 1242), 2, (242, 800)),
        ((3000, 2), 4, (480, 1)),
        ((2, 3000), 2, (1, 800)),
    ],
)
def test_large_pictures_are_reduced_and_small_ones_enlarged(
    size: tuple[int, int], columns: int, panel_size: tuple[int, int]
) -> None:
    form = layout(size[1], size[0])
    assert (form.columns, (form.height, form.width)) == (columns, panel_size)
    truth = np.zeros(size)
    truth[: size[0] // 2] = 9
    page = pixels(draw(noise(*size), of_classes(truth, truth), NAMES, HEADING))
    assert page.shape[1] == form.page and page.shape[0] < 1200
    assert (panel(page, 1, size)[-1] == palette()[0]).all()


def count_of_squares(page: NDArray[np.uint8]) -> int:
    """Of a legend: distinct colours of the palette below the panels (panels are of 4 x 4)."""
    form = layout(4, 4)
    foot = page[panels._MARGIN + 3 * panels._HEAD + panels._GAP + form.body :].reshape(-1, 3)
    colours, counts = np.unique(foot, axis=0, return_counts=True)
    squares = {tuple(c) for c, n in zip(colours.tolist(), counts, strict=True) if n >= 256}
    return len(squares & {tuple(colour) for colour in palette().tolist()})


@pytest.mark.parametrize("present", [1, 5, LEGEND, LEGEND + 1, 150])
def test_a_legend_names_the_classes_that_occur_up_to_a_number(present: int) -> None:
    truth = np.arange(400, dtype=int).reshape(20, 20) % present
    page = pixels(draw(noise(20, 20), of_classes(truth, truth), NAMES, HEADING))
    assert count_of_squares(page) == min(present, LEGEND)


def test_a_legend_has_the_most_frequent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = panels._Legend.__init__

    def spied(self: Any, entries: Any, rest: Any, form: Any) -> None:
        seen.extend(name for _, name in entries)
        seen.append(rest)
        original(self, entries, rest, form)

    monkeypatch.setattr(panels._Legend, "__init__", spied)
    truth = np.full((10, 10), 5)
    truth[0], truth[1, :3], told = 2, 255, truth.copy()
    told[5, 5] = 99
    draw(noise(10, 10), of_classes(truth, told), ["a", "b", "c"], HEADING)
    squares = ["wrong", "not labelled", "5  (no such class)", "2  c", "99  (no such class)", None]
    assert seen == squares
    seen.clear()
    draw(noise(20, 20), of_classes(*2 * [np.arange(400).reshape(20, 20) % 150]), NAMES, HEADING)
    assert len(seen) == LEGEND + 1 and seen[-1] == "and 126 more"


def test_names_of_any_kind_are_drawn_without_a_warning() -> None:
    truth = np.arange(81).reshape(9, 9) % len(HOSTILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(draw(noise(9, 9), of_classes(truth, truth), HOSTILE, HOSTILE))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=600), st.integers(30, 300), st.booleans())
def test_a_line_of_text_fits_and_keeps_its_ends(text: str, width: int, bold: bool) -> None:
    with plain_settings(), warnings.catch_warnings():
        warnings.simplefilter("error")
        line = fitted(text, 15, width, bold)
        assert text_width(line, 15, bold) <= width
        whole = drawable(text)
        assert "\n" not in whole
        if line != whole:
            head, _, tail = line.partition("…")
            assert whole.startswith(head) and whole.endswith(tail)


def test_a_text_that_cannot_be_drawn_shows_boxes() -> None:
    assert drawable("水 a\tb\n🐶") == "□ a b □"
    assert drawable("naïve Ünïcödé Ω ж") == "naïve Ünïcödé Ω ж"


def test_the_same_input_gives_the_same_bytes_whatever_matplotlib_is_set_to() -> None:
    truth = np.arange(900).reshape(30, 30) % 40
    shown = of_classes(truth, truth.T), of_depth(truth / 9, truth.T / 9)
    plain = [draw(noise(30, 30), each, HOSTILE, HEADING) for each in shown]
    odd = {"text.usetex": True, "font.family": ["serif"], "font.size": 30, "savefig.dpi": 10}
    with matplotlib.rc_context(odd):
        before = dict(matplotlib.rcParams)
        assert [draw(noise(30, 30), each, HOSTILE, HEADING) for each in shown] == plain
        assert dict(matplotlib.rcParams) == before


def test_drawing_needs_no_pyplot_and_until_then_no_matplotlib() -> None:
    code = (
        "import sys, numpy as np; from harness.pictured.panels import draw;"
        "from harness.pictured.contract import Shown;"
        "maps = np.ones((9, 9), np.float32); print('matplotlib' in sys.modules);"
        "draw(np.zeros((9, 9, 3), np.uint8), Shown('a', maps, maps, 'depth', ''), (), ['a']);"
        "print(sorted(set(sys.modules) & {'torch', 'matplotlib.pyplot', 'tkinter'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]"]


def test_what_does_not_fit_the_picture_is_an_error() -> None:
    truth = np.zeros((9, 8), np.uint8)
    with pytest.raises(ValueError, match=r"a prediction \[9, 8\] and a truth \[9, 8\].*\[9, 9\]"):
        draw(noise(9, 9), of_classes(truth, truth), NAMES, HEADING)
    shown = Shown("a", truth.astype(np.int64), truth, "classes", "")
    with pytest.raises(ValueError, match="int64, uint8: uint8 is needed"):
        draw(noise(9, 8), shown, NAMES, HEADING)


def test_looks_stand_side_by_side_and_one_alone_where_nothing_was_changed() -> None:
    plain = np.full((56, 80, 3), 200, np.uint8)
    changed = plain.copy()
    changed[10:20] = 0
    two, one = (
        np.array(Image.open(io.BytesIO(draw(plain[:1, :1], shown, (), ["a heading"]))))
        for shown in (
            Shown("a", changed, plain, "looks", "said"),
            Shown("a", plain, plain, "looks", "said"),
        )
    )
    assert two.shape[0] == one.shape[0]
    assert two.shape[1] > 1.7 * one.shape[1]
    assert (two == 200).all(axis=2).sum() > 1.5 * (one == 200).all(axis=2).sum()
    with pytest.raises(ValueError, match="RGB as uint8 is needed"):
        draw(plain, Shown("a", plain[..., 0], plain, "looks", ""), (), [""])
