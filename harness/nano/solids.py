"""The solids that things are made of, and where a ray meets them.

Plain analytic geometry with + − × ÷ √ only, each rounded as IEEE 754 says, so that a ray meets a
solid at the same number on every machine. A ray is ``origin + t · direction``; every function takes
its six coordinates as numbers or arrays that broadcast together, in the solid's own frame (x right,
y up, z away).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ray = tuple[Any, Any, Any, Any, Any, Any]
"""ox, oy, oz, dx, dy, dz."""
Vector = tuple[float, float, float]
NEAR = np.float32(1e-3)
"""Hits nearer than this (in metres along a ray of camera depth 1) are the surface itself."""
_INF = np.float32(np.inf)


class Solid(Protocol):
    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """The lower and the upper corner of a box round it."""

    def hit(self, ray: Ray) -> Array:
        """The smallest t beyond ``NEAR``, infinity where the ray misses."""

    def normal(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """The outward direction at points of the surface, of length 1."""


@dataclass(frozen=True)
class Ellipsoid:
    centre: Vector
    radii: Vector

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        (x, y, z), (a, b, c) = self.centre, self.radii
        return (x - a, y - b, z - c), (x + a, y + b, z + c)

    def hit(self, ray: Ray) -> Array:
        scaled = [(ray[i] - self.centre[i]) * (1 / self.radii[i]) for i in range(3)]
        scaled += [ray[3 + i] * (1 / self.radii[i]) for i in range(3)]
        ox, oy, oz, dx, dy, dz = scaled
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        c = ox * ox + oy * oy + oz * oz - 1
        inside = b * b - a * c
        t = (-b - np.sqrt(np.maximum(inside, 0))) / a
        return _where((inside > 0) & (t > NEAR), t)

    def normal(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        (cx, cy, cz), (a, b, c) = self.centre, self.radii
        return _unit((x - cx) / (a * a), (y - cy) / (b * b), (z - cz) / (c * c))


@dataclass(frozen=True)
class Frustum:
    """Round and upright, from radius ``bottom`` at ``low`` to ``top`` at ``high``: a cylinder where
    these agree, a cone where ``top`` is 0."""

    x: float
    z: float
    low: float
    high: float
    bottom: float
    top: float

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        r = max(self.bottom, self.top)
        return (self.x - r, self.low, self.z - r), (self.x + r, self.high, self.z + r)

    @property
    def _slope(self) -> float:
        return (self.top - self.bottom) / (self.high - self.low)

    def hit(self, ray: Ray) -> Array:
        ox, oy, oz, dx, dy, dz = ray
        ox, oz, slope = ox - self.x, oz - self.z, self._slope
        radius = self.bottom + slope * (oy - self.low)
        a = dx * dx + dz * dz - (slope * slope) * (dy * dy)
        b = ox * dx + oz * dz - slope * (dy * radius)
        c = ox * ox + oz * oz - radius * radius
        inside = b * b - a * c
        root = np.sqrt(np.maximum(inside, 0))
        best = np.array(_INF)
        for t in ((-b - root) / a, (-b + root) / a):
            y = oy + t * dy
            good = (inside >= 0) & (t > NEAR) & (y >= self.low) & (y <= self.high)
            best = np.minimum(best, _where(good, t))
        for level, r in ((self.low, self.bottom), (self.high, self.top)):
            if r:
                t = (level - oy) / dy
                x, z = ox + t * dx, oz + t * dz
                best = np.minimum(best, _where((x * x + z * z <= r * r) & (t > NEAR), t))
        return best

    def normal(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        x, z = x - self.x, z - self.z
        radius = self.bottom + self._slope * (y - self.low)
        side = _unit(x, -self._slope * radius, z)
        within = x * x + z * z < np.float32(0.998) * (radius * radius)
        lid = np.where(y + y > self.low + self.high, np.float32(1), np.float32(-1))
        nought = np.float32(0)
        return (
            np.where(within, nought, side[0]),
            np.where(within, lid, side[1]),
            np.where(within, nought, side[2]),
        )


@dataclass(frozen=True)
class Convex:
    """All points with ``a·x + b·y + c·z <= d`` for each plane (a, b, c, d); (a, b, c) has
    length 1."""

    planes: tuple[tuple[float, float, float, float], ...]
    low: Vector
    high: Vector

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        return self.low, self.high

    def hit(self, ray: Ray) -> Array:
        ox, oy, oz, dx, dy, dz = ray
        enter: Any = NEAR
        leave: Any = _INF
        for plane in self.planes:
            along, room = _dot(plane, dx, dy, dz), plane[3] - _dot(plane, ox, oy, oz)
            t = room / along
            enter = np.where(along < 0, np.fmax(enter, t), enter)
            leave = np.where(along > 0, np.fmin(leave, t), leave)
            leave = np.where((along == 0) & (room < 0), np.float32(-1), leave)
        return _where((enter < leave) & (enter > NEAR), enter)

    def normal(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        outside = [_dot(plane, x, y, z) - plane[3] for plane in self.planes]
        face = np.argmax(np.stack(outside), axis=0)
        normals = np.array([plane[:3] for plane in self.planes], dtype=np.float32)[face]
        return normals[..., 0], normals[..., 1], normals[..., 2]


def box(low: Vector, high: Vector) -> Convex:
    (x0, y0, z0), (x1, y1, z1) = low, high
    planes = (
        (1.0, 0.0, 0.0, x1),
        (-1.0, 0.0, 0.0, -x0),
        (0.0, 1.0, 0.0, y1),
        (0.0, -1.0, 0.0, -y0),
        (0.0, 0.0, 1.0, z1),
        (0.0, 0.0, -1.0, -z0),
    )
    return Convex(planes, low, high)


def ridge(width: float, low: float, high: float, depth: float) -> Convex:
    """A roof or a tent: its ridge runs along z at ``high``, its eaves at ``low``; round x = z = 0,
    ``width`` by ``depth``."""
    half, rise = width / 2, high - low
    length = float(np.sqrt(half * half + rise * rise))
    a, b = rise / length, half / length
    planes = (
        (a, b, 0.0, b * high),
        (-a, b, 0.0, b * high),
        (0.0, -1.0, 0.0, -low),
        (0.0, 0.0, 1.0, depth / 2),
        (0.0, 0.0, -1.0, depth / 2),
    )
    return Convex(planes, (-half, low, -depth / 2), (half, high, depth / 2))


def _dot(plane: tuple[float, ...], x: Any, y: Any, z: Any) -> Any:
    """Zero components are left out: most planes stand along an axis."""
    parts = [(weight, value) for weight, value in zip(plane, (x, y, z), strict=False) if weight]
    total: Any = parts[0][1] if parts[0][0] == 1 else parts[0][0] * parts[0][1]
    for weight, value in parts[1:]:
        total = total + weight * value
    return total


def _where(good: Any, t: Any) -> Array:
    return np.where(good, t, _INF).astype(np.float32, copy=False)


def _unit(x: Any, y: Any, z: Any) -> tuple[Array, Array, Array]:
    length = np.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length
