"""How the learning rate and the momentum of a dense head change from step to step.

The published protocols were run by three programs that differ in details which move numbers. Each
is here as it was run: mmcv's updater hooks (DINOv2) and DINOv3's ``WarmupOneCycleLR``
(dinov3/eval/segmentation/schedulers.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_LOW, _HIGH, _RISING = 0.85, 0.95, 0.3  # of the one-cycle momentum, in both programs


@dataclass(frozen=True)
class Schedule:
    """Of ``steps`` steps, counted from 0.

    ``poly``: a learning rate falls as ``(1 - step / steps) ** power``; ``cosine``: along half a
    cosine; both to ``floor``, a share of it, which is reached only after the last step. In the
    first ``warm_up`` steps that is multiplied by a factor that rises linearly from
    ``warm_up_ratio`` to 1 (mmcv's ``warmup="linear"``).

    ``one cycle``: DINOv3's. The cosine is one step ahead, its warm-up multiplies a straight line,
    and the program takes its first step twice at the same rate ("inheritance from old mmcv code").

    ``momentum``: AdamW's first beta is ``beta1`` throughout (``constant``); or falls from 0.95 to
    0.85 in the first 30 % of steps and rises again, along cosines (``one cycle``, mmcv's
    ``OneCycleMomentumUpdaterHook``, which DINOv2's depth used); or is 0 in the warm-up and rises
    from 0.85 to 0.95 after it (``after warm-up``, what DINOv3's program does).
    """

    steps: int
    kind: Literal["poly", "cosine", "one cycle"] = "poly"
    power: float = 1.0
    floor: float = 0.0
    warm_up: int = 0
    warm_up_ratio: float = 1e-6
    momentum: Literal["constant", "one cycle", "after warm-up"] = "constant"
    beta1: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < self.steps:
            raise ValueError(f"a warm-up of {self.warm_up} of {self.steps} steps")
        if self.kind == "one cycle" and self.warm_up and not self.warm_up_ratio:
            raise ValueError("one cycle: a warm-up begins at more than 0")

    def share(self, step: int) -> float:
        """What a learning rate is multiplied by at ``step``."""
        if self.kind == "one cycle":
            step = max(step - 1, 0)
            if step < self.warm_up:
                return self._warmed(step) * (1 - step / self.steps)
            return _cosine(1.0, self.floor, (step + 1) / self.steps)
        if self.kind == "poly":
            left = math.pow(1 - step / self.steps, self.power)
            regular = self.floor + (1 - self.floor) * left
        else:
            regular = _cosine(1.0, self.floor, step / self.steps)
        return regular * self._warmed(step)

    def first_beta(self, step: int) -> float:
        """AdamW's first beta at ``step``."""
        if self.momentum == "constant":
            return self.beta1
        if self.momentum == "after warm-up":
            step = max(step - 1, 0)
            if step < self.warm_up:
                return 0.0
            return _cosine(_LOW, _HIGH, (step - self.warm_up) / (self.steps - self.warm_up))
        turn, last = _RISING * self.steps - 1, self.steps - 1
        if 0 < turn >= step:
            return _cosine(_HIGH, _LOW, step / turn)
        turn = max(turn, 0.0)
        return _cosine(_LOW, _HIGH, (step - turn) / max(last - turn, 1.0))

    def _warmed(self, step: int) -> float:
        if step >= self.warm_up:
            return 1.0
        return 1 - (1 - step / self.warm_up) * (1 - self.warm_up_ratio)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
