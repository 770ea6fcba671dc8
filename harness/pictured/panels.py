"""Input, truth, prediction and error of one picture, side by side, with what the colours mean.

All arrays are brought to the size of a panel before anything is made of them: predictions and
labels by taking the nearest pixel, a large picture by averaging. A 2000 x 3000 picture so needs
little more than its own arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import IGNORED
from harness.pictured.contract import Shown
from harness.pictured.palette import palette
from harness.pictured.sheet import (
    Extend,
    Sheet,
    coloured,
    fitted,
    nearest,
    plain_settings,
    reduced,
    text_width,
)

LEGEND = 24
"""Classes that a legend names at most."""
DEPTH_COLOURS, ERROR_COLOURS = "viridis", "inferno"

_TITLES = "input", "truth", "prediction", "error"
_MARGIN, _GAP = 18, 12
_SMALL, _LARGE = 15, 19  # heights of text
_LINE, _HEAD = 22, 26  # of one line of text
_NARROWEST = 180  # a panel's column
_PATCH = 16  # a legend's square
_ENTRY = 250  # a legend's widest column
_BAR, _BAR_FOOT = 16, 50  # a colour bar, and the numbers and label below it
_INSET = 22  # of a bar, for numbers that overhang its ends
_RED = (225, 25, 40)


class Layout(NamedTuple):
    """Panels of ``width`` x ``height`` pixels, so many in a row: of four all, or two."""

    columns: int
    width: int
    height: int
    panels: int = 4

    @property
    def cell(self) -> int:
        """From one panel's left edge to the next one's."""
        return max(self.width, _NARROWEST) + _GAP

    @property
    def row(self) -> int:
        return _LINE + self.height + _GAP

    @property
    def page(self) -> int:
        """The whole page's width."""
        return 2 * _MARGIN + self.columns * self.cell - _GAP

    @property
    def body(self) -> int:
        """The height of all panels with their titles."""
        return self.row * (self.panels // self.columns)

    def left(self, panel: int) -> int:
        return _MARGIN + panel % self.columns * self.cell


def layout(width: int, height: int) -> Layout:
    """For a picture of that size. Large ones are reduced, small ones enlarged a whole number of
    times; panoramas stand in two rows, so that their panels are not slits."""
    columns, longest = (4, 480) if width <= 1.7 * height else (2, 800)
    side = max(width, height)
    if side > longest:
        share = longest / side
        return Layout(columns, max(1, round(width * share)), max(1, round(height * share)))
    times = max(1, round(400 / side))
    return Layout(columns, width * times, height * times)


def draw(
    picture: NDArray[np.uint8], shown: Shown, classes: Sequence[str], heading: Sequence[str]
) -> bytes:
    """``picture [H, W, 3]`` and what is shown of it, both at the stored size -> PNG.

    ``classes`` are the names that class numbers index; the first line of ``heading`` is bold. The
    same input gives the same bytes. Raises ``ValueError`` for other sizes and for classes that
    are no uint8.
    """
    if shown.kind == "looks":
        with plain_settings():
            return _looks(shown, heading)
    size = picture.shape[:2]
    if shown.prediction.shape != size or shown.truth.shape != size:
        raise ValueError(
            f"a prediction {list(shown.prediction.shape)} and a truth {list(shown.truth.shape)} "
            f"of a picture {list(size)}"
        )
    kinds = {str(each.dtype) for each in (shown.prediction, shown.truth)}
    if shown.kind == "classes" and kinds != {"uint8"}:
        raise ValueError(f"classes as {', '.join(sorted(kinds))}: uint8 is needed")
    with plain_settings():
        if shown.kind == "classes":
            return _classes(picture, shown, classes, heading)
        return _depth(picture, shown, heading)


def _classes(
    picture: NDArray[np.uint8], shown: Shown, classes: Sequence[str], heading: Sequence[str]
) -> bytes:
    form = layout(picture.shape[1], picture.shape[0])
    size = form.width, form.height
    view = reduced(picture, size)
    truth, told = nearest(shown.truth, size), nearest(shown.prediction, size)
    known = truth != IGNORED
    error = _grey(view)
    wrong = known & (truth != told)
    error[wrong] = _reddened(error[wrong])
    panels = [
        view,
        _hatched(palette()[truth], ~known),
        _hatched(palette()[told], told == IGNORED),
        _hatched(error, ~known),
    ]
    entries = [(_reddened(_plain((180, 180, 180))), "wrong")] if wrong.any() else []
    if not known.all() or (told == IGNORED).any():
        entries.append((_patch(hatched=True), "not labelled"))
    counts = np.bincount(shown.truth.ravel(), minlength=256)
    counts += np.bincount(shown.prediction.ravel(), minlength=256)
    counts[IGNORED] = 0
    present = [int(each) for each in np.argsort(-counts, kind="stable") if counts[each]]
    for number in present[:LEGEND]:
        name = classes[number] if number < len(classes) else "(no such class)"
        entries.append((_plain(palette()[number]), f"{number}  {name}"))
    rest = f"and {len(present) - LEGEND} more" if len(present) > LEGEND else None
    legend = _Legend(entries, rest, form)
    page, top = _begin(form, heading, panels, legend.height)
    legend.draw(page, top)
    return page.png()


def _depth(picture: NDArray[np.uint8], shown: Shown, heading: Sequence[str]) -> bytes:
    form = layout(picture.shape[1], picture.shape[0])
    size = form.width, form.height
    truth, told = nearest(shown.truth, size), nearest(shown.prediction, size)
    known, there = np.isfinite(truth) & (truth > 0), np.isfinite(told)
    with np.errstate(invalid="ignore"):  # infinity from infinity
        error = np.abs(told.astype(np.float64) - truth)
    counted = known & there
    low, high = _limits(truth[known] if known.any() else told[there])
    worst = float(np.quantile(error[counted], 0.98)) if counted.any() else 0.0
    worst = max(worst, 0.01)
    panels = [
        reduced(picture, size),
        _hatched(coloured(truth, DEPTH_COLOURS, low, high), ~known),
        _hatched(coloured(told, DEPTH_COLOURS, low, high), ~there),
        _hatched(coloured(error, ERROR_COLOURS, 0, worst), ~counted),
    ]
    entries = [] if counted.all() else [(_patch(hatched=True), "not known, or not counted")]
    legend = _Legend(entries, None, form)
    page, top = _begin(form, heading, panels, legend.height + _BAR + _BAR_FOOT)
    legend.draw(page, top)
    first = 1 if form.columns == 4 else 0  # under truth and prediction, or on the left
    across = (2 if form.columns == 4 else 1) * form.cell - _GAP
    beyond = told[there]
    ends: Extend = _extend(bool((beyond < low).any()), bool((beyond > high).any()))
    bar = form.left(first) + _INSET, top + legend.height, across - 2 * _INSET, _BAR
    page.bar(bar, DEPTH_COLOURS, (low, high), ends, "depth (m)", _SMALL)
    ends = _extend(False, bool((error[counted] > worst).any()))
    bar = form.left(3) + _INSET, top + legend.height, form.cell - _GAP - 2 * _INSET, _BAR
    page.bar(bar, ERROR_COLOURS, (0, worst), ends, "|prediction − truth| (m)", _SMALL)
    return page.png()


def _looks(shown: Shown, heading: Sequence[str]) -> bytes:
    looks, titles = [shown.truth, shown.prediction], list(shown.titles)
    if np.array_equal(shown.truth, shown.prediction):
        looks, titles = looks[1:], titles[1:]
    for look in looks:
        if look.ndim != 3 or look.shape[2] != 3 or look.dtype != np.uint8:
            raise ValueError(f"a look {list(look.shape)} {look.dtype}: RGB as uint8 is needed")
    height, width = shown.truth.shape[:2]
    form = layout(width, height)._replace(columns=len(looks), panels=len(looks))
    views = [reduced(look, (form.width, form.height)) for look in looks]
    page, _ = _begin(form, heading, views, 0, titles)
    return page.png()


def _begin(
    form: Layout,
    heading: Sequence[str],
    panels: Sequence[NDArray[np.uint8]],
    foot: int,
    titles: Sequence[str] = _TITLES,
) -> tuple[Sheet, int]:
    """A page with heading and panels, and where its foot, ``foot`` pixels high, begins."""
    top = _MARGIN + _HEAD * len(heading) + _GAP
    page = Sheet(form.page, top + form.body + foot + _MARGIN)
    for line, text in enumerate(heading):
        y, across = _MARGIN + _HEAD * line + _LARGE, form.page - 2 * _MARGIN
        page.text(_MARGIN, y, text, _SMALL if line else _LARGE, across, bold=not line)
    for number, (title, pixels) in enumerate(zip(titles, panels, strict=True)):
        x, y = form.left(number), top + number // form.columns * form.row
        page.text(x, y + _SMALL, title, _SMALL, form.cell - _GAP)
        page.picture(x, y + _LINE, pixels)
    return page, top + form.body


class _Legend:
    """Coloured squares with names, in columns of one width; ``rest`` stands behind the last."""

    def __init__(
        self, entries: Sequence[tuple[NDArray[np.uint8], str]], rest: str | None, form: Layout
    ) -> None:
        self._entries: list[tuple[NDArray[np.uint8] | None, str]] = [
            (patch, fitted(name, _SMALL, _ENTRY)) for patch, name in entries
        ]
        if rest is not None:
            self._entries.append((None, rest))
        self._width = max((text_width(name, _SMALL) for _, name in self._entries), default=0)
        self._across = _PATCH + self._width + 3 * _GAP
        self._columns = max(1, (form.page - 2 * _MARGIN) // self._across)

    @property
    def height(self) -> int:
        return math.ceil(len(self._entries) / self._columns) * _LINE

    def draw(self, page: Sheet, top: int) -> None:
        for number, (patch, name) in enumerate(self._entries):
            x = _MARGIN + number % self._columns * self._across
            y = top + number // self._columns * _LINE
            if patch is not None:
                page.picture(x, y, patch)
            page.text(x + _PATCH + _GAP // 2, y + 13, name, _SMALL, self._width)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pale, so that red is seen on it."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.repeat((grey * 0.5 + 110).astype(np.uint8)[..., None], 3, axis=2)


def _reddened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (0.3 * pixels + 0.7 * np.array(_RED)).astype(np.uint8)


def _hatched(pixels: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Grey stripes in place of the pixels at ``where [h, w]``."""
    height, width = where.shape
    diagonal = np.arange(height)[:, None] + np.arange(width)
    stripes = np.where(diagonal % 8 < 2, 165, 215).astype(np.uint8)
    return np.where(where[..., None], stripes[..., None], pixels)


def _plain(colour: Sequence[int] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.full((_PATCH, _PATCH, 3), colour, dtype=np.uint8)


def _patch(hatched: bool) -> NDArray[np.uint8]:
    return _hatched(_plain((0, 0, 0)), np.full((_PATCH, _PATCH), hatched))


def _limits(depth: NDArray[Any]) -> tuple[float, float]:
    """What the colours of depth run over, at least a centimetre."""
    if not depth.size:
        return 0.0, 1.0
    low, high = float(depth.min()), float(depth.max())
    return low, max(high, low + 0.01)


def _extend(below: bool, above: bool) -> Extend:
    if below:
        return "both" if above else "min"
    return "max" if above else "neither"
