"""What makes a scene of its class: where it is, what stands in it, and how it is arranged.

A scene's class is told by its things and their layout. Light, camera, colours and patterns are
drawn the same way for all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from harness.nano.draw import Draw
from harness.nano.kinds import KINDS, Shape

Colour = tuple[float, float, float]
Pattern = Literal["plain", "bands", "stripes", "chequers", "mottled"]
PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "bands", "stripes", "chequers", "mottled")
Ground = Literal["plain", "mottled", "rows", "tiles", "boards", "road"]


@dataclass(frozen=True)
class Thing:
    """One object: what it is, where it stands, how it is turned (cosine, sine) and coloured."""

    kind: str
    shape: Shape
    place: tuple[float, float, float]
    turn: tuple[float, float]
    colours: tuple[Colour, Colour, Colour]
    pattern: Pattern
    fineness: float
    """Periods of the pattern a metre."""


@dataclass(frozen=True)
class Scene:
    """All that there is to know of one picture, before a pixel is painted. Metres; y is up; the
    camera looks along z when it is not turned."""

    index: int
    label: int
    indoors: bool
    room: tuple[float, float, float]
    """Half the width, the height, half the depth of the room."""
    eye: tuple[float, float, float]
    forward: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    focal: float
    """In units of the picture's shorter side."""
    light: tuple[float, float, float]
    """The direction to the light, of length 1."""
    ambient: float
    colours: tuple[Colour, ...]
    """Outdoors: ground, its second colour, sky low, sky high, hills, clouds. Indoors: floor, its
    second colour, walls, their second colour, ceiling, skirting."""
    ground: Ground
    hills: float
    clouds: float
    seed: int
    things: tuple[Thing, ...] = field(default=())


class Stage:
    """Where things are put down so that none stands in another."""

    def __init__(self, draw: Draw, palette: Sequence[Colour]) -> None:
        self.draw = draw
        self.things: list[Thing] = []
        self._palette = palette
        self._taken: list[tuple[float, float, float]] = []

    def put(
        self,
        kind: str,
        x: tuple[float, float],
        z: tuple[float, float],
        y: float = 0.0,
        turned: float = 1.0,
        room: float = 0.85,
    ) -> Thing | None:
        """A new thing somewhere in the ranges ``x`` and ``z``, or None where there is no place.

        ``turned`` is how far it may be turned (1: a right angle to either side); ``room`` shrinks
        or widens the circle round it that has to be free.
        """
        draw = self.draw
        shape = KINDS[kind](draw)
        radius = room * max(
            max(abs(value) for corner in part.solid.bounds for value in (corner[0], corner[2]))
            for part in shape
        )
        for _ in range(12):
            at = draw.uniform(*x), draw.uniform(*z)
            if y or all(_apart(at, radius, other) for other in self._taken):
                break
        else:
            return None
        self._taken.append((*at, radius))
        thing = Thing(
            kind,
            shape,
            (at[0], y, at[1]),
            turn(turned * draw.uniform(-1.0, 1.0)),
            (self._colour(), self._colour(), self._colour()),
            draw.choice(PATTERNS),
            draw.uniform(2.0, 6.0),
        )
        self.things.append(thing)
        return thing

    def _colour(self) -> Colour:
        r, g, b = self.draw.choice(self._palette)
        shade = self.draw.uniform(0.8, 1.15)
        return min(1.0, r * shade), min(1.0, g * shade), min(1.0, b * shade)


def _apart(at: tuple[float, float], radius: float, other: tuple[float, float, float]) -> bool:
    x, z, reach = at[0] - other[0], at[1] - other[1], radius + other[2]
    return x * x + z * z > reach * reach


def turn(half: float) -> tuple[float, float]:
    """Cosine and sine of the angle with tangent ``half`` of its half: a turn without a sine table.
    From -1 (a right angle) to 1."""
    square = half * half
    return (1 - square) / (1 + square), 2 * half / (1 + square)


def forest(stage: Stage) -> None:
    for _ in range(stage.draw.integer(7, 11)):
        stage.put(stage.draw.choice(("tree", "fir", "tree", "fir", "bush")), (-5, 5), (-2, 6))


def village(stage: Stage) -> None:
    for _ in range(stage.draw.integer(3, 5)):
        stage.put("house", (-4.5, 4.5), (-1, 5), turned=0.35, room=0.75)
    for _ in range(stage.draw.integer(0, 2)):
        stage.put(stage.draw.choice(("tree", "bush")), (-4, 4), (-3, 3))


def camp(stage: Stage) -> None:
    for _ in range(stage.draw.integer(2, 4)):
        stage.put("tent", (-3.2, 3.2), (-2, 3), turned=0.6)
    for _ in range(stage.draw.integer(1, 2)):
        stage.put("fir", (-4.5, 4.5), (1, 5))
    stage.put(stage.draw.choice(("barrel", "crate")), (-2, 2), (-3, -1))


def castle(stage: Stage) -> None:
    count = stage.draw.integer(3, 4)
    for place in range(count):
        x = -3.2 + 6.4 * place / (count - 1)
        stage.put("tower", (x - 0.4, x + 0.4), (-0.5, 2.5), turned=0.3)
    for _ in range(stage.draw.integer(0, 2)):
        stage.put(stage.draw.choice(("rock", "bush")), (-3, 3), (-3.5, -1.5))


def desert(stage: Stage) -> None:
    for _ in range(stage.draw.integer(3, 6)):
        stage.put("rock", (-4, 4), (-3, 4))
    if stage.draw.chance(0.3):
        stage.put("bush", (-3, 3), (-3, 2))


def roadworks(stage: Stage) -> None:
    z = -3.2
    for _ in range(stage.draw.integer(4, 6)):
        x = stage.draw.choice((-1.5, 1.5))
        stage.put("cone", (x - 0.3, x + 0.3), (z, z + 0.5), turned=0.2)
        z += stage.draw.uniform(0.9, 1.5)
    for _ in range(stage.draw.integer(1, 2)):
        stage.put("barrel", (-2.2, 2.2), (-3, 2))


def playground(stage: Stage) -> None:
    for _ in range(stage.draw.integer(3, 6)):
        stage.put("ball", (-2.4, 2.4), (-3.2, 1.5))
    for _ in range(stage.draw.integer(1, 2)):
        stage.put("crate", (-2.5, 2.5), (-2, 2))


def snowfield(stage: Stage) -> None:
    for _ in range(stage.draw.integer(2, 3)):
        stage.put("snowman", (-2.4, 2.4), (-3, 0.5))
    for _ in range(stage.draw.integer(1, 2)):
        stage.put("fir", (-4, 4), (1, 4))


def dining_room(stage: Stage) -> None:
    there = stage.put("table", (-0.5, 0.5), (-0.4, 0.6), turned=0.3, room=0.7)
    for side in (-1, 1, -1, 1)[: stage.draw.integer(2, 4)]:
        stage.put("chair", (side * 1.6, side * 1.0), (-0.9, 1.2), turned=0.9)
    if there is not None:
        (x, _, z), high = there.place, there.shape[0].solid.bounds[1][1]
        stage.put("vase", (x - 0.25, x + 0.25), (z - 0.15, z + 0.15), y=high)


def living_room(stage: Stage) -> None:
    stage.put("sofa", (-0.8, 0.8), (0.2, 1.2), turned=0.3)
    for _ in range(stage.draw.integer(1, 2)):
        stage.put("lamp", (-2.0, 2.0), (0.3, 1.6))
    if stage.draw.chance(0.5):
        stage.put(stage.draw.choice(("ball", "vase")), (-1.5, 1.5), (-1.2, -0.2))


def library(stage: Stage) -> None:
    for _ in range(stage.draw.integer(3, 5)):
        stage.put("shelf", (-2.2, 2.2), (1.2, 1.7), turned=0.04, room=0.95)
    stage.put(stage.draw.choice(("chair", "lamp")), (-1.4, 1.4), (-1.0, 0.4))


def storeroom(stage: Stage) -> None:
    for _ in range(stage.draw.integer(4, 7)):
        kind = stage.draw.choice(("crate", "crate", "barrel"))
        below = stage.put(kind, (-1.9, 1.9), (-1.0, 1.6), turned=0.3)
        if below is not None and below.kind == "crate" and stage.draw.chance(0.4):
            (x, _, z), high = below.place, below.shape[0].solid.bounds[1][1]
            stage.put("crate", (x - 0.05, x + 0.05), (z - 0.05, z + 0.05), y=high, turned=0.3)


def gallery(stage: Stage) -> None:
    count = stage.draw.integer(3, 4)
    for place in range(count):
        x = -1.7 + 3.4 * place / (count - 1)
        below = stage.put("crate", (x - 0.15, x + 0.15), (0.2, 1.3), turned=0.1, room=0.7)
        if below is not None:
            (x, _, z), high = below.place, below.shape[0].solid.bounds[1][1]
            stage.put("vase", (x, x), (z, z), y=high)


LANDSCAPES: tuple[Callable[[Stage], None], ...] = (
    camp, castle, desert, forest, playground, roadworks, snowfield, village,
)  # fmt: skip
ROOMS: tuple[Callable[[Stage], None], ...] = (
    dining_room, gallery, library, living_room, storeroom,
)  # fmt: skip
CLASSES: tuple[str, ...] = tuple(arrange.__name__ for arrange in (*LANDSCAPES, *ROOMS))


def describe(seed: int, index: int) -> Scene:
    """Scene ``index`` of the endless series ``seed``. Classes come in turn, in a shuffled order."""
    order = Draw(seed, index // len(CLASSES), 1)
    labels = list(range(len(CLASSES)))
    for last in range(len(labels) - 1, 0, -1):
        other = order.integer(0, last)
        labels[last], labels[other] = labels[other], labels[last]
    label = labels[index % len(CLASSES)]
    draw = Draw(seed, index, 2)
    indoors = label >= len(LANDSCAPES)
    palette = [_hue(draw) for _ in range(5)]
    stage = Stage(draw, palette)
    (*LANDSCAPES, *ROOMS)[label](stage)
    room = draw.uniform(2.4, 3.2), draw.uniform(2.3, 3.0), draw.uniform(2.2, 2.8)
    eye, forward, right, up = _camera(draw, indoors)
    grounds: tuple[Ground, ...] = ("plain", "tiles", "boards", "mottled")
    if not indoors:
        grounds = ("plain", "mottled", "mottled", "rows")
    ground = draw.choice(grounds)
    return Scene(
        index=index,
        label=label,
        indoors=indoors,
        room=room,
        eye=eye,
        forward=forward,
        right=right,
        up=up,
        focal=draw.uniform(0.75, 1.1) if indoors else draw.uniform(1.05, 1.7),
        light=_unit(draw.uniform(-0.9, 0.9), draw.uniform(0.8, 1.6), draw.uniform(-1.0, 0.1)),
        ambient=draw.uniform(0.35, 0.6),
        colours=tuple(_surround(draw) for _ in range(6)),
        ground="road" if CLASSES[label] == "roadworks" else ground,
        hills=draw.uniform(0.5, 5.0) if draw.chance(0.5) else 0.0,
        clouds=draw.uniform(0.35, 0.6) if draw.chance(0.5) else 0.0,
        seed=draw.bits() & 0x7FFFFFFF,
        things=tuple(stage.things),
    )


def _camera(draw: Draw, indoors: bool) -> tuple[tuple[float, float, float], ...]:
    """Where the eye is, and the unit vectors forward, right and up of what it sees."""
    cosine, sine = turn(draw.uniform(-0.2, 0.2))
    away = draw.uniform(2.0, 2.2) if indoors else draw.uniform(8.0, 11.0)
    high = draw.uniform(1.1, 1.9) if indoors else draw.uniform(1.4, 4.0)
    eye = -sine * away, high, -cosine * away
    aside = draw.uniform(-0.4, 0.4) if indoors else draw.uniform(-1.5, 1.5)
    at = aside, draw.uniform(0.5, 1.2) if indoors else draw.uniform(0.4, 2.2), 0.6
    forward = _unit(at[0] - eye[0], at[1] - eye[1], at[2] - eye[2])
    right = _unit(forward[2], 0.0, -forward[0])
    up = (
        forward[1] * right[2] - forward[2] * right[1],
        forward[2] * right[0] - forward[0] * right[2],
        forward[0] * right[1] - forward[1] * right[0],
    )
    return eye, forward, right, up


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = float(np.sqrt(x * x + y * y + z * z))
    return x / length, y / length, z / length


def _hue(draw: Draw) -> Colour:
    """A colour for things: any hue, rather saturated."""
    channels = [draw.uniform(0.65, 1.0), draw.uniform(0.15, 0.9), draw.uniform(0.05, 0.4)]
    first = draw.integer(0, 2)
    rest = [channels[1], channels[2]] if draw.chance(0.5) else [channels[2], channels[1]]
    rest.insert(first, channels[0])
    bright = draw.uniform(0.55, 1.0)
    return rest[0] * bright, rest[1] * bright, rest[2] * bright


def _surround(draw: Draw) -> Colour:
    """A colour for what lies round the things: paler, and any hue too."""
    grey = draw.uniform(0.35, 0.85)
    r, g, b = _hue(draw)
    share = draw.uniform(0.15, 0.5)
    return (
        grey + share * (r - grey),
        grey + share * (g - grey),
        grey + share * (b - grey),
    )
