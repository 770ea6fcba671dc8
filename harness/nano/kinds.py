"""What stands in a scene: the kinds of things, each made of a few solids.

Sizes are in metres; a thing stands on y = 0 round x = z = 0 of its own frame. A solid names which
of the thing's colours it wears. Shapes vary from thing to thing; colours and patterns are drawn
elsewhere and have nothing to do with the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.nano.draw import Draw
from harness.nano.solids import Ellipsoid, Frustum, Solid, box, ridge


@dataclass(frozen=True)
class Part:
    solid: Solid
    colour: int
    """0 the thing's main colour, 1 its second, 2 its third."""


Shape = tuple[Part, ...]


def ball(draw: Draw) -> Shape:
    r = draw.uniform(0.3, 0.55)
    return (Part(Ellipsoid((0, r, 0), (r, r, r)), 0),)


def crate(draw: Draw) -> Shape:
    a, b, c = draw.uniform(0.35, 0.6), draw.uniform(0.5, 1.1), draw.uniform(0.35, 0.6)
    return (Part(box((-a, 0, -c), (a, b, c)), 0),)


def barrel(draw: Draw) -> Shape:
    r, high = draw.uniform(0.3, 0.42), draw.uniform(0.8, 1.15)
    hoop = 0.06 * high
    return (
        Part(Frustum(0, 0, 0, high, r, r), 0),
        Part(Frustum(0, 0, 0.2 * high, 0.2 * high + hoop, 1.06 * r, 1.06 * r), 1),
        Part(Frustum(0, 0, 0.75 * high, 0.75 * high + hoop, 1.06 * r, 1.06 * r), 1),
    )


def cone(draw: Draw) -> Shape:
    r, high = draw.uniform(0.28, 0.38), draw.uniform(0.8, 1.2)
    low = 0.07 * high
    return (
        Part(box((-1.3 * r, 0, -1.3 * r), (1.3 * r, low, 1.3 * r)), 1),
        Part(Frustum(0, 0, low, high, r, 0.12 * r), 0),
        Part(Frustum(0, 0, 0.45 * high, 0.65 * high, 0.66 * r, 0.46 * r), 2),
    )


def tree(draw: Draw) -> Shape:
    trunk, r, high = draw.uniform(0.9, 1.6), draw.uniform(0.7, 1.1), draw.uniform(0.9, 1.3)
    thick = draw.uniform(0.12, 0.2)
    parts = [Part(Frustum(0, 0, 0, trunk + 0.5 * r, thick, 0.7 * thick), 1)]
    parts.append(Part(Ellipsoid((0, trunk + high * r, 0), (r, high * r, r)), 0))
    for side in (-1, 1):
        s = draw.uniform(0.5, 0.75) * r
        at = (side * draw.uniform(0.5, 0.8) * r, trunk + s, draw.uniform(-0.3, 0.3))
        parts.append(Part(Ellipsoid(at, (s, s, s)), 0))
    return tuple(parts)


def fir(draw: Draw) -> Shape:
    high, r = draw.uniform(2.4, 3.8), draw.uniform(0.7, 1.05)
    trunk = 0.15 * high
    parts = [Part(Frustum(0, 0, 0, 0.5 * high, 0.13, 0.1), 1)]
    for level in range(3):
        low = trunk + 0.26 * level * high
        width = r * (1 - 0.24 * level)
        parts.append(Part(Frustum(0, 0, low, low + 0.36 * high, width, 0.02), 0))
    return tuple(parts)


def bush(draw: Draw) -> Shape:
    parts = []
    for _ in range(3):
        r = draw.uniform(0.3, 0.5)
        at = (draw.uniform(-0.5, 0.5), 0.7 * r, draw.uniform(-0.25, 0.25))
        parts.append(Part(Ellipsoid(at, (r, 0.9 * r, r)), 0))
    return tuple(parts)


def rock(draw: Draw) -> Shape:
    a, b, c = draw.uniform(0.45, 1.0), draw.uniform(0.35, 0.75), draw.uniform(0.4, 0.8)
    small = draw.uniform(0.4, 0.6)
    return (
        Part(Ellipsoid((0, 0.3 * b, 0), (a, b, c)), 0),
        Part(Ellipsoid((0.6 * a, 0.2 * b, -0.3 * c), (small * a, small * b, small * c)), 0),
    )


def house(draw: Draw) -> Shape:
    w, d, high = draw.uniform(2.2, 3.2), draw.uniform(2.2, 3.0), draw.uniform(1.5, 2.1)
    roof = draw.uniform(0.9, 1.5)
    door = draw.uniform(-0.4, 0.4)
    parts = [
        Part(box((-w / 2, 0, -d / 2), (w / 2, high, d / 2)), 0),
        Part(ridge(1.15 * w, high, high + roof, 1.12 * d), 1),
        Part(box((door - 0.25, 0, -d / 2 - 0.03), (door + 0.25, 0.65 * high, 0)), 2),
    ]
    for side in (-1, 1):
        x = side * 0.36 * w
        if abs(x - door) > 0.45:
            low, top = 0.4 * high, 0.75 * high
            parts.append(Part(box((x - 0.2, low, -d / 2 - 0.02), (x + 0.2, top, 0)), 2))
    return tuple(parts)


def tent(draw: Draw) -> Shape:
    w, high, d = draw.uniform(1.6, 2.3), draw.uniform(1.1, 1.6), draw.uniform(1.8, 2.6)
    return (
        Part(ridge(w, 0, high, d), 0),
        Part(ridge(0.35 * w, 0, 0.75 * high, d + 0.04), 2),
    )


def tower(draw: Draw) -> Shape:
    r, high, roof = draw.uniform(0.6, 0.9), draw.uniform(2.4, 3.6), draw.uniform(0.9, 1.5)
    return (
        Part(Frustum(0, 0, 0, high, 1.08 * r, r), 0),
        Part(Frustum(0, 0, high, high + roof, 1.3 * r, 0), 1),
        Part(box((-0.12, 0.6 * high, -1.12 * r), (0.12, 0.78 * high, 0)), 2),
    )


def snowman(draw: Draw) -> Shape:
    r = draw.uniform(0.42, 0.6)
    parts, low = [], 0.0
    for share in (1.0, 0.74, 0.52):
        s = share * r
        parts.append(Part(Ellipsoid((0, low + 0.9 * s, 0), (s, s, s)), 0))
        low += 1.6 * s
    hat = low + 0.1 * r
    parts.append(Part(Frustum(0, 0, hat, hat + 0.5 * r, 0.36 * r, 0.32 * r), 1))
    parts.append(Part(Frustum(0, 0, hat, hat + 0.07 * r, 0.6 * r, 0.6 * r), 1))
    return tuple(parts)


def table(draw: Draw) -> Shape:
    a, c, high = draw.uniform(0.6, 0.95), draw.uniform(0.4, 0.6), draw.uniform(0.7, 0.8)
    parts = [Part(box((-a, high - 0.09, -c), (a, high, c)), 0)]
    return (*parts, *_legs(a - 0.1, c - 0.1, 0.05, high - 0.09))


def chair(draw: Draw) -> Shape:
    a, seat, high = draw.uniform(0.22, 0.28), draw.uniform(0.42, 0.5), draw.uniform(0.9, 1.1)
    parts = [
        Part(box((-a, seat - 0.07, -a), (a, seat, a)), 0),
        Part(box((-a, seat, a - 0.07), (a, high, a)), 0),
    ]
    return (*parts, *_legs(a - 0.05, a - 0.05, 0.04, seat - 0.07))


def sofa(draw: Draw) -> Shape:
    a, c, high = draw.uniform(0.8, 1.15), draw.uniform(0.38, 0.48), draw.uniform(0.75, 0.9)
    return (
        Part(box((-a, 0, -c), (a, 0.42, c)), 0),
        Part(box((-a, 0.42, c - 0.22), (a, high, c)), 0),
        Part(box((-a - 0.18, 0, -c), (-a, 0.62, c)), 1),
        Part(box((a, 0, -c), (a + 0.18, 0.62, c)), 1),
    )


def lamp(draw: Draw) -> Shape:
    high, r = draw.uniform(1.4, 1.8), draw.uniform(0.24, 0.34)
    return (
        Part(Frustum(0, 0, 0, 0.05, 0.22, 0.2), 1),
        Part(Frustum(0, 0, 0.05, high - 0.3, 0.035, 0.035), 1),
        Part(Frustum(0, 0, high - 0.38, high, r, 0.55 * r), 0),
    )


def vase(draw: Draw) -> Shape:
    high, r = draw.uniform(0.5, 0.75), draw.uniform(0.16, 0.24)
    return (
        Part(Ellipsoid((0, 0.4 * high, 0), (r, 0.4 * high, r)), 0),
        Part(Frustum(0, 0, 0.65 * high, high, 0.45 * r, 0.75 * r), 0),
    )


def shelf(draw: Draw) -> Shape:
    a, high, c = draw.uniform(0.5, 0.75), draw.uniform(1.6, 2.1), 0.18
    parts = [Part(box((-a, 0, 0), (a, high, c)), 1)]  # its back; the boards stand out before it
    for board in range(4):
        y = 0.04 + board * (high - 0.08) / 3
        parts.append(Part(box((-a, y - 0.04, -c), (a, y + 0.04, c)), 0))
    for x in (-a, a - 0.06):
        parts.append(Part(box((x, 0, -c), (x + 0.06, high, c)), 0))
    for board in range(3):
        y, right = 0.08 + board * (high - 0.08) / 3, draw.uniform(0.0, 0.8) * a
        low, top = (-a + 0.08, y, -0.7 * c), (right, y + 0.62 * high / 3, 0)
        parts.append(Part(box(low, top), 2))
    return tuple(parts)


def _legs(x: float, z: float, half: float, high: float) -> Shape:
    """Four square legs, ``half`` their half width, at ±x and ±z."""
    return tuple(
        Part(box((at_x - half, 0, at_z - half), (at_x + half, high, at_z + half)), 1)
        for at_x in (-x, x)
        for at_z in (-z, z)
    )


KINDS: dict[str, Callable[[Draw], Shape]] = {
    kind.__name__: kind
    for kind in (
        ball, barrel, bush, chair, cone, crate, fir, house, lamp, rock, shelf, snowman, sofa,
        table, tent, tower, tree, vase,
    )
}  # fmt: skip
"""In alphabetical order: the semantic label of a kind is its place here, from 1."""
