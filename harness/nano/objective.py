"""What a ViT is trained for: what ``pretrain.py`` asks of every objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.nano.recipe import Recipe
from harness.nano.schedule import Schedule


@dataclass(frozen=True)
class Losses:
    """Of one step: what is made smaller, and the scalars that the log has of it, its own among
    them as ``loss``."""

    total: Tensor
    facts: Mapping[str, Tensor]


class Objective(Protocol):
    """A model with all that a step needs, but for its optimiser."""

    @property
    def model(self) -> nn.Module:
        """Its state dict is all that a checkpoint keeps."""
        ...

    @property
    def trained(self) -> nn.Module:
        """What the optimiser changes."""
        ...

    @property
    def scheduled(self) -> tuple[str, ...]:
        """What it follows of ``Schedule``, for the log."""
        ...

    def batches(self, steps: range) -> Iterator[Any]:
        """Of each of ``steps``, ahead of the device. Raises ``HarnessError``."""
        ...

    def losses(self, batch: Any, now: Schedule, autocast: torch.dtype | None) -> Losses:
        """The losses of a batch, with gradients."""
        ...

    def before_update(self, now: Schedule) -> None:
        """Called between the gradients and the optimiser's step."""
        ...

    def after_update(self, now: Schedule) -> None:
        """Called after the optimiser's step."""
        ...

    def told(self, means: Mapping[str, float]) -> str:
        """The means of the last steps' facts, in a few words."""
        ...

    def export(self, recipe: Recipe) -> Path:
        """Write the weights and the registry file that names them; give the latter."""
        ...
