"""What a discovery of objects is given in tests: batches, boxes, ids, real pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import Boxes, Sample, Target
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry
from harness.task import Batch, Evaluation

REAL = """
raccoon: {{format: voc, root: {0}/raccoon/VOCdevkit/VOC2007, split: trainval}}
coco256:
  {{format: coco, root: {0}/coco256, images: val2017,
    annotations: annotations/instances_val2017.json}}
"""


def batch(
    patches: torch.Tensor,
    registers: torch.Tensor,
    target: Target,
    identity: str = "a",
    reads: frozenset[Read] = frozenset({Read(3, "key")}),
) -> Batch:
    rows, columns = patches.shape[1:3]
    size = columns * 14, rows * 14
    tokens = Tokens(patches[:, 0, 0], registers, patches)
    return Batch(
        tokens=dict.fromkeys(reads, tokens),
        attention={},
        ids=(identity,),
        targets=(target,),
        sample=(0,),
        geometry=(Geometry(size, size, (0, 0, *size), (0, 0, 0, 0)),),
    )


def boxes(*xyxy: tuple[float, ...], crowd: bool = False, difficult: bool = False) -> Target:
    count = len(xyxy)
    return Target(
        Boxes(
            np.array(xyxy, float).reshape(-1, 4),
            ("thing",) * count,
            np.full(count, crowd),
            np.full(count, difficult),
            np.full(count, False),
        )
    )


def halves(start: Callable[..., Evaluation]) -> list[dict[str, list[Any]]]:
    """The columns that the evaluations which ``start`` gives for some ids come to: of six pictures
    at once, of two halves merged, and of one taken up in the middle."""
    generator = torch.Generator().manual_seed(4)
    ids = [f"p{i}" for i in range(6)]
    batches = [
        batch(
            torch.randn(1, 5, 5, 8, generator=generator),
            torch.zeros(1, 4, 8),
            boxes((0, 0, 40, 40)),
            identity,
        )
        for identity in ids
    ]
    whole, left, right, resumed = (start(*ids) for _ in range(4))
    for one in batches:
        whole.update("test", one)
    for one in batches[:3]:
        left.update("test", one)
    resumed.load(left.state())
    for one in batches[3:]:
        right.update("test", one)
        resumed.update("test", one)
    left.merge(right)
    return [
        {name: np.asarray(column).tolist() for name, column in each.finish().columns.items()}
        for each in (whole, left, resumed)
    ]


class Named(GeneratedDataset):
    """Ids only: what an evaluation needs to know of a data set."""

    def __init__(self, *ids: str) -> None:
        super().__init__("named", 1)
        self.samples = [Sample(identity, (70, 70), boxes((0, 0, 70, 70))) for identity in ids]
