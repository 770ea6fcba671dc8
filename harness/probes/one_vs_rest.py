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

from harness.features.vectors import Vectors, shape_of
from harness.probes.log_losses import Loss, block_rows, float64_device
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

    def scores(self, features: Tensor | Vectors) -> Tensor:
        """Of features ``[n, D]`` the logits ``[n, K]``, float32 on the CPU."""
        if isinstance(features, Vectors):
            blocks = features.blocks(block_rows(*self.weights.shape))
            return torch.cat([self.scores(block) for block in blocks])
        return (features.to(self.weights) @ self.weights + self.bias).float().cpu()


class OneVsRest(Loss):
    """Of each class against all others; ``present [n, K]`` as ``OneVsRestPath`` has it."""

    def __init__(self, present: Tensor, device: str) -> None:
        # 1 where the class is present, -1 where it is not, 0 where that is unclear.
        signs = (2 * present.clamp_min(0) - 1).mul(present >= 0)
        self._signs = signs.T.to(device, torch.int8).contiguous()

    def of(self, logits: Tensor, residual: Tensor, part: slice) -> float:
        signs = self._signs[:, part].to(logits)
        margins = logits * signs
        torch.sigmoid(-margins, out=residual)
        residual.mul_(signs).neg_()
        return -float(torch.vdot(logsigmoid(margins).flatten(), signs.abs().flatten()))

    def bends(self, residual: Tensor, part: slice) -> Tensor:
        shares = residual.abs()
        return shares * (1 - shares)


class OneVsRestPath(Path):
    """Features ``[n, D]`` and what they show, ``present [n, K]``: 1, 0, or -1 where that is unclear
    and the picture is not in the fit of that class. Raises ``ValueError`` for a class that is not
    both present and absent, and for features that are not finite."""

    def __init__(self, features: Tensor | Vectors, present: Tensor, device: str = "cpu") -> None:
        shape = shape_of(features)
        if len(shape) != 2 or present.ndim != 2 or len(present) != shape[0]:
            raise ValueError(f"features [n, D], present [n, K]: not {shape}, {present.shape}")
        shown, absent = (present == 1).sum(0).double(), (present == 0).sum(0).double()
        if not (shown * absent).all():
            raise ValueError("a class that is not both present and absent")
        loss = OneVsRest(present, float64_device(device))
        super().__init__(features, loss, (shown / absent).log(), device)

    def fit(self, c: float, tolerance: float = 1e-8, max_steps: int = 1000) -> OneVsRestHead:
        """The optima at ``c``, looked for from those of the last call: until the share of the
        summed objective that is left to gain is about ``tolerance``."""
        objective, steps, done = self._fit(c, tolerance, max_steps)
        return OneVsRestHead(c, *self._coordinates(), objective, steps, done)


def one_vs_rest_path(
    features: Tensor | Vectors,
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
