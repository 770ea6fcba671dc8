"""What a linear probe reads out of single patch tokens: where they are, and their own pixels.

Darcet et al., "Vision Transformers Need Registers" (2023, figure 5b and table 5) say that both
probes are linear and no more. Here they are fitted in closed form from sums that add up over
pictures: position (and class) by linear discriminants, pixels by ridge regression. A regression
onto one-hot positions would not do: where a token holds its row and column as two numbers, the
middle positions never have the largest output (masking: Hastie et al., "The Elements of
Statistical Learning", 2009, section 4.2), and discriminants read them exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

_CHUNK = 2**23  # numbers of a prediction that are in memory at a time


class Examples(NamedTuple):
    """n tokens: ``features [n, D]``, their ``positions [n]`` (row-major), their patches' ``pixels
    [n, P]``, and the ``labels [n]`` of their pictures (-1: not known), if any has one."""

    features: Tensor
    positions: Tensor
    pixels: Tensor
    labels: Tensor | None

    def of(self, which: Tensor) -> Examples:
        """Those of ``which [n]`` alone."""
        labels = None if self.labels is None else self.labels[which]
        return Examples(self.features[which], self.positions[which], self.pixels[which], labels)


class Linear(NamedTuple):
    """``features @ weights [D, K] + bias [K]``, float64."""

    weights: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features.double() @ self.weights + self.bias


class Probes(NamedTuple):
    """What was fitted. ``label`` is None where some picture has no class."""

    position: Linear
    pixels: Linear
    label: Linear | None


class Scores(NamedTuple):
    """Of n tokens, ``[n]`` float64 each: whether the position was right, how far off it was in
    patches, the distance of predicted from true pixels of the patch (L2), and whether the class
    was right (NaN where it is not known; None without classes)."""

    position_top1: Tensor
    position_distance: Tensor
    pixel_l2: Tensor
    class_top1: Tensor | None


class TokenSums:
    """All that the probes need of the tokens that they are fitted on, in float64: a matrix of the
    features' products, and the sums of features by position and by class.

    ``grid`` is (rows, columns); ``classes`` is 0 where pictures have none.
    """

    def __init__(self, grid: tuple[int, int], classes: int) -> None:
        self._grid, self._classes = grid, classes
        self._held: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        return int(self._held["positions"].sum()) if self._held else 0

    def add(self, examples: Examples) -> None:
        features, pixels = examples.features.double(), examples.pixels.double()
        self._sum("products", features.T @ features)
        self._sum("features", features.sum(0))
        self._sum("cross", features.T @ pixels)
        self._sum("pixels", pixels.sum(0))
        rows, columns = self._grid
        self._by("positions", examples.positions, features, rows * columns)
        if examples.labels is not None:
            known = examples.labels >= 0
            self._by("labels", examples.labels[known], features[known], self._classes)

    def _by(self, what: str, kinds: Tensor, features: Tensor, count: int) -> None:
        sums = features.new_zeros(count, features.shape[1]).index_add_(0, kinds, features)
        self._sum(f"by_{what}", sums)
        self._sum(what, torch.bincount(kinds, minlength=count).double())

    def _sum(self, name: str, values: Tensor) -> None:
        self._held[name] = self._held[name] + values if name in self._held else values

    def fit(self, ridge: float) -> Probes:
        """The probes of these tokens. ``ridge`` is added to the variance of every dimension, in
        units of that variance: dimensions are scaled first, so a massive one weighs as others do.

        Raises ``ValueError`` where no token was added.
        """
        if not self.count:
            raise ValueError("no token to fit a probe on")
        held, count = self._held, self.count
        mean = held["features"] / count
        covariance = held["products"] / count - torch.outer(mean, mean)
        variance = covariance.diagonal().clamp_min(0)
        # A dimension that never varies says nothing, and rounding must not be scaled up.
        varies = variance > 1e-12 * mean.square() + 1e-30
        scale = torch.where(varies, variance.sqrt(), torch.inf)
        spread = covariance / torch.outer(scale, scale)
        pixel_mean = held["pixels"] / count
        cross = (held["cross"] / count - torch.outer(mean, pixel_mean)) / scale[:, None]
        weights = _solve(spread, cross, ridge) / scale[:, None]
        discriminants = [
            _discriminants(held[what], held[f"by_{what}"], mean, scale, spread, ridge)
            for what in ("positions", "labels")
            if what in held and held[what].sum() == count
        ]
        label = discriminants[1] if len(discriminants) > 1 else None
        return Probes(discriminants[0], Linear(weights, pixel_mean - mean @ weights), label)

    def state(self) -> Any:
        return {name: values.cpu() for name, values in self._held.items()}

    def load(self, state: Any, device: str | torch.device = "cpu") -> None:
        self._held = {name: values.to(device) for name, values in state.items()}

    def merge(self, other: Self) -> None:
        for name, values in other._held.items():
            self._sum(name, values)


def score(probes: Probes, examples: Examples, columns: int) -> Scores:
    """How well the probes read these tokens, on a grid of so many columns."""
    widest = max(len(each.bias) for each in probes if each is not None)
    every, size = torch.arange(len(examples.positions)), max(1, _CHUNK // widest)
    parts = [
        _score(probes, examples.of(every[start : start + size]), columns)
        for start in range(0, len(every), size)
    ]
    right = [part.class_top1 for part in parts if part.class_top1 is not None]
    return Scores(
        torch.cat([part.position_top1 for part in parts]),
        torch.cat([part.position_distance for part in parts]),
        torch.cat([part.pixel_l2 for part in parts]),
        torch.cat(right) if right else None,
    )


def _score(probes: Probes, examples: Examples, columns: int) -> Scores:
    found = probes.position(examples.features).argmax(1)
    true = examples.positions
    down = found // columns - true // columns
    across = found % columns - true % columns
    off = probes.pixels(examples.features) - examples.pixels.double()
    right = None
    if probes.label is not None and examples.labels is not None:
        right = (probes.label(examples.features).argmax(1) == examples.labels).double()
        right[examples.labels < 0] = float("nan")
    return Scores(
        (found == true).double(),
        torch.hypot(down.double(), across.double()),
        torch.linalg.vector_norm(off, dim=1),
        right,
    )


def _discriminants(
    counts: Tensor, sums: Tensor, mean: Tensor, scale: Tensor, spread: Tensor, ridge: float
) -> Linear:
    """Fisher's linear discriminants of K kinds with ``counts [K]`` and ``sums [K, D]``: the class
    means' likelihoods under one normal distribution about each. A kind without a token is never
    predicted."""
    shares = counts / counts.sum()
    means = (sums / counts.clamp_min(1)[:, None] - mean) / scale
    within = spread - (means.T * shares) @ means
    weights = _solve(within, means.T, ridge)
    bias = shares.log() - (means.T * weights).sum(0) / 2  # log 0 is -inf
    weights = weights / scale[:, None]
    return Linear(weights, bias - mean @ weights)


def _solve(spread: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    regular = spread + ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
    solved: Tensor = torch.linalg.solve(regular, wanted)
    return solved


def patch_pixels(pixels: Tensor, patch: int) -> Tensor:
    """Pictures ``[B, 3, H·p, W·p]`` -> the pixels of every patch ``[B, H, W, 3·p·p]``."""
    batch, channels, height, width = pixels.shape
    parts = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3)
