"""The log-losses of all pictures, summed, and their slopes, as functions of weights: with all that
is computed of each picture kept, or a block of pictures at a time.

Weights are ``[K, D + 1]`` in the coordinates of the principal components of the centred features;
the last column is the bias. Classes come first: so products with the rows are fast. Centring moves
the biases alone, and a rotation leaves the penalty as it is. All is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from harness.features.vectors import Vectors

_SQUARED = 4_096  # rows that are squared at a time
_NUMBERS = 2**22  # float64 of a block: rows, and of each class logits, residuals and one more
_LEAST_ROWS = 256
_DOUBLE = 8  # bytes


class Loss(ABC):
    """The log-loss of pictures by their place. It does not depend on how they are parted."""

    @abstractmethod
    def of(self, logits: Tensor, residual: Tensor, part: slice) -> float:
        """The sum over the pictures of ``part`` at their ``logits [K, part]``; into ``residual [K,
        part]`` its gradient there."""

    @abstractmethod
    def bends(self, residual: Tensor, part: slice) -> Tensor:
        """The second derivatives by each logit, ``[K, part]``, where the gradient is
        ``residual``."""


class Sums(ABC):
    """Sums over all pictures, at one place in the space of weights after the other. ``mean [D]``
    and the ``components [D, D']`` lead back to the features' own coordinates."""

    mean: Tensor
    components: Tensor

    @abstractmethod
    def here(self) -> float:
        """The loss where one is."""

    @abstractmethod
    def there(self, weights: Tensor) -> float:
        """The loss somewhere else, where ``go`` would lead."""

    @abstractmethod
    def go(self) -> None: ...

    @abstractmethod
    def gradient(self) -> Tensor:
        """Of the loss, ``[K, D' + 1]``, where one is, as ``here`` or ``along`` have told last."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Of the loss's Hessian there."""

    @abstractmethod
    def aim(self, direction: Tensor) -> None: ...

    @abstractmethod
    def along(self, length: float) -> tuple[float, float]:
        """The loss, and its slope, so far in the direction that was aimed at."""

    @abstractmethod
    def advance(self, length: float) -> None:
        """To where ``along`` was asked for last."""


def sums_of(features: Tensor | Vectors, loss: Loss, start: Tensor, device: str) -> Sums:
    """At the place where all weights are 0 and the biases ``start [K]``, on ``device`` if that has
    float64. Raises ``ValueError`` for features that are not finite."""
    place = float64_device(device)
    if isinstance(features, Vectors):
        if len(features) >= features.width:
            return BlockedSums(features, loss, start.to(place))
        features = torch.cat(list(features.blocks(len(features))))  # less than its own covariance
    return KeptSums(features, loss, start.to(place))


def float64_device(device: str) -> str:
    """``device`` where that has float64, or the CPU."""
    return device if torch.device(device).type in {"cpu", "cuda"} else "cpu"


def block_rows(width: int, classes: int) -> int:
    """How many pictures are computed with at a time."""
    return max(_LEAST_ROWS, _NUMBERS // (width + 3 * classes))


def fit_bytes(vector_bytes: int, classes: int) -> int:
    """What ``KeptSums`` takes of a picture beside its vector, float32: the vector chosen from all,
    in float64, centred and rotated (two are there at once), and of each class its logit, the
    residual, where a direction leads and the logit there."""
    return vector_bytes + 2 * 2 * vector_bytes + 4 * _DOUBLE * classes


def block_bytes(width: int, classes: int) -> int:
    """What ``BlockedSums`` takes, however many pictures there are: the rows of a block and of the
    last one (float64), of both and of the next as they were read (float32), and of each class its
    logit, the residual and one more."""
    rows = block_rows(width, classes)
    return rows * (_DOUBLE * (2 * width + 3 * classes) + 3 * 4 * width)


class KeptSums(Sums):
    """Of each picture its rotated features and the logits of all classes are kept, so that going
    along a direction needs no product with the features.

    With D > n the optimum lies in the row space, where it is looked for: D' is n then.
    """

    def __init__(self, features: Tensor, loss: Loss, start: Tensor) -> None:
        if not torch.isfinite(features).all():
            raise ValueError("features that are not finite")
        rows = features.to(start.device, torch.float64)
        self.mean = rows.mean(0)
        rows = rows - self.mean
        reduced: Tensor | None = None
        if rows.shape[1] > rows.shape[0]:
            reduced, upper = torch.linalg.qr(rows.T)
            rows = upper.T
        components = torch.linalg.eigh(rows.T @ rows).eigenvectors
        self.components = components if reduced is None else reduced @ components
        # A last column of ones, whose weight is the bias.
        self._rows = torch.cat([rows @ components, rows.new_ones(len(rows), 1)], dim=1)
        self._all = slice(0, len(rows))
        self._loss = loss
        self._logits = start.to(self._rows)[:, None].repeat(1, len(rows))
        self._residual = torch.empty_like(self._logits)
        self._aside = self._ahead = self._logits

    def here(self) -> float:
        return self._loss.of(self._logits, self._residual, self._all)

    def there(self, weights: Tensor) -> float:
        self._aside = weights @ self._rows.T
        return self._loss.of(self._aside, self._residual, self._all)

    def go(self) -> None:
        self._logits = self._aside

    def gradient(self) -> Tensor:
        return self._residual @ self._rows

    def diagonal(self) -> Tensor:
        total = self._logits.new_zeros(len(self._logits), self._rows.shape[1])
        places = range(0, len(self._rows), _SQUARED)
        for part in (slice(place, place + _SQUARED) for place in places):
            total += self._loss.bends(self._residual[:, part], part) @ self._rows[part].square()
        return total

    def aim(self, direction: Tensor) -> None:
        self._aside = self._logits
        self._ahead = direction @ self._rows.T

    def along(self, length: float) -> tuple[float, float]:
        logits = self._logits.add(self._ahead, alpha=length)
        loss = self._loss.of(logits, self._residual, self._all)
        return loss, float(torch.vdot(self._residual.flatten(), self._ahead.flatten()))

    def advance(self, length: float) -> None:
        self._logits.add_(self._ahead, alpha=length)
        self._ahead = self._logits


class _Spot(NamedTuple):
    """A place, ``weights [K, D + 1]``, with the loss and its gradient there."""

    weights: Tensor
    loss: float
    gradient: Tensor


class BlockedSums(Sums):
    """Pictures are read again for each place that is looked at, a block at a time: memory is that
    of a block and of some places. How large a block is depends on D and K alone, and so do the last
    bits of the sums.

    The weights are rotated where the others rotate the features: the same products, of which only
    rounding can tell.
    """

    def __init__(self, features: Vectors, loss: Loss, start: Tensor) -> None:
        self._features, self._loss, self._device = features, loss, start.device
        self._block = block_rows(features.width, len(start))
        self.mean = torch.zeros(features.width, dtype=torch.float64, device=start.device)
        self.mean = sum((each.sum(0) for _, each in self._rows()), self.mean) / len(features)
        if not torch.isfinite(self.mean).all():
            raise ValueError("features that are not finite")
        scatter = self.mean.new_zeros(features.width, features.width)
        for _, rows in self._rows():
            scatter.addmm_(rows.T, rows)
        self.components = torch.linalg.eigh(scatter).eigenvectors
        biases = start.to(self.mean)[:, None]
        weights = torch.cat([biases.new_zeros(len(start), features.width), biases], dim=1)
        self._spot = self._aside = self._at(weights)
        self._direction = weights

    def here(self) -> float:
        return self._spot.loss

    def there(self, weights: Tensor) -> float:
        self._aside = self._at(weights)
        return self._aside.loss

    def go(self) -> None:
        self._spot = self._aside

    def gradient(self) -> Tensor:
        return self._spot.gradient.clone()

    def diagonal(self) -> Tensor:
        total = torch.zeros_like(self._spot.weights)
        for part, rows, residual, _ in self._parts(self._spot.weights):
            bends = self._loss.bends(residual, part)
            total[:, :-1].addmm_(bends, (rows @ self.components).square_())
            total[:, -1] += bends.sum(1)
        return total

    def aim(self, direction: Tensor) -> None:
        self._direction = direction

    def along(self, length: float) -> tuple[float, float]:
        self._aside = self._at(self._spot.weights + length * self._direction)
        slope = torch.vdot(self._aside.gradient.flatten(), self._direction.flatten())
        return self._aside.loss, float(slope)

    def advance(self, length: float) -> None:
        self._spot = self._aside

    def _at(self, weights: Tensor) -> _Spot:
        gradient, loss = weights.new_zeros(len(weights), self._features.width), 0.0
        biases = weights.new_zeros(len(weights))
        for _, rows, residual, here in self._parts(weights):
            gradient.addmm_(residual, rows)
            biases += residual.sum(1)
            loss += here
        return _Spot(weights, loss, torch.cat([gradient @ self.components, biases[:, None]], dim=1))

    def _parts(self, weights: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, float]]:
        """Of each block its places, centred rows ``[b, D]``, ``residual [K, b]`` and loss."""
        own, biases = weights[:, :-1] @ self.components.T, weights[:, -1:]
        for part, rows in self._rows():
            logits = torch.addmm(biases, own, rows.T)
            residual = torch.empty_like(logits)
            loss = self._loss.of(logits, residual, part)
            yield part, rows, residual, loss

    def _rows(self) -> Iterator[tuple[slice, Tensor]]:
        start = 0
        for block in self._features.blocks(self._block):
            rows = block.to(self._device).double().sub_(self.mean)
            yield slice(start, start + len(rows)), rows
            start += len(rows)
