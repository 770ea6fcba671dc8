"""The three figures of ``anatomy`` as pages: histograms of norms, norms by layer, positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.look.anatomy_records import Anatomy, LayerFacts
from harness.pictured.sheet import Sheet, coloured, nearest, plain_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE_COLOURS = "magma"

_MARGIN, _GAP = 18, 12
_SMALL, _LARGE = 15, 20
_LINE, _HEAD = 22, 28
_PLOT = 560, 300  # width and height of a plot's inside
_LEFT, _FOOT = 64, 64  # for its numbers and what they are
_COLUMNS = 2
_MAP = 256
_BAR, _BAR_FOOT, _INSET = 14, 50, 22
_SWATCH = 16
_NO_PATCH = 200  # grey
_BANDS = ("0.05", "0.95", 0.2), ("0.25", "0.75", 0.4)
Colour = tuple[int, int, int]
# Okabe and Ito's, which all kinds of sight tell apart, without the palest.
_COLOURS: tuple[Colour, ...] = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
    *((0, 0, 0), (230, 159, 0), (86, 180, 233)),
)
_STYLES = "-", ":", "-."  # where there are more records than colours
_BLUE, _RED, _GREEN = _COLOURS[:3]


def histograms(found: Sequence[Anatomy], notes: Sequence[str]) -> bytes:
    """Of the layers that end the first three quarters of those in the table, and of the one where
    outliers are told, with the cut-off as a dashed line."""
    panels = [[_quarters(each)[place] for each in found] for place in range(4)]
    count = len(_COLOURS)
    colours = [_COLOURS[place % count] for place in range(len(found))]
    styles = [_STYLES[place // count % len(_STYLES)] for place in range(len(found))]

    def plot(place: int, axes: Axes) -> None:
        for each, layer, colour, style in zip(found, panels[place], colours, styles, strict=True):
            histogram = layer.histogram
            if len(histogram.edges):
                axes.stairs(
                    np.maximum(histogram.shares, 1e-9),
                    histogram.edges,
                    baseline=None,
                    color=_share(colour),
                    linestyle=style,
                    linewidth=1.6,
                )
            if place == 3 and each.cutoff is not None:
                axes.axvline(each.cutoff, color=_share(colour), linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        least = min((_least(layer) for layer in panels[place]), default=1e-3)
        axes.set_ylim(least / 2, 100)

    titles = [_layers_title(layers) for layers in panels]
    titles[3] += ", where outliers are told (dashed: the cut-off)"
    legend = [(colour, each.label) for colour, each in zip(colours, found, strict=True)]
    heading = ["Patch norms before the final norm", *notes]
    return _plots(heading, titles, plot, ("norm", "% of patches, by bin"), legend)


def norms(found: Sequence[Anatomy], notes: Sequence[str]) -> bytes:
    """By layer, one plot a record on one scale: quantiles of patch norms, and the mean norms of
    class token and registers."""
    low, high = _norm_limits(found)

    def plot(place: int, axes: Axes) -> None:
        table = found[place].facts.layers
        at = [each.layer for each in table]

        def of(share: str) -> list[float]:
            return [each.quantiles.get(share, math.nan) for each in table]

        for lower, upper, strength in _BANDS:
            axes.fill_between(
                at, of(lower), of(upper), color=_share(_BLUE), alpha=strength, linewidth=0
            )
        axes.plot(at, of("0.5"), color=_share(_BLUE), marker="o", markersize=3)
        axes.plot(at, of("0.999"), color=_share(_BLUE), linestyle=":")
        axes.plot(
            at,
            [math.nan if each.class_norm is None else each.class_norm for each in table],
            color=_share(_RED),
        )
        for number in range(max(len(each.register_norms) for each in table)):
            values = [
                each.register_norms[number] if number < len(each.register_norms) else math.nan
                for each in table
            ]
            axes.plot(at, values, color=_share(_GREEN), linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)

    legend = [
        (_BLUE, "patches: median (line), middle half and 90 % (bands), 99.9 % (dotted)"),
        (_RED, "class token, mean"),
        (_GREEN, "registers, mean of each"),
    ]
    titles = [each.label for each in found]
    heading = ["Norms by layer, before the final norm", *notes]
    return _plots(heading, titles, plot, ("layer", "norm"), legend)


def positions(found: Sequence[Anatomy], notes: Sequence[str]) -> bytes:
    """The share of patches that are outliers, place by place of the picture, on one scale."""
    maps = [_percent(each.facts.positions.map) for each in found]
    largest = max((float(each[np.isfinite(each)].max(initial=0)) for each in maps), default=0.0)
    high = largest or 1.0
    columns = min(4, max(2, len(found)))
    cell, row = _MAP + 3 * _GAP, 4 * _LINE + _MAP + _GAP
    heading = ["Where outliers are", *notes]
    top = _MARGIN + _HEAD * len(heading)
    rows = math.ceil(len(found) / columns)
    width = 2 * _MARGIN + columns * cell
    with plain_settings():
        page = Sheet(width, top + rows * row + _BAR + _BAR_FOOT + _MARGIN)
        _head(page, heading, width)
        for place, (each, values) in enumerate(zip(found, maps, strict=True)):
            x, y = _MARGIN + place % columns * cell, top + place // columns * row
            page.text(x, y + _SMALL, each.label, _SMALL, cell - _GAP, bold=True)
            pixels = coloured(values, PLACE_COLOURS, 0, high)
            pixels[~np.isfinite(values)] = _NO_PATCH
            page.picture(x, y + _LINE, nearest(pixels, (_MAP, _MAP)))
            for line, text in enumerate(_told(each)):
                page.text(x, y + _LINE + _MAP + _LINE * (1 + line) - 5, text, _SMALL, cell - _GAP)
        bar = _MARGIN + _INSET, top + rows * row, cell + _MAP - 2 * _INSET, _BAR
        title = "outliers (% of the patches there)"
        page.bar(bar, PLACE_COLOURS, (0, high), "neither", title, _SMALL)
        return page.png()


def _told(each: Anatomy) -> list[str]:
    where = each.facts.positions
    if each.cutoff is None or where.outliers_on_border is None:
        return ["no patch is an outlier"]
    return [
        f"{each.outlier_percent:.2g} % of patches are outliers",
        f"layer {each.layer}, norms above {each.cutoff:.3g}",
        f"on the border: {where.outliers_on_border:.0f} % (of all {where.patches_on_border:.0f} %)",
    ]


def _plots(
    heading: Sequence[str],
    titles: Sequence[str],
    plot: Callable[[int, Axes], None],
    names: tuple[str, str],
    legend: Sequence[tuple[Colour, str]],
) -> bytes:
    """Plots in two columns, ``names`` those of their axes, what colours mean below."""
    wide, tall = _PLOT
    cell, row = _LEFT + wide + 2 * _GAP, _LINE + tall + _FOOT
    rows = math.ceil(len(titles) / _COLUMNS)
    top = _MARGIN + _HEAD * len(heading)
    width = 2 * _MARGIN + min(_COLUMNS, len(titles)) * cell
    with plain_settings():
        page = Sheet(width, top + rows * row + _LINE * len(legend) + _MARGIN)
        _head(page, heading, width)
        for place, title in enumerate(titles):
            x = _MARGIN + place % _COLUMNS * cell + _LEFT
            y = top + place // _COLUMNS * row
            page.text(x, y + _SMALL, title, _SMALL, wide, bold=True)
            axes = page.axes((x, y + _LINE, wide, tall))
            plot(place, axes)
            page.label(axes, *names, _SMALL)
        for line, (colour, text) in enumerate(legend):
            y = top + rows * row + line * _LINE
            page.picture(_MARGIN, y, np.full((_SWATCH, _SWATCH, 3), colour, dtype=np.uint8))
            page.text(_MARGIN + _SWATCH + _GAP, y + 13, text, _SMALL, width - 2 * _MARGIN)
        return page.png()


def _head(page: Sheet, heading: Sequence[str], width: int) -> None:
    for line, text in enumerate(heading):
        y, size = _MARGIN + line * _HEAD + _LARGE, _SMALL if line else _LARGE
        page.text(_MARGIN, y, text, size, width - 2 * _MARGIN, bold=not line)


def _quarters(each: Anatomy) -> list[LayerFacts]:
    table = each.facts.layers
    first = [table[max(0, math.ceil(len(table) * quarter / 4) - 1)] for quarter in (1, 2, 3)]
    return [*first, each.facts.at(each.layer)]


def _layers_title(layers: Sequence[LayerFacts]) -> str:
    numbers = [str(each) for each in sorted({layer.layer for layer in layers})]
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _least(layer: LayerFacts) -> float:
    """The smallest share of a bin that is not empty."""
    shares = layer.histogram.shares
    return float(shares[shares > 0].min(initial=100))


def _norm_limits(found: Sequence[Anatomy]) -> tuple[float, float]:
    """From the lowest to the highest that is drawn; zeros have no place on a log scale."""
    drawn: list[float] = []
    for each in found:
        for layer in each.facts.layers:
            drawn += [
                layer.quantiles[share]
                for share in ("0.05", "0.5", "0.999")
                if share in layer.quantiles
            ]
            drawn += [layer.class_norm or 0.0, *layer.register_norms]
    values: NDArray[np.float64] = np.array([value for value in drawn if value > 0] or [1.0])
    return float(values.min()), float(values.max())


def _percent(map_: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Without the rows and columns in which no patch was: a grid of fewer than the map's 16 leaves
    some empty, and without them its patches are as they lie."""
    values = np.array([[math.nan if v is None else 100 * v for v in row] for row in map_])
    there = np.isfinite(values)
    if not there.any():
        return values
    found: NDArray[np.float64] = values[there.any(1)][:, there.any(0)]
    return found


def _share(colour: Colour) -> tuple[float, float, float]:
    """As matplotlib has it."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255
