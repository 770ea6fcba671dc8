"""What a page of ``harness look`` shows: sections of panels, each with the scale of its colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.look.seen import Map, Seen
from harness.pictured.sheet import Extend, coloured, reduced

NORM_COLOURS, ATTENTION_COLOURS, DEGREE_COLOURS = "viridis", "inferno", "cividis_r"
SEED, VOTED, BOX = (225, 25, 40), (255, 205, 40), (0, 190, 255)

_SEED = 9  # pixels of a panel
_PEAKS = 0.005  # of attention, the share of values beyond its bar

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height in pixels."""


class Panel(NamedTuple):
    title: str
    pixels: Pixels


class Bar(NamedTuple):
    """A colour bar below a panel; of one that is ``shared`` by all, below the first of a row."""

    colours: str
    limits: tuple[float, float]
    extend: Extend
    label: str
    shared: bool = False


class Key(NamedTuple):
    """Coloured squares with names, below a panel."""

    entries: list[tuple[tuple[int, int, int], str]]


class Row(NamedTuple):
    """The panels of one model, None where it lacks one, and why it lacks some."""

    model: str
    panels: Sequence[Panel | None]
    absent: str | None = None


class Section(NamedTuple):
    """``feet[i]`` stands below the panels ``i`` of all models."""

    title: str
    about: str
    rows: list[Row]
    feet: Sequence[Bar | Key | None]


def sections(picture: Pixels, seen: Sequence[Seen], size: Size) -> list[Section]:
    """Norms, attention, and what is similar: of ``picture [H, W, 3]`` as all the models see it, in
    panels of that size."""
    return [
        _norm_section(picture, seen, size),
        _attention_section(picture, seen, size),
        _object_section(picture, seen, size),
    ]


def _norm_section(picture: Pixels, seen: Sequence[Seen], size: Size) -> Section:
    slots = max(len(each.norms) for each in seen)
    feet = []
    for slot in range(slots):
        values = [each.norms[slot].values for each in seen if slot < len(each.norms)]
        low, high = float(min(v.min() for v in values)), float(max(v.max() for v in values))
        high = max(high, low + 1e-6 * max(1.0, abs(low)))
        feet.append(Bar(NORM_COLOURS, (low, high), "neither", "norm"))
    rows = [
        Row(each.model, [
            Panel(one.title, _mapped(picture, one, each.patch, NORM_COLOURS, foot.limits, size))
            for one, foot in zip(each.norms, feet, strict=False)
        ])
        for each in seen
    ]  # fmt: skip
    about = "each column has one scale for all models; a high norm alone is no artifact"
    return Section("Norms of patch tokens, before the final norm", about, rows, feet)


def _attention_section(picture: Pixels, seen: Sequence[Seen], size: Size) -> Section:
    values = [one.values for each in seen for one in each.attention if one is not None]
    feet: list[Bar | None] = []
    high = 1.0
    if values:
        every = np.concatenate([each.ravel() for each in values])
        high = max(float(np.quantile(every, 1 - _PEAKS)), 1e-6)
        beyond: Extend = "max" if (every > high).any() else "neither"
        label = "× an even share"
        feet = [Bar(ATTENTION_COLOURS, (0, high), beyond, label, shared=True)]
        feet *= max(len(each.attention) for each in seen)
    rows = [
        Row(each.model, [
            None if one is None else Panel(
                one.title, _mapped(picture, one, each.patch, ATTENTION_COLOURS, (0, high), size)
            )
            for one in each.attention
        ], each.absent)
        for each in seen
    ]  # fmt: skip
    about = "mean over heads; one scale for all; 1 is what a patch would get if all got the same"
    return Section("Attention to the patches, in the last layer", about, rows, feet)


def _object_section(picture: Pixels, seen: Sequence[Seen], size: Size) -> Section:
    degrees = []
    for each in seen:
        degree = each.discovered.degree
        share = 100 * degree / max(1, degree.size - 1)
        degrees.append(Map("LOST: degree", share.astype(np.float32)))
    low = float(min(each.values.min() for each in degrees))
    high = max(float(max(each.values.max() for each in degrees)), low + 0.1)
    rows = [
        Row(each.model, [
            Panel("PCA of patches", _on_picture(picture, each.colours, each.patch, size)),
            Panel(
                degree.title,
                _marked(
                    _mapped(picture, degree, each.patch, DEGREE_COLOURS, (low, high), size),
                    each, picture, voted=False,
                ),
            ),
            Panel("LOST: vote and box", _marked(reduced(picture, size), each, picture)),
        ])
        for each, degree in zip(seen, degrees, strict=True)
    ]  # fmt: skip
    key = Key([(SEED, "seed"), (VOTED, "voted for"), (BOX, "box")])
    scale = Bar(DEGREE_COLOURS, (low, high), "neither", "similar patches (%)")
    about = (
        "PCA: last layer, final norm, colours of each model its own. LOST: keys of the last layer; "
        "its seed is a patch that few others are similar to"
    )
    return Section("What belongs together, and the object found", about, rows, [None, scale, key])


def _on_picture(picture: Pixels, values: NDArray[Any], patch: int, size: Size) -> NDArray[Any]:
    """``values [rows, columns, …]`` of patches -> a panel, each patch where it is in the picture
    (what was padded has no place there)."""
    height, width = picture.shape[:2]
    rows = (np.arange(size[1]) * 2 + 1) * height // (2 * size[1]) // patch
    columns = (np.arange(size[0]) * 2 + 1) * width // (2 * size[0]) // patch
    chosen: NDArray[Any] = values[rows[:, None], columns]
    return chosen


def _mapped(
    picture: Pixels, one: Map, patch: int, colours: str, limits: tuple[float, float], size: Size
) -> Pixels:
    return _on_picture(picture, coloured(one.values, colours, *limits), patch, size)


def _marked(panel: Pixels, seen: Seen, picture: Pixels, voted: bool = True) -> Pixels:
    """The panel with the seed in a frame, and with the patches voted for and the box."""
    height, width = picture.shape[:2]
    found, patch = seen.discovered, seen.patch
    panel = panel.copy()
    if voted:
        size = panel.shape[1], panel.shape[0]
        mask = _on_picture(picture, found.mask, patch, size)
        panel[mask] = (0.55 * panel[mask] + 0.45 * np.array(VOTED)).astype(np.uint8)
        _frame(panel, found.box, (width, height), BOX)
    row, column = divmod(found.seed, found.mask.shape[1])
    # At least so many pixels of the panel, or it is not seen.
    reach = max(patch / 2, _SEED * width / panel.shape[1] / 2)
    x, y = (column + 0.5) * patch, (row + 0.5) * patch
    _frame(panel, (x - reach, y - reach, x + reach, y + reach), (width, height), SEED)
    return panel


def _frame(
    panel: Pixels,
    box: tuple[float, float, float, float],
    picture: tuple[int, int],
    colour: tuple[int, int, int],
) -> None:
    """A line of three pixels round ``box``, in pixels of ``picture`` (width, height), on white."""
    height, width = panel.shape[:2]
    scale = width / picture[0], height / picture[1]
    x0, y0 = (round(each * scale[i]) for i, each in enumerate(box[:2]))
    x1, y1 = (round(each * scale[i]) for i, each in enumerate(box[2:]))
    for line, paint in ((4, (255, 255, 255)), (3, colour)):
        left, right = max(0, x0 - 1), min(width, x1 + 1)
        top, bottom = max(0, y0 - 1), min(height, y1 + 1)
        panel[top:bottom, left : left + line] = paint
        panel[top:bottom, max(0, right - line) : right] = paint
        panel[top : top + line, left:right] = paint
        panel[max(0, bottom - line) : bottom, left:right] = paint
