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
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MEMORY = 20  # steps that the approximate Hessian is made of
_SLOPE = 0.5  # of the first slope, what may be left where a line search ends
_DECREASE = 1e-4  # of the decrease that the first slope promises, what must be reached
_TRIALS = 40  # of a line search
_LOOKED_BACK = 3  # optima that tell where the next may be
_BLOCK = 4_096  # rows that are squared at a time


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

    def predict(self, features: Tensor) -> Tensor:
        """Of features ``[n, D]`` the labels ``[n]`` on the CPU; of equal logits the lowest."""
        logits = features.to(self.weights) @ self.weights + self.bias
        return self.classes[logits.argmax(1).cpu()]


class Path(ABC):
    """Features ``[n, D]`` for K weight vectors, ready to be fitted at one C after another.

    Centring moves the biases alone, and a rotation leaves the penalty as it is: the optimum is that
    of the features as they are. With D > n it lies in their row space, where it is looked for. All
    is float64, on ``device`` if that has float64. Raises ``ValueError`` for features that are not
    finite.
    """

    def __init__(self, features: Tensor, biases: Tensor, device: str = "cpu") -> None:
        """``biases [K]`` are those of the optimum where C is 0, and there are no weights."""
        if not torch.isfinite(features).all():
            raise ValueError("features that are not finite")
        place = device if torch.device(device).type in {"cpu", "cuda"} else "cpu"
        rows = features.to(place, torch.float64)
        self._mean = rows.mean(0)
        rows = rows - self._mean
        reduced: Tensor | None = None
        if rows.shape[1] > rows.shape[0]:
            reduced, upper = torch.linalg.qr(rows.T)
            rows = upper.T
        components = torch.linalg.eigh(rows.T @ rows).eigenvectors
        self._components = components if reduced is None else reduced @ components
        # A last column of ones, whose weight is the bias.
        self._rows = torch.cat([rows @ components, rows.new_ones(len(rows), 1)], dim=1)
        self._penalty = self._rows.new_ones(self._rows.shape[1])
        self._penalty[-1] = 0
        # What follows has classes first, [K, D + 1] and [K, n]: so products with the rows are fast.
        self._weights = self._rows.new_zeros(len(biases), self._rows.shape[1])
        self._weights[:, -1] = biases.to(place)
        self._logits = self._weights[:, -1:].repeat(1, len(rows))
        self._optima: deque[tuple[float, Tensor]] = deque(maxlen=_LOOKED_BACK)

    @abstractmethod
    def _loss(self, logits: Tensor, residual: Tensor) -> float:
        """The sum of the log-losses at ``logits [K, n]``; into ``residual`` its gradient there."""

    @abstractmethod
    def _bends(self, residual: Tensor, part: slice) -> Tensor:
        """Of the pictures of ``part`` the second derivatives of the log-losses by each logit,
        ``[K, part]``, where the gradient is ``residual``."""

    def _fit(self, c: float, tolerance: float, max_steps: int) -> tuple[float, int, bool]:
        """Go to the optimum at ``c`` from where the last calls lead: the objective there, the
        steps, and whether it was reached.

        Done when half the squared gradient, divided by the Hessian's diagonal or by what the last
        steps tell of it, is at most ``tolerance`` times the objective: two estimates of the share
        of it that is left to gain.
        """
        residual = torch.empty_like(self._logits)
        self._look_ahead(c, residual)
        objective = self._objective(self._weights, self._logits, c, residual)
        gradient = self._gradient(residual, c)
        diagonal = self._diagonal(residual, c)
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)
        steps = 0
        while True:
            # The surer the head gets of its pictures, the less they bend the objective: what the
            # diagonal was some way back may be far too much here.
            enough = tolerance * objective
            if steps and (steps % _MEMORY == 0 or _left(gradient, diagonal) <= enough):
                diagonal = self._diagonal(residual, c)
            direction = _direction(gradient, diagonal, pairs)
            slope = float(torch.vdot(gradient.flatten(), direction.flatten()))
            done = max(_left(gradient, diagonal), -slope / 2) <= enough
            if done or steps == max_steps:
                break
            ahead = direction @ self._rows.T
            found = self._search(direction, ahead, residual, c, objective, slope)
            if found is None:  # rounding hides what is left to gain
                break
            length, objective = found
            self._logits.add_(ahead, alpha=length)
            moved = direction.mul_(length)
            self._weights = self._weights + moved
            last, gradient = gradient, self._gradient(residual, c)
            change = gradient - last
            product = torch.vdot(moved.flatten(), change.flatten())
            if product > 0:
                pairs.append((moved, change, 1 / product))
            steps += 1
        if self._optima and self._optima[-1][0] == math.log(c):
            self._optima.pop()
        self._optima.append((math.log(c), self._weights))
        return objective, steps, done

    def _look_ahead(self, c: float, residual: Tensor) -> None:
        """Begin where the last optima lead, if that is lower than the last of them: weights run
        smoothly over log C. Of the lines and parabolas that a path leaves, the lowest is taken."""
        if len(self._optima) < 2:
            return
        lowest = self._objective(self._weights, self._logits, c, residual)
        for count in range(2, len(self._optima) + 1):
            last = list(self._optima)[-count:]
            shares = _lagrange([place for place, _ in last], math.log(c))
            weights = torch.zeros_like(self._weights)
            for share, (_, each) in zip(shares, last, strict=True):
                weights.add_(each, alpha=share)
            logits = weights @ self._rows.T
            there = self._objective(weights, logits, c, residual)
            if there < lowest:
                lowest, self._weights, self._logits = there, weights, logits

    def _objective(self, weights: Tensor, logits: Tensor, c: float, residual: Tensor) -> float:
        return c * self._loss(logits, residual) + float(self._penalised(weights, weights)) / 2

    def _penalised(self, one: Tensor, other: Tensor) -> Tensor:
        return (self._penalty * one * other).sum()

    def _gradient(self, residual: Tensor, c: float) -> Tensor:
        return (residual @ self._rows).mul_(c).addcmul_(self._penalty, self._weights)

    def _diagonal(self, residual: Tensor, c: float) -> Tensor:
        """The diagonal of the Hessian, ``[K, D + 1]``."""
        diagonal = torch.zeros_like(self._weights)
        places = range(0, len(self._rows), _BLOCK)
        for part in (slice(place, place + _BLOCK) for place in places):
            diagonal += self._bends(residual, part) @ self._rows[part].square()
        # The biases' own may vanish where every picture is certain.
        return diagonal.mul_(c).add_(self._penalty).clamp_min_(torch.finfo(diagonal.dtype).eps)

    def _search(
        self,
        direction: Tensor,
        ahead: Tensor,
        residual: Tensor,
        c: float,
        objective: float,
        slope: float,
    ) -> tuple[float, float] | None:
        """How far to go, and the objective there; ``residual`` becomes that of the place.

        Logits change linearly along a direction (``ahead``, theirs), so that a trial needs no
        product with the features. The objective is convex: its slope rises, and the secant finds
        where it is all but 0, between two lengths that enclose the place.
        """
        weights = self._weights
        linear = float(self._penalised(weights, direction))
        quadratic = float(self._penalised(direction, direction))
        base = float(self._penalised(weights, weights)) / 2
        low, low_slope = 0.0, slope
        high, high_slope = float("inf"), float("inf")
        length = 1.0
        for _ in range(_TRIALS):
            loss = self._loss(self._logits.add(ahead, alpha=length), residual)
            here = c * loss + base + length * linear + length**2 * quadratic / 2
            steepness = c * float(torch.vdot(residual.flatten(), ahead.flatten()))
            steepness += linear + length * quadratic
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
        weights = self._components @ self._weights[:, :-1].T
        return weights, self._weights[:, -1] - self._mean @ weights


class LogisticPath(Path):
    """Features ``[n, D]`` and labels ``[n]``, ready to be fitted at one C after another. Raises
    ``ValueError`` for labels of one class only and for features that are not finite."""

    def __init__(self, features: Tensor, labels: Tensor, device: str = "cpu") -> None:
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(f"features [n, D], labels [n]: not {features.shape}, {labels.shape}")
        self.classes, own = torch.unique(labels.cpu(), return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError("two classes are needed")
        # Biases that give each class its share.
        super().__init__(features, (torch.bincount(own).double() / len(own)).log(), device)
        self._own = own.to(self._rows.device)[None]

    def fit(self, c: float, tolerance: float = 1e-8, max_steps: int = 1000) -> LogisticHead:
        """The optimum at ``c``, looked for from that of the last call: until the share of the
        objective that is left to gain is about ``tolerance``."""
        # Of two classes scikit-learn has one vector of weights: the difference of two here. Halves
        # of it have half its square, so its optimum at C is that of the softmax at C / 2.
        share = 0.5 if len(self.classes) == 2 else 1.0
        objective, steps, done = self._fit(c * share, tolerance, max_steps)
        return LogisticHead(c, *self._coordinates(), self.classes, objective / share, steps, done)

    def _loss(self, logits: Tensor, residual: Tensor) -> float:
        most = logits.amax(0, keepdim=True)
        torch.sub(logits, most, out=residual)
        true = residual.gather(0, self._own).sum()
        residual.exp_()
        total = residual.sum(0, keepdim=True)
        residual.div_(total)
        residual.scatter_add_(0, self._own, torch.full_like(most, -1))
        return float(total.log().sum() - true)

    def _bends(self, residual: Tensor, part: slice) -> Tensor:
        own = self._own[:, part]
        shares = residual[:, part].scatter_add(0, own, torch.ones_like(own, dtype=torch.double))
        return shares * (1 - shares)


def logistic_path(
    features: Tensor,
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
