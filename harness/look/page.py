"""One picture as several models see it, on one page: a row a model, one scale for all of them.

A section holds panels of one kind. Its models stand below each other, so that what is compared is
close, and its colour bars below them. Where there are more panels than fit, the section goes on
below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.errors import HarnessError
from harness.look.sections import Bar, Key, Pixels, Row, Section, sections
from harness.look.seen import Seen
from harness.pictured.sheet import Sheet, plain_settings, reduced

_MARGIN, _GAP, _BETWEEN = 18, 12, 26
_SMALL, _MIDDLE, _LARGE = 15, 17, 20  # heights of text
_LINE, _HEAD = 22, 28
_SIDE = 220  # of a square panel
_NARROWEST, _WIDEST = 190, 640  # of a panel's column
_HIGHEST = 400  # of a panel
_ACROSS = 1600  # a page's width, at most about
_TOLD = 700  # pixels that lines about the models need beside the picture
_BAR, _BAR_FOOT, _INSET = 14, 50, 22
_SWATCH = 16
_TALLEST = 2**15  # pixels of a page: 150 MB


class Form(NamedTuple):
    """Panels of ``width`` x ``height`` pixels, ``columns`` of them beside each other."""

    columns: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def cell(self) -> int:
        return max(self.width, _NARROWEST) + _GAP

    @property
    def page(self) -> int:
        return 2 * _MARGIN + self.columns * self.cell - _GAP

    def left(self, column: int) -> int:
        return _MARGIN + column * self.cell


def form_of(width: int, height: int, panels: int) -> Form:
    """For pictures of that size, and at most so many panels a model in a section: panels of about
    one area, so that panoramas are no slits, or a fourth narrower where all then stand in a row."""
    room = _ACROSS - 2 * _MARGIN + _GAP
    scale = min(_SIDE / math.sqrt(width * height), _WIDEST / width, _HIGHEST / height)
    in_a_row = max(_NARROWEST, room // max(1, panels) - _GAP) / width
    if 0.75 * scale <= in_a_row < scale:
        scale = in_a_row
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    columns = room // (max(across, _NARROWEST) + _GAP)
    return Form(max(2, min(6, columns, panels)), across, down)


def draw(picture: Pixels, heading: Sequence[str], seen: Sequence[Seen]) -> bytes:
    """``picture [H, W, 3]`` as the models were given it, and what they see -> PNG.

    The first line of ``heading`` is bold. The same input gives the same bytes. Raises
    ``HarnessError`` for a page too tall to be drawn.
    """
    panels = max(3, *(max(len(each.norms), len(each.attention)) for each in seen))
    form = form_of(picture.shape[1], picture.shape[0], panels)
    parts = sections(picture, seen, form.size)
    top = _MARGIN + _HEAD * len(heading) + _opening(seen, form) + _BETWEEN
    height = top + sum(_height(section, form) for section in parts) + _MARGIN
    if height > _TALLEST:
        raise HarnessError(
            f"a page {height:,} pixels high, more than {_TALLEST:,}: name fewer --layers or models"
        )
    with plain_settings():
        page = Sheet(form.page, height)
        _begin(page, picture, heading, seen, form)
        for section in parts:
            top = _lay(page, top, section, form)
        return page.png()


def _begin(
    page: Sheet, picture: Pixels, heading: Sequence[str], seen: Sequence[Seen], form: Form
) -> None:
    y = _MARGIN
    for number, text in enumerate(heading):
        size = _SMALL if number else _LARGE
        page.text(_MARGIN, y + _LARGE, text, size, form.page - 2 * _MARGIN, bold=not number)
        y += _HEAD
    page.picture(_MARGIN, y, reduced(picture, form.size))
    x = _beside(form)
    if x == _MARGIN:
        y += form.height + _GAP
    across = form.page - _MARGIN - x
    for each in seen:
        page.text(x, y + _SMALL, each.model, _MIDDLE, across, bold=True)
        for line, text in enumerate((each.told, _last_norms(each)), start=1):
            page.text(x, y + line * _LINE + _SMALL, text, _SMALL, across)
        y += 3 * _LINE


def _beside(form: Form) -> int:
    """Where lines about the models begin: beside the picture, or below it where that is narrow."""
    x = _MARGIN + form.width + 2 * _GAP
    return x if form.page - _MARGIN - x >= _TOLD else _MARGIN


def _opening(seen: Sequence[Seen], form: Form) -> int:
    """The height of the picture and the lines about the models."""
    lines = 3 * _LINE * len(seen)
    if _beside(form) == _MARGIN:
        return form.height + _GAP + lines
    return max(form.height, lines)


def _last_norms(seen: Seen) -> str:
    """Norms after the last layer in words, of which class and register tokens have no map."""
    median, largest = np.median(seen.patch_norms), seen.patch_norms.max()
    parts = [f"patches {median:.3g} (median) to {largest:.3g}"]
    if seen.class_norm is not None:
        parts.append(f"class token {seen.class_norm:.3g}")
    if seen.register_norms:
        shown = ", ".join(f"{norm:.3g}" for norm in seen.register_norms[:8])
        more = " …" if len(seen.register_norms) > 8 else ""
        plural = "s" if len(seen.register_norms) > 1 else ""
        parts.append(f"register{plural} {shown}{more}")
    return "norms after the last layer: " + "; ".join(parts)


def _chunks(section: Section, form: Form) -> list[range]:
    """The panels that stand beside each other."""
    count = max([len(row.panels) for row in section.rows] + [len(section.feet), 1])
    return [
        range(start, min(start + form.columns, count)) for start in range(0, count, form.columns)
    ]


def _rows_in(section: Section, chunk: range) -> list[Row]:
    """The models with something to show there, or to say: in the first chunk all."""
    return [row for row in section.rows if not chunk.start or len(row.panels) > chunk.start]


def _shows(row: Row, chunk: range) -> bool:
    return any(panel is not None for panel in row.panels[chunk.start : chunk.stop])


def _row_height(row: Row, chunk: range, form: Form) -> int:
    return _LINE + (_LINE + form.height + _GAP if _shows(row, chunk) else _LINE)


def _height(section: Section, form: Form) -> int:
    body = sum(
        sum(_row_height(row, chunk, form) for row in _rows_in(section, chunk)) + _foot(section)
        for chunk in _chunks(section, form)
    )
    return _HEAD + _LINE + body + _BETWEEN


def _foot(section: Section) -> int:
    return _BAR + _BAR_FOOT + _GAP if any(section.feet) else 0


def _lay(page: Sheet, top: int, section: Section, form: Form) -> int:
    """Lay a section on the page; where the next one begins."""
    across = form.page - 2 * _MARGIN
    page.text(_MARGIN, top + _MIDDLE, section.title, _LARGE, across, bold=True)
    page.text(_MARGIN, top + _HEAD + _SMALL, section.about, _SMALL, across)
    top += _HEAD + _LINE
    for chunk in _chunks(section, form):
        for row in _rows_in(section, chunk):
            page.text(_MARGIN, top + _MIDDLE, row.model, _MIDDLE, across, bold=True)
            if _shows(row, chunk):
                for column, panel in enumerate(row.panels[chunk.start : chunk.stop]):
                    if panel is None:
                        continue
                    x, y = form.left(column), top + _LINE
                    page.text(x, y + _SMALL, panel.title, _SMALL, form.cell - _GAP)
                    page.picture(x, y + _LINE, panel.pixels)
            else:
                why = f"left out: {row.absent}" if row.absent else "left out"
                page.text(_MARGIN, top + _LINE + _SMALL, why, _SMALL, across)
            top += _row_height(row, chunk, form)
        _lay_feet(page, top, section, chunk, form)
        top += _foot(section)
    return top + _BETWEEN


def _lay_feet(page: Sheet, top: int, section: Section, chunk: range, form: Form) -> None:
    for column, foot in enumerate(section.feet[chunk.start : chunk.stop]):
        x, across = form.left(column), min(form.cell - _GAP, 2 * _NARROWEST)
        if isinstance(foot, Bar) and not (foot.shared and column):
            place = x + _INSET, top, across - 2 * _INSET, _BAR
            page.bar(place, foot.colours, foot.limits, foot.extend, foot.label, _SMALL)
        elif isinstance(foot, Key):
            for line, (colour, name) in enumerate(foot.entries):
                swatch = np.full((_SWATCH, _SWATCH, 3), colour, dtype=np.uint8)
                page.picture(x, top + line * _LINE, swatch)
                page.text(x + _SWATCH + _GAP // 2, top + line * _LINE + 13, name, _SMALL, across)
