"""What a data set says of its pictures, for a class token that is to learn it too.

A ViT of a few thousand steps hardly starts to learn from self-distillation alone; a class token
that also has to name the picture's class and the kinds of objects in it does. It is an objective of
the sort under which the registers paper saw artifacts in DeiT-III and OpenCLIP (arXiv:2309.16588,
section 3): global, and read from the class token alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.data.dataset import Dataset
from harness.errors import HarnessError

OBJECTS = 4.0
"""What the loss of the kinds of objects is multiplied by: their mean starts at about 0.4 where that
of a dozen classes starts at ln 12 = 2.5."""


@dataclass(frozen=True)
class Labels:
    """Of N pictures: ``classes [N]`` (int64, -1 where there is none), and ``objects [N, K]``, 1
    where an object of the kind is annotated that is not difficult."""

    classes: Tensor
    objects: Tensor
    count: int
    """Classes that there are."""

    @property
    def answers(self) -> int:
        """Numbers that the class token has to give: one a class, one a kind of object."""
        return self.count + self.objects.shape[1]

    def loss(self, answers: Tensor, pictures: Tensor) -> Tensor:
        """Cross-entropy of the class and ``OBJECTS`` times the mean binary cross-entropy of the
        kinds; ``answers [V·B, answers]`` of V views of ``pictures [B]``, view by view."""
        views = len(answers) // len(pictures)
        classes = self.classes[pictures].repeat(views).to(answers.device)
        objects = self.objects[pictures].repeat(views, 1).to(answers.device)
        total = answers.sum() * 0
        if (classes >= 0).any():
            total = total + F.cross_entropy(answers[:, : self.count], classes, ignore_index=-1)
        if objects.shape[1]:
            kinds = answers[:, self.count :]
            total = total + OBJECTS * F.binary_cross_entropy_with_logits(kinds, objects)
        return total


def read_labels(dataset: Dataset) -> Labels:
    """The labels of all pictures. Raises ``HarnessError`` where there are neither classes nor
    boxes."""
    classes, found = [], []
    for sample in dataset.samples:
        target = sample.target
        classes.append(-1 if target.label is None else target.label)
        boxes = target.boxes
        clear = () if boxes is None else zip(boxes.classes, boxes.difficult, strict=True)
        found.append({kind for kind, difficult in clear if not difficult})
    kinds = sorted(set().union(*found))
    if max(classes, default=-1) < 0 and not kinds:
        raise HarnessError(f"--labels: {dataset.name} has neither classes nor boxes to learn")
    objects = np.zeros((len(found), len(kinds)), dtype=np.float32)
    for row, names in enumerate(found):
        objects[row, [kinds.index(name) for name in sorted(names)]] = 1
    return Labels(
        torch.tensor(classes, dtype=torch.int64),
        torch.from_numpy(objects),
        len(dataset.classes) if max(classes, default=-1) >= 0 else 0,
    )
