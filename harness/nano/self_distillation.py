"""The objective of DINO, iBOT and DINOv2: crops and masks for ``distillation.py``'s model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import torch

from harness.data.dataset import Dataset
from harness.nano.distillation import Distillation
from harness.nano.export import export
from harness.nano.feeding import Batch, batches
from harness.nano.labels import read_labels
from harness.nano.network import normalised
from harness.nano.objective import Losses
from harness.nano.recipe import Recipe
from harness.nano.schedule import Schedule


class SelfDistillation:
    """A student, its teacher, and the pictures that they see."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        self._recipe, self._dataset, self._device = recipe, dataset, device
        labels = read_labels(dataset) if recipe.label_weight else None
        self.model = Distillation(recipe, labels).to(device)

    @property
    def trained(self) -> torch.nn.Module:
        return self.model.student

    @property
    def scheduled(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(Schedule))

    def batches(self, steps: range) -> Iterator[Batch]:
        return batches(self._recipe, self._dataset, steps)

    def losses(self, batch: Batch, now: Schedule, autocast: torch.dtype | None) -> Losses:
        """Entropies are in nats, of what the teacher says of class tokens (at temperature 0.1, not
        centered): ``entropy`` of one crop's answer, ``spread`` of the mean of all answers. Where
        ``spread`` falls to 0, or ``entropy`` comes up to it, all crops get one answer: collapse.
        """
        found = self.model(
            normalised(batch.crops, self._device),
            normalised(batch.local_crops, self._device),
            batch.masks.to(self._device),
            batch.pictures,
            now.teacher_temperature,
            autocast,
        )
        answers = (found.logits.detach() / 0.1).softmax(-1)
        facts = {
            "loss": found.total,
            "class": found.of_classes,
            "patch": found.of_patches,
            "label": found.of_labels,
            "koleo": found.koleo,
            "entropy": torch.special.entr(answers).sum(-1).mean(),
            "spread": torch.special.entr(answers.mean(0)).sum(),
        }
        return Losses(found.total, facts)

    def before_update(self, now: Schedule) -> None:
        if now.last_layer_frozen:
            self.model.cancel_last_layers()

    def after_update(self, now: Schedule) -> None:
        self.model.follow(now.momentum)

    def told(self, means: Mapping[str, float]) -> str:
        return f"class tokens {means['class']:.3f}, patches {means['patch']:.3f}"

    def export(self, recipe: Recipe) -> Path:
        return export(recipe, self.model.teacher.vit.state_dict())
