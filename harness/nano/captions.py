"""What a painted scene shows, in short English sentences, for models that learn from text.

Everything said is true of the picture: the place, how many objects of which kinds are to be seen,
their colours and patterns, which stands left of which and which is nearest. Hidden objects, and
those too small to tell, are left out. Wording is drawn from the scene's number and nothing else.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.nano.draw import Draw
from harness.nano.layouts import CLASSES, Colour, Pattern, Scene, Thing

VERSION = 1
"""Another number where a scene gets other sentences: it is part of the fingerprint."""
CAPTIONS = 5
"""Of every picture, as COCO has. The first names the place and all kinds of objects."""
_STREAM = 3  # of the scene's numbers: ``layouts`` draws from 1 and 2

_PLURALS = {"bush": "bushes", "shelf": "shelves", "snowman": "snowmen"}
_WITHOUT_ARTICLE = ("roadworks",)
_NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
_PATTERNS: dict[Pattern, str] = {
    "plain": "",
    "bands": "striped ",
    "stripes": "striped ",
    "chequers": "chequered ",
    "mottled": "mottled ",
}
_HUES = (
    (15, "red"), (45, "orange"), (70, "yellow"), (160, "green"), (200, "turquoise"),
    (255, "blue"), (300, "purple"), (345, "pink"), (360, "red"),
)  # fmt: skip
"""Up to which hue, in degrees, a colour has the name."""
_OPENINGS = (
    *("", "", "", "a picture of ", "a painting of ", "a photo of ", "an image of ", "a view of "),
)
_APART = 0.15
"""Of the picture's width: one thing is left of another whose middle is farther right than this."""
_NEARER = 1.25
"""How many times as far away the next thing must be for the nearest to be called so."""
_TRIES = 4 * CAPTIONS
_LEAST = 500
"""A thing of which less than 1/500 of the picture is to be seen is not spoken of."""


@dataclass(frozen=True)
class _Seen:
    """A thing that is to be seen: where across the picture (0 left, 1 right), how far away (m)."""

    thing: Thing
    across: float
    away: float


def captions(scene: Scene, instances: NDArray[np.uint8]) -> tuple[str, ...]:
    """``CAPTIONS`` sentences about ``scene``; ``instances [H, W]`` says which thing each pixel
    shows (0 none, else its place in ``scene.things``, from 1)."""
    seen = _seen(scene, instances)
    draw = Draw(scene.seed, scene.index, _STREAM)
    forms: Sequence[Callable[[Draw, str, Sequence[_Seen]], str | None]] = (
        *(_all_kinds, _some_kinds, _one_thing, _one_thing, _side_by_side, _side_by_side),
        *(_near_and_far, _place_alone),
    )
    place = _place(scene)
    told = [_all_kinds(draw, place, seen)]
    for _ in range(_TRIES):
        said = draw.choice(forms)(draw, place, seen)
        if said is not None and said not in told:
            told.append(said)
    told += told[:1] * CAPTIONS  # a scene with little in it has not that much to say
    return tuple(draw.choice(_OPENINGS) + each for each in told[:CAPTIONS])


def _seen(scene: Scene, instances: NDArray[np.uint8]) -> list[_Seen]:
    height, width = instances.shape
    found = []
    for number, thing in enumerate(scene.things, start=1):
        shown = instances == number
        if int(np.count_nonzero(shown)) * _LEAST < width * height:
            continue
        columns = np.nonzero(shown.any(axis=0))[0]
        across = (int(columns[0]) + int(columns[-1]) + 1) / (2 * width)
        away = sum((a - b) ** 2 for a, b in zip(thing.place, scene.eye, strict=True)) ** 0.5
        found.append(_Seen(thing, across, away))
    return found


def _place(scene: Scene) -> str:
    """``a dining room``."""
    name = CLASSES[scene.label].replace("_", " ")
    return name if name in _WITHOUT_ARTICLE else f"a {name}"


def _all_kinds(draw: Draw, place: str, seen: Sequence[_Seen]) -> str:
    """``a camp with two tents, a fir and a crate``."""
    if not seen:
        return place
    with_ = draw.choice(("with", "with", "showing"))
    return f"{place} {with_} {_inventory(seen)}"


def _some_kinds(draw: Draw, place: str, seen: Sequence[_Seen]) -> str | None:
    """``two tents and a fir``, in their place or not."""
    if not seen:
        return None
    where = draw.choice(("", f" in {place}", f" in {place}"))
    return _inventory(seen) + where


def _one_thing(draw: Draw, place: str, seen: Sequence[_Seen]) -> str | None:
    """``a red striped tent on the left in a camp``."""
    if not seen:
        return None
    chosen = draw.choice(seen)
    side = ("on the left", "in the middle", "on the right")[min(int(3 * chosen.across), 2)]
    if draw.chance(0.5):
        return f"{place} with {_described(chosen.thing)} {side}"
    return f"{_described(chosen.thing)} {side}{draw.choice(('', f' of {place}'))}"


def _side_by_side(draw: Draw, place: str, seen: Sequence[_Seen]) -> str | None:
    """``a red tent left of a blue barrel in a camp``."""
    pairs = [(a, b) for a in seen for b in seen if b.across - a.across > _APART]
    if not pairs:
        return None
    left, right = (_described(each.thing) for each in draw.choice(pairs))
    where = draw.choice(("", f" in {place}", f" in {place}"))
    if draw.chance(0.5):
        return f"{left} to the left of {right}{where}"
    return f"{right} to the right of {left}{where}"


def _near_and_far(draw: Draw, place: str, seen: Sequence[_Seen]) -> str | None:
    """``a green ball in front in a playground``: of things that clearly stand so."""
    by_distance = sorted(seen, key=lambda each: each.away)
    if len(seen) < 2 or by_distance[1].away < _NEARER * by_distance[0].away:
        return None
    near, far = by_distance[0].thing, by_distance[-1].thing
    if draw.chance(0.5):
        return f"{place} with {_described(near)} in front"
    return f"{_described(near)} in front and {_described(far)} behind it in {place}"


def _place_alone(draw: Draw, place: str, seen: Sequence[_Seen]) -> str:
    return place


def _inventory(seen: Sequence[_Seen]) -> str:
    """Kinds by how many there are, then by name: ``two tents, a barrel and a fir``."""
    counts = Counter(each.thing.kind for each in seen)
    parts = [
        f"a {kind}" if count == 1 else f"{_number(count)} {plural(kind)}"
        for kind, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    ]
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else "many"


def plural(kind: str) -> str:
    return _PLURALS.get(kind, f"{kind}s")


def _described(thing: Thing) -> str:
    """``an orange chequered crate``: its main colour and its pattern."""
    words = f"{colour_name(thing.colours[0])} {_PATTERNS[thing.pattern]}{thing.kind}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def colour_name(colour: Colour) -> str:
    """The English name of red, green and blue from 0 to 1: by hue alone, but dark orange is brown
    and what has hardly any hue is grey."""
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    if saturation < 0.15:
        return "grey"
    name = next(name for most, name in _HUES if 360 * hue <= most)
    return "brown" if name == "orange" and value < 0.65 else name
