"""A scene's description -> its pixels, masks and depth, by casting one ray a pixel.

Every pixel comes from + − × ÷ √ on float32, each rounded on its own, and from whole-number noise:
the same on every machine. No sums over arrays, whose order a library may choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.nano.draw import pixel_noise, smooth_noise
from harness.nano.layouts import Colour, Scene, Thing
from harness.nano.solids import Array, Ray, Solid, Vector

FAR = 100.0
"""Metres: as far as the eye sees. The sky is there."""
_NOISE = 3  # grey levels, either way
_SHADE = np.float32(0.45)  # what a shadow leaves of the light
_SURFACE = np.float32(0.01)  # metres that a shadow's ray starts off the surface


@dataclass(frozen=True)
class Rendered:
    """One painted picture and all that is known of it, at its own size."""

    picture: NDArray[np.uint8]
    """``[H, W, 3]`` RGB."""
    instances: NDArray[np.uint8]
    """``[H, W]``: 0 is background, n is the scene's thing n - 1."""
    depth: NDArray[np.float32]
    """``[H, W]``: metres along the camera's axis, at most ``FAR``."""


@dataclass(frozen=True)
class _Piece:
    """A solid in its place in the world."""

    thing: int
    part: int
    solid: Solid
    place: Vector
    turn: tuple[float, float]

    def into(self, ray: Ray) -> Ray:
        """A ray of the world in the solid's own frame."""
        (px, py, pz), (c, s) = self.place, self.turn
        ox, oy, oz, dx, dy, dz = ray
        ox, oz = ox - px, oz - pz
        return c * ox - s * oz, oy - py, s * ox + c * oz, c * dx - s * dz, dy, s * dx + c * dz

    def corners(self) -> list[Vector]:
        (low, high), (c, s) = self.solid.bounds, self.turn
        px, py, pz = self.place
        return [
            (px + c * x + s * z, py + y, pz - s * x + c * z)
            for x in (low[0], high[0])
            for y in (low[1], high[1])
            for z in (low[2], high[2])
        ]


def masks(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """``Rendered.instances`` alone, for a fraction of the work."""
    return _Canvas(scene, width, height).instances


def render(scene: Scene, width: int, height: int) -> Rendered:
    """Paint ``scene`` at ``width`` × ``height`` pixels."""
    canvas = _Canvas(scene, width, height)
    return Rendered(canvas.paint(), canvas.instances, canvas.depth)


class _Canvas:
    """The rays of a picture, what each meets first, and how far away that is."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene, self.width, self.height = scene, width, height
        self._scale = scene.focal * min(width, height)
        step = np.float32(1 / self._scale)
        x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) * step
        y = (np.float32((height - 1) / 2) - np.arange(height, dtype=np.float32)) * step
        forward, right, up = scene.forward, scene.right, scene.up
        # Any: numpy's stubs take float32 times a Python float for float64, which it is not.
        across, down = x[None, :], y[:, None]
        self.ray: tuple[Any, Any, Any] = (
            across * right[0] + (down * up[0] + forward[0]),
            across * right[1] + (down * up[1] + forward[1]),
            across * right[2] + (down * up[2] + forward[2]),
        )
        self.pieces = [
            _Piece(number, part, each.solid, thing.place, thing.turn)
            for number, thing in enumerate(scene.things)
            for part, each in enumerate(thing.shape)
        ]
        self._windows = [self._window(piece.corners()) for piece in self.pieces]
        with np.errstate(all="ignore"):
            self.wall, self.depth = self._surround()
            self.piece = self._first_hits()
        things = np.array([0, *(piece.thing + 1 for piece in self.pieces)], dtype=np.uint8)
        self.instances: NDArray[np.uint8] = things[self.piece]

    def _surround(self) -> tuple[NDArray[np.uint8], Array]:
        """What lies behind the things (0 sky or ceiling, 1 ground or floor, 2 hills or the back
        wall, 3 a side wall) and its depth."""
        scene, (dx, dy, dz) = self.scene, self.ray
        ex, ey, ez = scene.eye
        far = np.float32(FAR)
        ground = np.where(dy < 0, np.minimum(-ey / dy, far), far)
        if scene.indoors:
            half, high, deep = scene.room
            ceiling = np.where(dy > 0, (high - ey) / dy, far)
            side = np.where(dx > 0, (half - ex) / dx, np.where(dx < 0, (-half - ex) / dx, far))
            back = np.where(dz > 0, (deep - ez) / dz, far)
            depth = np.minimum(np.minimum(ground, ceiling), np.minimum(side, back))
            wall = np.select([depth == ground, depth == back, depth == side], [1, 2, 3], 0)
            return wall.astype(np.uint8), depth.astype(np.float32)
        wall = (ground < far).astype(np.uint8)
        depth = ground.astype(np.float32)
        if scene.hills:
            distance = np.float32(60)
            t = (distance - ez) / dz
            along = (ex + t * dx) * np.float32(0.06)
            top = scene.hills * (smooth_noise(scene.seed + 1, along, along * 0) * 2 + 1)
            hill = (dz > 0) & (ey + t * dy < top) & (t < depth)
            wall[hill] = 2
            depth = np.where(hill, t, depth)
        return wall, depth

    def _first_hits(self) -> NDArray[np.uint16]:
        """Which piece each ray meets first (0: none; n: piece n - 1); ``depth`` comes nearer."""
        first = np.zeros((self.height, self.width), dtype=np.uint16)
        eye = self.scene.eye
        pieces = zip(self.pieces, self._windows, strict=True)
        for number, (piece, window) in enumerate(pieces, start=1):
            if window is None:
                continue
            dx, dy, dz = (axis[window] for axis in self.ray)
            ray = piece.into((*eye, dx, dy, dz))
            t = piece.solid.hit(ray)
            nearer = t < self.depth[window]
            np.copyto(self.depth[window], t, where=nearer)
            np.copyto(first[window], np.uint16(number), where=nearer)
        return first

    def _window(self, corners: Sequence[Vector]) -> tuple[slice, slice] | None:
        """The part of the picture that can show what lies between ``corners``, or None."""
        scene, columns, rows = self.scene, [], []
        for corner in corners:
            x, y, z = (corner[axis] - scene.eye[axis] for axis in range(3))
            away = _dot((x, y, z), scene.forward)
            if away < 0.05:  # beside or behind the eye: anywhere
                return slice(0, self.height), slice(0, self.width)
            columns.append(_dot((x, y, z), scene.right) / away)
            rows.append(_dot((x, y, z), scene.up) / away)
        left = int(min(columns) * self._scale + (self.width - 1) / 2 - 1)
        right = int(max(columns) * self._scale + (self.width - 1) / 2 + 2)
        top = int((self.height - 1) / 2 - max(rows) * self._scale - 1)
        bottom = int((self.height - 1) / 2 - min(rows) * self._scale + 2)
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right + 1, self.width), min(bottom + 1, self.height)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    def paint(self) -> NDArray[np.uint8]:
        """The colours, ``[H, W, 3]``."""
        scene = self.scene
        with np.errstate(all="ignore"):
            picture, lit = self._paint_surround()
            at = [scene.eye[axis] + self.depth * self.ray[axis] for axis in range(3)]
            pieces = zip(self.pieces, self._windows, strict=True)
            for number, (piece, window) in enumerate(pieces, start=1):
                if window is None:
                    continue
                seen = np.nonzero(self.piece[window] == number)
                if not len(seen[0]):
                    continue
                rows, columns = seen[0] + window[0].start, seen[1] + window[1].start
                colour, shine = self._paint_piece(piece, [axis[rows, columns] for axis in at])
                picture[rows, columns] = colour
                lit[rows, columns] = shine
            lit *= self._shadows(at)
        ambient = np.float32(scene.ambient)
        picture *= (ambient + (1 - ambient) * lit)[..., None]
        picture = self._soften(picture) * 255
        picture += pixel_noise(scene.seed, self.height, self.width, _NOISE)
        painted: NDArray[np.uint8] = np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
        return painted

    def _paint_piece(self, piece: _Piece, at: Sequence[Any]) -> tuple[Array, Array]:
        """Colour ``[n, 3]`` and light ``[n]`` of points of a piece's surface."""
        thing = self.scene.things[piece.thing]
        light = self.scene.light
        ax, ay, az = at
        x, y, z, lx, ly, lz = piece.into((ax, ay, az, *light))
        nx, ny, nz = piece.solid.normal(x, y, z)
        shine = np.maximum(nx * lx + ny * ly + nz * lz, 0)
        part = thing.shape[piece.part]
        first = _rgb(thing.colours[part.colour])
        if part.colour or thing.pattern == "plain":
            return np.broadcast_to(first, (len(x), 3)), shine
        share = _pattern(thing, self.scene.seed + piece.thing, x, y, z)
        return first + share[:, None] * (_rgb(thing.colours[1]) - first), shine

    def _paint_surround(self) -> tuple[Array, Array]:
        """Colours and light of everything that is no thing."""
        scene, (dx, dy, dz) = self.scene, self.ray
        floor, second, low, high, hills, last = (_rgb(colour) for colour in scene.colours)
        ground = self._ground(floor, second)
        if scene.indoors:
            paints = [high, None, low, low * np.float32(0.92)]
            lit = np.array([0.9, scene.light[1], 0.75, 0.6], dtype=np.float32)[self.wall]
        else:
            paints = [None, None, hills, hills]
            lit = np.array([1.0, scene.light[1], 0.8, 0.8], dtype=np.float32)[self.wall]
        picture = np.empty((self.height, self.width, 3), dtype=np.float32)
        for kind, paint in enumerate(paints):
            if paint is not None:
                picture[self.wall == kind] = paint
        if scene.indoors:
            skirting = (self.wall > 1) & (scene.eye[1] + self.depth * dy < np.float32(0.12))
            picture[skirting] = last
        else:
            sky = self.wall == 0
            rise = np.clip(dy * np.float32(2.2), 0, 1)
            share = rise
            if scene.clouds:
                slope = 1 / np.maximum(dy, np.float32(0.04))
                cloud = smooth_noise(scene.seed + 2, dx * slope, dz * slope)
                share = np.where(cloud > scene.clouds, rise, rise * np.float32(0.6))
                puff = np.clip((cloud - scene.clouds) * 3, 0, 1) * rise
                picture[sky] = (_between(low, high, share) + (puff[..., None] * (last - low)))[sky]
            else:
                picture[sky] = _between(low, high, share)[sky]
            lit[sky] = 1
        on_ground = self.wall == 1
        picture[on_ground] = ground[on_ground]
        return picture, lit

    def _ground(self, first: Array, second: Array) -> Array:
        """The colours of the ground wherever a ray would meet it."""
        scene, (dx, dy, dz) = self.scene, self.ray
        away = np.minimum(np.where(dy < 0, -scene.eye[1] / dy, np.float32(FAR)), np.float32(FAR))
        x, z = scene.eye[0] + away * dx, scene.eye[2] + away * dz
        if scene.ground == "tiles":
            share: Any = ((np.floor(x * 2) + np.floor(z * 2)) % 2) * np.float32(0.35)
        elif scene.ground == "boards":
            share = (np.floor(x * 4) % 2) * np.float32(0.25)
        elif scene.ground == "rows":
            share = (np.floor(x * 1.5) % 2) * np.clip(np.float32(8) / away, 0, 1) * 0.5
        elif scene.ground == "mottled":
            # Finer than a pixel is noise of another kind: it fades with distance.
            share = smooth_noise(scene.seed + 3, x * np.float32(0.9), z * np.float32(0.9))
            share = share * np.clip(np.float32(20) / away, 0, 1) * np.float32(0.6)
        elif scene.ground == "road":
            on_road = (x > np.float32(-2.3)) & (x < np.float32(2.3))
            line = (x > np.float32(-0.1)) & (x < np.float32(0.1)) & (np.floor(z) % 3 < 1.5)
            share = np.where(on_road, np.where(line, np.float32(0.2), 1), 0)
        else:
            share = np.zeros_like(x)
        return _between(first, second, share.astype(np.float32))

    def _shadows(self, at: Sequence[Any]) -> Array:
        """1 where the light arrives, ``_SHADE`` where a piece is in its way."""
        light = self.scene.light
        lit = np.ones((self.height, self.width), dtype=np.float32)
        if not self.scene.indoors:
            open_sky = self.wall == 0
        for piece in self.pieces:
            corners = piece.corners()
            # What it can darken lies between it and the ground, away from the light.
            fallen = [
                (x - light[0] / light[1] * y, 0.0, z - light[2] / light[1] * y)
                for x, y, z in corners
            ]
            window = self._window(corners + fallen)
            if window is None:
                continue
            ax, ay, az = (at[axis][window] + light[axis] * _SURFACE for axis in range(3))
            t = piece.solid.hit(piece.into((ax, ay, az, *light)))
            own = self.piece[window] > 0
            own &= self.instances[window] == piece.thing + 1
            dark = (t < np.inf) & ~own
            lit[window][dark] = _SHADE
        if not self.scene.indoors:
            lit[open_sky & (self.piece == 0)] = 1
        return lit

    def _soften(self, picture: Array) -> Array:
        """Mix each pixel at an edge between surfaces with its neighbours right and below, which
        takes the worst of the stairs away. Labels are not touched."""
        kind = self.piece.astype(np.int32) * 4 + self.wall
        edge = np.zeros(kind.shape, dtype=np.bool_)
        edge[:, :-1] |= kind[:, :-1] != kind[:, 1:]
        edge[:-1] |= kind[:-1] != kind[1:]
        rows, columns = np.nonzero(edge)
        right = np.minimum(columns + 1, self.width - 1)
        below = np.minimum(rows + 1, self.height - 1)
        soft = picture.copy()
        soft[rows, columns] = (
            2 * picture[rows, columns] + picture[rows, right] + picture[below, columns]
        ) * np.float32(0.25)
        return soft


def _pattern(thing: Thing, key: int, x: Array, y: Array, z: Array) -> Array:
    """How much of the second colour each point wears, from 0 to 1."""
    fine = np.float32(thing.fineness)
    if thing.pattern == "bands":
        share = np.floor(y * fine) % 2
    elif thing.pattern == "stripes":
        share = np.floor((x + z) * fine) % 2
    elif thing.pattern == "chequers":
        share = (np.floor(x * fine) + np.floor(y * fine) + np.floor(z * fine)) % 2
    else:
        share = smooth_noise(key, (x + z) * fine, y * fine)
    mixed: Array = share.astype(np.float32)
    return mixed


def _between(first: Array, second: Array, share: Array) -> Array:
    mixed: Array = first + share[..., None] * (second - first)
    return mixed


def _rgb(colour: Colour) -> Array:
    return np.array(colour, dtype=np.float32)


def _dot(a: Any, b: Any) -> float:
    total: float = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return total
