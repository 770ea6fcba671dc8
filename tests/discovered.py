"""What a discovery of objects is given in tests: batches, boxes, ids, real pictures."""

from __future__ import annotations

import numpy as np
import torch

from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import Boxes, Sample, Target
from harness.data.generated import GeneratedDataset
from harness.data.views import Geometry
from harness.task import Batch

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


class Named(GeneratedDataset):
    """Ids only: what an evaluation needs to know of a data set."""

    def __init__(self, *ids: str) -> None:
        super().__init__("named", 1)
        self.samples = [Sample(identity, (70, 70), boxes((0, 0, 70, 70))) for identity in ids]
