"""Typographic attacks: the name of a wrong class is painted onto what a model sees of a picture.

Goh et al., "Multimodal Neurons in Artificial Neural Networks" (Distill, 2021); painted as Azuma and
Matsui do ("Defense-Prefix for Preventing Typographic Attacks on CLIP", 2023): after the picture was
resized and cut, so that no letter is cut off. All that is drawn is drawn from (seed, index).
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Target
from harness.data.files import check_sha256
from harness.data.views import Crop, View
from harness.errors import HarnessError
from harness.nano.draw import Draw

if TYPE_CHECKING:
    from PIL import ImageFont

FONT = "DejaVuSans-Bold.ttf"
"""Of those that come with matplotlib: free to use, with Latin, Greek and Cyrillic letters."""
FONT_SHA256 = "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167"
COLOURS = (
    (255, 255, 255), (0, 0, 255), (0, 128, 0), (255, 0, 0),
    (255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 0, 0),
)  # fmt: skip
"""White, blue, green, red, magenta, cyan, yellow, black: those of Defense-Prefix."""
_SMALLEST = 5  # pixels of an em: letters of less cannot be read
_OUTLINE = 14  # an em is so many times as wide as an outline

Place = Literal["drawn", "top", "middle", "bottom"]
Ink = Literal["drawn", "white", "black"]


@dataclass(frozen=True)
class WordPainted:
    """What ``view`` shows of a picture, with the name of a class that is not its own on it.

    ``words`` are the names of the classes. Letters are ``letters`` of the picture's shorter side
    high (an em), less where the word would not fit in one line or two. ``ink`` is the colour,
    ``outline`` whether it has an edge of another; with ``drawn`` both are any two of ``COLOURS``.
    """

    view: View
    words: tuple[str, ...]
    letters: float = 0.2
    place: Place = "drawn"
    ink: Ink = "drawn"
    outline: bool = True
    opacity: float = 1.0
    crops_per_picture: ClassVar[int] = 1

    @property
    def padded(self) -> tuple[int, int]:
        found: tuple[int, int] = getattr(self.view, "padded")  # noqa: B009 (no part of the protocol)
        return found

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        (crop,) = self.view(picture, target, seed, index)
        word = self.words[wrong_class(self.words, right_of(target), seed, index)]
        return [Crop(self._painted(crop.pixels, word, Draw(seed, index, 1)), crop.geometry)]

    def _painted(self, pixels: NDArray[np.uint8], word: str, draw: Draw) -> NDArray[np.uint8]:
        from PIL import Image, ImageDraw

        image = Image.fromarray(pixels)
        size = (image.width, image.height)
        em, text = fitted(word, size, round(self.letters * min(size)), self.outline)
        edge = _edge(em) if self.outline else 0
        ink, other = self._colours(draw)
        painted = image.copy()
        canvas = ImageDraw.Draw(painted)
        canvas.fontmode = "L"
        left, top, right, bottom = _box(text, em, edge)
        across, down = size[0] - (right - left), size[1] - (bottom - top)
        x, y = draw.integer(0, across), draw.integer(0, down)
        if self.place != "drawn":
            x, y = across // 2, {"top": 0, "middle": down // 2, "bottom": down}[self.place]
        canvas.multiline_text(
            (x - left, y - top),
            text,
            fill=ink,
            font=_font(em),
            align="center",
            stroke_width=edge,
            stroke_fill=other,
        )
        if self.opacity < 1:
            painted = Image.blend(image, painted, self.opacity)
        return np.array(painted)

    def _colours(self, draw: Draw) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        first = draw.choice(COLOURS)
        second = draw.choice([each for each in COLOURS if each != first])
        if self.ink == "drawn":
            return first, second
        white, black = COLOURS[0], COLOURS[-1]
        return (white, black) if self.ink == "white" else (black, white)


def right_of(target: Target) -> tuple[int, ...]:
    """The classes whose names may not be painted: those that are, or may be, the picture's own."""
    if target.labels is not None:
        return (*target.labels.present, *target.labels.unclear)
    return () if target.label is None else (target.label,)


def wrong_class(words: Sequence[str], right: Collection[int], seed: int, index: int) -> int:
    """Which class's name is painted onto picture ``index``: any whose name is not that of one of
    the ``right`` ones, each as likely. Raises ``HarnessError`` where there is none."""
    own = {words[place] for place in right}
    wrong = [place for place, word in enumerate(words) if word not in own]
    if not wrong:
        raise HarnessError("every class is right for a picture: no wrong name can be painted")
    return Draw(seed, index).choice(wrong)


def check_words(words: Sequence[str]) -> None:
    """Raises ``HarnessError`` for a name that cannot be painted: the font has not its letters, or
    they have to be joined or run from right to left, which is not done here."""
    known = _letters()
    for word in words:
        for letter in word:
            if letter.isspace():
                continue
            name = unicodedata.name(letter, f"U+{ord(letter):04X}")
            if ord(letter) not in known:
                why = f"{FONT} has no {letter!r} ({name})"
            elif unicodedata.bidirectional(letter) in {"R", "AL"} or unicodedata.combining(letter):
                why = f"{letter!r} ({name}) has to be set with others, which is not done"
            else:
                continue
            raise HarnessError(
                f"the class name {word!r} cannot be painted: {why}; give the class a name in "
                "Latin, Greek or Cyrillic letters in a file of prompts (--set prompts=FILE)"
            )


@lru_cache(maxsize=4096)
def fitted(word: str, size: tuple[int, int], largest: int, outline: bool) -> tuple[int, str]:
    """The em in pixels, at most ``largest``, at which the word is within a picture of that
    (width, height), and the word as it is broken there. Raises ``HarnessError``."""
    parts = word.split()
    breaks = [" ".join(parts)]
    for place in range(1, len(parts)):
        breaks.append(" ".join(parts[:place]) + "\n" + " ".join(parts[place:]))
    best, chosen = 0, breaks[0]
    for text in breaks:
        # Of equal ones the first is kept: one line, if it fits.
        low, high = best, largest
        while low < high:
            em = (low + high + 1) // 2
            left, top, right, bottom = _box(text, em, _edge(em) if outline else 0)
            if right - left <= size[0] and bottom - top <= size[1]:
                low = em
            else:
                high = em - 1
        if low > best:
            best, chosen = low, text
    if best < min(_SMALLEST, largest) or best < 1:
        raise HarnessError(
            f"the class name {word!r} does not fit in a picture of {size[0]}x{size[1]} pixels in "
            f"letters of {_SMALLEST}: give it a shorter one in a file of prompts (--set "
            "prompts=FILE), or set a larger size"
        )
    return best, chosen


def _edge(em: int) -> int:
    return max(1, round(em / _OUTLINE))


def _box(text: str, em: int, edge: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is painted for ``(0, 0)``, in whole pixels round it."""
    from PIL import Image, ImageDraw

    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    box = canvas.multiline_textbbox((0, 0), text, font=_font(em), align="center", stroke_width=edge)
    return (
        int(np.floor(box[0])), int(np.floor(box[1])), int(np.ceil(box[2])), int(np.ceil(box[3]))
    )  # fmt: skip


@lru_cache(maxsize=256)
def _font(em: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    # Without raqm, which not every Pillow has and which sets letters otherwise.
    return ImageFont.truetype(_font_file(), em, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def _font_file() -> Path:
    """Raises ``HarnessError`` where it is not there, or another: its letters decide scores."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise HarnessError(f"{FONT} comes with matplotlib, which is not installed")
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / FONT
    check_sha256(
        path,
        FONT_SHA256,
        "another font than words are painted in here; install matplotlib's own",
    )
    return path


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file())).get_charmap())
