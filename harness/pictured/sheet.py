"""A page in pixels: pictures, lines of text that fit, colour bars -> PNG.

Pictures are laid in pixel by pixel; matplotlib draws text and colour bars, through its objects
alone (no pyplot) and with the font that it brings, so that one input gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontProperties

_DPI = 128  # a power of two: pixels -> inches -> pixels is exact
_POINTS = 72 / _DPI
_READ = 400  # characters of a text that are looked at
_MISSING = "□"
Extend = Literal["neither", "min", "max", "both"]


class Sheet:
    """``width`` x ``height`` pixels, white; places are (x, y) in pixels from the top left corner.

    To be used inside ``plain_settings``.
    """

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._width, self._height = width, height
        self._figure = Figure((width / _DPI, height / _DPI), _DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._pictures: list[tuple[int, int, NDArray[np.uint8]]] = []

    def picture(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """``pixels [h, w, 3]`` with their top left corner there."""
        self._pictures.append((x, y, pixels))

    def text(self, x: int, y: int, text: str, size: int, width: int, bold: bool = False) -> None:
        """One line, its baseline at ``y``; of what is wider than ``width`` the middle is cut."""
        self._figure.text(
            x / self._width,
            1 - y / self._height,
            fitted(text, size, width, bold),
            font=_font(size, bold),
            color="black",
            parse_math=False,
            usetex=False,
        )

    def bar(
        self,
        place: tuple[int, int, int, int],
        colours: str,
        limits: tuple[float, float],
        extend: Extend,
        label: str,
        size: int,
    ) -> None:
        """A colour bar at ``place`` (x, y, width, height), numbers and ``label`` below it."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.ticker import MaxNLocator

        axes = self.axes(place)
        bar = self._figure.colorbar(
            ScalarMappable(Normalize(*limits), colours),
            cax=axes,
            orientation="horizontal",
            extend=extend,
            ticks=MaxNLocator(max(2, place[2] // 70)),
        )
        bar.set_label(label, font=_font(size, False))
        _set_font(axes, size)

    def axes(self, place: tuple[int, int, int, int]) -> Axes:
        """Axes for a plot at ``place`` (x, y, width, height), their numbers outside of it."""
        x, y, width, height = place
        across, down = self._width, self._height
        return self._figure.add_axes(
            (x / across, 1 - (y + height) / down, width / across, height / down)
        )

    def label(self, axes: Axes, across: str, down: str, size: int) -> None:
        """Say what the axes of a finished plot are; their numbers are plain, on log scales too."""
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            log = scale == "log"
            low, high = axis.get_view_interval()
            few = not log or high > 20 * low  # of decades: numbers at 1, 2 and 5, too
            axis.set_major_locator(
                LogLocator(10, (1,) if few else (1, 2, 5)) if log else MaxNLocator(6, integer=True)
            )
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.set_xlabel(across, font=_font(size, False))
        axes.set_ylabel(down, font=_font(size, False))
        axes.grid(alpha=0.3)
        _set_font(axes, size)

    def png(self) -> bytes:
        """The same bytes for the same page: there is no date and no version in it."""
        canvas: Any = self._canvas
        canvas.draw()
        page = np.array(canvas.buffer_rgba())[..., :3]
        for x, y, pixels in self._pictures:
            page[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        buffer = io.BytesIO()
        Image.fromarray(page).save(buffer, format="PNG")
        return buffer.getvalue()


@contextmanager
def plain_settings() -> Iterator[None]:
    """matplotlib as it comes, whatever the user's matplotlibrc says (LaTeX, other fonts)."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def coloured(values: NDArray[np.floating], name: str, low: float, high: float) -> NDArray[np.uint8]:
    """Numbers ``[h, w]`` -> RGB of the colour map, ends clipped; what is not finite is any colour.

    The same colours as a bar with these limits."""
    import matplotlib

    share = np.nan_to_num((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    rgb: NDArray[np.uint8] = matplotlib.colormaps[name](share, bytes=True)[..., :3]
    return rgb


def reduced(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``picture [H, W, 3]`` at ``size`` (width, height): smaller by averaging, larger by repeating
    pixels."""
    if size[0] >= picture.shape[1]:
        return nearest(picture, size)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """``[H, W, …]`` at ``size`` (width, height), of each new pixel the one below its middle."""
    width, height = size
    rows = (np.arange(height) * 2 + 1) * values.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * values.shape[1] // (2 * width)
    chosen: NDArray[Any] = values[rows[:, None], columns]
    return chosen


def fitted(text: str, size: int, width: int, bold: bool = False) -> str:
    """``text`` as it can be drawn on one line of ``width`` pixels, its middle cut if need be."""
    whole = drawable(text)
    if text_width(whole, size, bold) <= width:
        return whole
    kept, cut = 0, len(whole)
    while kept + 1 < cut:  # characters that can stay: kept fits, cut does not
        middle = (kept + cut) // 2
        if text_width(_shortened(whole, middle), size, bold) <= width:
            kept = middle
        else:
            cut = middle
    return _shortened(whole, kept)


def drawable(text: str) -> str:
    """On one line and with a box for what the font has no shape of; very long texts are cut."""
    if len(text) > _READ:
        text = _shortened(text, _READ)
    shapes = _shapes()
    line = " ".join(text.split())
    return "".join(c if ord(c) in shapes and c.isprintable() else _MISSING for c in line)


def text_width(text: str, size: int, bold: bool = False) -> int:
    """In pixels, of text ``size`` pixels high, rounded up."""
    from matplotlib.backends import backend_agg

    agg: Any = backend_agg  # its drawing has no types
    renderer = agg.RendererAgg(1, 1, _DPI)
    return int(np.ceil(renderer.get_text_width_height_descent(text, _font(size, bold), False)[0]))


def _shortened(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{text[:head].rstrip()}…{text[len(text) - (kept - head) :].lstrip()}"


def _set_font(axes: Axes, size: int) -> None:
    """Of all numbers beside the axes."""
    for axis in (axes.xaxis, axes.yaxis):
        for each in [*axis.get_ticklabels(), axis.get_offset_text()]:
            each.set_fontproperties(_font(size, False))


def _font(size: int, bold: bool) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=str(_font_file(bold)), size=size * _POINTS)


def _font_file(bold: bool) -> Path:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


@cache
def _shapes() -> frozenset[int]:
    """The characters that both weights have."""
    from matplotlib.ft2font import FT2Font

    plain, bold = (set(FT2Font(str(_font_file(each))).get_charmap()) for each in (False, True))
    return frozenset(plain & bold)
