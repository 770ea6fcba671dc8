"""One logistic regression a class against all others, for pictures that may show several classes.

The objectives of the classes have nothing in common but the features. Their sum is minimised all
the same: one rotation to the principal components serves all, and every product with the features
is of all classes at once. Nothing of a data set is in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.probes.logistic import Path


class OneVsRestHead(NamedTuple):
    """The optima at one ``c``: ``weights [D, K]`` and ``bias [K]`` float64, a column a class.
    ``objective`` is the sum of those that scikit-learn's ``LogisticRegression`` has, class by
    class. ``converged`` unless ``steps`` ran out, or the precision of float64."""

    c: float
    weights: Tensor
    bias: Tensor
    objective: float
    steps: int
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """Of features ``[n, D]`` the logits ``[n, K]``, float32 on the CPU."""
        return (features.to(self.weights) @ self.weights + self.bias).float().cpu()


class OneVsRestPath(Path):
    """Features ``[n, D]`` and what they show, ``present [n, K]``: 1, 0, or -1 where that is unclear
    and the picture is not in the fit of that class. Raises ``ValueError`` for a class that is not
    both present and absent, and for features that are not finite."""

    def __init__(self, features: Tensor, present: Tensor, device: str = "cpu") -> None:
        if features.ndim != 2 or present.ndim != 2 or len(present) != len(features):
            raise ValueError(
                f"features [n, D], present [n, K]: not {features.shape}, {present.shape}"
            )
        shown, absent = (present == 1).sum(0).double(), (present == 0).sum(0).double()
        if not (shown * absent).all():
            raise ValueError("a class that is not both present and absent")
        super().__init__(features, (shown / absent).log(), device)
        # 1 where the class is present, -1 where it is not, 0 where that is unclear.
        self._signs = (2 * present.clamp_min(0) - 1).mul(present >= 0).T.to(self._rows).contiguous()

    def fit(self, c: float, tolerance: float = 1e-8, max_steps: int = 1000) -> OneVsRestHead:
        """The optima at ``c``, looked for from those of the last call: until the share of the
        summed objective that is left to gain is about ``tolerance``."""
        objective, steps, done = self._fit(c, tolerance, max_steps)
        return OneVsRestHead(c, *self._coordinates(), objective, steps, done)

    def _loss(self, logits: Tensor, residual: Tensor) -> float:
        margins = logits * self._signs
        torch.sigmoid(-margins, out=residual)
        residual.mul_(self._signs).neg_()
        return -float(torch.vdot(logsigmoid(margins).flatten(), self._signs.abs().flatten()))

    def _bends(self, residual: Tensor, part: slice) -> Tensor:
        shares = residual[:, part].abs()
        return shares * (1 - shares)


def one_vs_rest_path(
    features: Tensor,
    present: Tensor,
    strengths: Sequence[float],
    device: str = "cpu",
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> Iterator[OneVsRestHead]:
    """Heads at ``strengths`` of rising C, each begun where the last ended."""
    if list(strengths) != sorted(strengths):
        raise ValueError("strengths must rise")
    path = OneVsRestPath(features, present, device)
    for c in strengths:
        yield path.fit(c, tolerance, max_steps)
