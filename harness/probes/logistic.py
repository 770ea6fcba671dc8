"""Logistic regression at every strength of a path, from strong to weak regularisation: of classes
that exclude each other (softmax), and here what one-vs-rest shares with it (`one_vs_rest.py`).

The objective is scikit-learn's ``LogisticRegression``: C times the sum of the log-losses plus half
the squared weights; biases are free. In the coordinates of the principal components, and divided by
the diagonal of its Hessian there, it is so much rounder that L-BFGS (Nocedal and Wright, "Numerical
Optimization", 2006, algorithm 7.4) from where the last optima lead needs a few steps where it needs
hundreds in the features' own. Nothing of a data set is in here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.features.vectors import Vectors, shape_of
from harness.probes.log_losses import Loss, block_rows, float64_device, sums_of

_MEMORY = 20  # steps that the approximate Hessian is made of
_SLOPE = 0.5  # of the first slope, what may be left where a line search ends
_DECREASE = 1e-4  # of the decrease that the first slope promises, what must be reached
_TRIALS = 40  # of a line search
_LOOKED_BACK = 3  # optima that tell where the next may be


class LogisticHead(NamedTuple):
    """The optimum at one ``c``: ``weights [D, K]`` and ``bias [K]`` float64 of the K ``classes``
    that there were pictures of, by rising label. ``objective`` is scikit-learn's. ``converged``
    unless ``steps`` ran out, or the precision of float64."""

    c: float
    weights: Tensor
    bias: Tensor
    classes: Tensor
    objective: float
    steps: int
    converged: bool

    def predict(self, features: Tensor | Vectors) -> Tensor:
        """Of features ``[n, D]`` the labels ``[n]`` on the CPU; of equal logits the lowest."""
        if isinstance(features, Vectors):
            blocks = features.blocks(block_rows(*self.weights.shape))
            return torch.cat([self.predict(block) for block in blocks])
        logits = features.to(self.weights) @ self.weights + self.bias
        return self.classes[logits.argmax(1).cpu()]


class Path:
    """Features ``[n, D]`` for K weight vectors, ready to be fitted at one C after another; those
    that are not in memory are read again at each step. All is float64, on ``device`` if that has
    float64. Raises ``ValueError`` for features that are not finite.
    """

    def __init__(
        self, features: Tensor | Vectors, loss: Loss, biases: Tensor, device: str = "cpu"
    ) -> None:
        """``biases [K]`` are those of the optimum where C is 0, and there are no weights."""
        self._sums = sums = sums_of(features, loss, biases, device)
        self._weights = sums.components.new_zeros(len(biases), sums.components.shape[1] + 1)
        self._weights[:, -1] = biases
        self._penalty = self._weights.new_ones(self._weights.shape[1])
        self._penalty[-1] = 0
        self._optima: deque[tuple[float, Tensor]] = deque(maxlen=_LOOKED_BACK)

    def _fit(self, c: float, tolerance: float, max_steps: int) -> tuple[float, int, bool]:
        """Go to the optimum at ``c`` from where the last calls lead: the objective there, the
        steps, and whether it was reached.

        Done when half the squared gradient, divided by the Hessian's diagonal or by what the last
        steps tell of it, is at most ``tolerance`` times the objective: two estimates of the share
        of it that is left to gain.
        """
        self._look_ahead(c)
        objective = self._objective(self._sums.here(), self._weights, c)
        gradient, diagonal = self._gradient(c), self._diagonal(c)
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)
        steps = 0
        while True:
            # The surer the head gets of its pictures, the less they bend the objective: what the
            # diagonal was some way back may be far too much here.
            enough = tolerance * objective
            if steps and (steps % _MEMORY == 0 or _left(gradient, diagonal) <= enough):
                diagonal = self._diagonal(c)
            direction = _direction(gradient, diagonal, pairs)
            slope = float(torch.vdot(gradient.flatten(), direction.flatten()))
            done = max(_left(gradient, diagonal), -slope / 2) <= enough
            if done or steps == max_steps:
                break
            self._sums.aim(direction)
            found = self._search(direction, c, objective, slope)
            if found is None:  # rounding hides what is left to gain
                break
            length, objective = found
            self._sums.advance(length)
            moved = direction * length
            self._weights = self._weights + moved
            last, gradient = gradient, self._gradient(c)
            change = gradient - last
            product = torch.vdot(moved.flatten(), change.flatten())
            if product > 0:
                pairs.append((moved, change, 1 / product))
            steps += 1
        if self._optima and self._optima[-1][0] == math.log(c):
            self._optima.pop()
        self._optima.append((math.log(c), self._weights))
        return objective, steps, done

    def _look_ahead(self, c: float) -> None:
        """Begin where the last optima lead, if that is lower than the last of them: weights run
        smoothly over log C. Of the lines and parabolas that a path leaves, the lowest is taken."""
        if len(self._optima) < 2:
            return
        lowest = self._objective(self._sums.here(), self._weights, c)
        for count in range(2, len(self._optima) + 1):
            last = list(self._optima)[-count:]
            shares = _lagrange([place for place, _ in last], math.log(c))
            weights = torch.zeros_like(self._weights)
            for share, (_, each) in zip(shares, last, strict=True):
                weights.add_(each, alpha=share)
            there = self._objective(self._sums.there(weights), weights, c)
            if there < lowest:
                lowest, self._weights = there, weights
                self._sums.go()

    def _objective(self, loss: float, weights: Tensor, c: float) -> float:
        return c * loss + float(self._penalised(weights, weights)) / 2

    def _penalised(self, one: Tensor, other: Tensor) -> Tensor:
        return (self._penalty * one * other).sum()

    def _gradient(self, c: float) -> Tensor:
        return self._sums.gradient().mul_(c).addcmul_(self._penalty, self._weights)

    def _diagonal(self, c: float) -> Tensor:
        """The diagonal of the Hessian, ``[K, D + 1]``."""
        diagonal = self._sums.diagonal().mul_(c).add_(self._penalty)
        # The biases' own may vanish where every picture is certain.
        return diagonal.clamp_min_(torch.finfo(diagonal.dtype).eps)

    def _search(
        self, direction: Tensor, c: float, objective: float, slope: float
    ) -> tuple[float, float] | None:
        """How far to go, and the objective there, where the sums were told last. The objective is
        convex: its slope rises, and the secant finds where it is all but 0, between two lengths
        that enclose the place.
        """
        weights = self._weights
        linear = float(self._penalised(weights, direction))
        quadratic = float(self._penalised(direction, direction))
        base = float(self._penalised(weights, weights)) / 2
        low, low_slope = 0.0, slope
        high, high_slope = float("inf"), float("inf")
        length = 1.0
        for _ in range(_TRIALS):
            loss, steepness = self._sums.along(length)
            here = c * loss + base + length * linear + length**2 * quadratic / 2
            steepness = c * steepness + linear + length * quadratic
            enough = here <= objective + _DECREASE * length * slope
            if enough and abs(steepness) <= -_SLOPE * slope:
                return length, here
            if steepness < 0 and enough:
                low, low_slope = length, steepness
            else:
                high, high_slope = length, steepness
            length = _between(low, low_slope, high, high_slope)
        return None

    def _coordinates(self) -> tuple[Tensor, Tensor]:
        """``weights [D, K]`` and ``bias [K]`` in the features' own coordinates."""
        weights = self._sums.components @ self._weights[:, :-1].T
        return weights, self._weights[:, -1] - self._sums.mean @ weights


class Softmax(Loss):
    """Of classes that exclude each other; ``own [n]`` are the pictures' places among them."""

    def __init__(self, own: Tensor, device: str) -> None:
        self._own = own.to(device)[None]

    def of(self, logits: Tensor, residual: Tensor, part: slice) -> float:
        own, most = self._own[:, part], logits.amax(0, keepdim=True)
        torch.sub(logits, most, out=residual)
        true = residual.gather(0, own).sum()
        residual.exp_()
        total = residual.sum(0, keepdim=True)
        residual.div_(total)
        residual.scatter_add_(0, own, torch.full_like(most, -1))
        return float(total.log().sum() - true)

    def bends(self, residual: Tensor, part: slice) -> Tensor:
        own = self._own[:, part]
        shares = residual.scatter_add(0, own, torch.ones_like(own, dtype=torch.double))
        return shares * (1 - shares)


class LogisticPath(Path):
    """Features ``[n, D]`` and labels ``[n]``, ready to be fitted at one C after another. Raises
    ``ValueError`` for labels of one class only and for features that are not finite."""

    def __init__(self, features: Tensor | Vectors, labels: Tensor, device: str = "cpu") -> None:
        shape = shape_of(features)
        if len(shape) != 2 or labels.shape != shape[:1]:
            raise ValueError(f"features [n, D], labels [n]: not {shape}, {labels.shape}")
        self.classes, own = torch.unique(labels.cpu(), return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError("two classes are needed")
        # Biases that give each class its share.
        biases = (torch.bincount(own).double() / len(own)).log()
        super().__init__(features, Softmax(own, float64_device(device)), biases, device)

    def fit(self, c: float, tolerance: float = 1e-8, max_steps: int = 1000) -> LogisticHead:
        """The optimum at ``c``, looked for from that of the last call: until the share of the
        objective that is left to gain is about ``tolerance``."""
        # Of two classes scikit-learn has one vector of weights: the difference of two here. Halves
        # of it have half its square, so its optimum at C is that of the softmax at C / 2.
        share = 0.5 if len(self.classes) == 2 else 1.0
        objective, steps, done = self._fit(c * share, tolerance, max_steps)
        return LogisticHead(c, *self._coordinates(), self.classes, objective / share, steps, done)


def solver_bytes(width: int, classes: int) -> int:
    """What L-BFGS takes, however many pictures there are: the steps that it remembers, the last
    optima, and the weights, gradients and diagonal that it is at work on."""
    return (2 * _MEMORY + _LOOKED_BACK + 8) * 8 * classes * (width + 1)


def logistic_path(
    features: Tensor | Vectors,
    labels: Tensor,
    strengths: Sequence[float],
    device: str = "cpu",
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> Iterator[LogisticHead]:
    """Heads at ``strengths`` of rising C, each begun where the last ones lead."""
    if list(strengths) != sorted(strengths):
        raise ValueError("strengths must rise")
    path = LogisticPath(features, labels, device)
    for c in strengths:
        yield path.fit(c, tolerance, max_steps)


def _lagrange(places: Sequence[float], at: float) -> list[float]:
    """What each of the values at ``places`` counts in the polynomial through them, ``at``."""
    return [
        math.prod((at - other) / (place - other) for other in places if other != place)
        for place in places
    ]


def _left(gradient: Tensor, diagonal: Tensor) -> float:
    """What the objective would lose if the Hessian were its diagonal."""
    return float((gradient.square() / diagonal).sum()) / 2


def _direction(
    gradient: Tensor, diagonal: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Downhill: minus the approximate inverse Hessian times the gradient (two-loop recursion)."""
    direction = -gradient
    factors = []
    for moved, change, inverse in reversed(pairs):
        factor = inverse * torch.vdot(moved.flatten(), direction.flatten())
        direction -= factor * change
        factors.append(factor)
    direction /= diagonal
    for (moved, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - inverse * torch.vdot(change.flatten(), direction.flatten())) * moved
    return direction


def _between(low: float, low_slope: float, high: float, high_slope: float) -> float:
    """A length to try next: by the secant, but not close to an end, or twice ``low``'s."""
    if high == float("inf"):
        return max(2 * low, 1.0)
    share = low_slope / (low_slope - high_slope) if high_slope > 0 else 0.5
    return low + min(max(share, 0.1), 0.9) * (high - low)
