from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.dataset import Boxes, Dataset, Sample, Target
from harness.data.generated import GeneratedDataset
from harness.errors import HarnessError
from harness.nano.labels import OBJECTS, read_labels
from harness.nano.layouts import CLASSES
from harness.nano.scenes import ScenesDataset


class Listed(Dataset):
    def __init__(self, *targets: Target) -> None:
        self.name, self.split, self.classes = "listed", "train", ("a", "b", "c")
        self.samples = [Sample(str(n), (8, 8), target) for n, target in enumerate(targets)]


def boxes(*kinds: str, difficult: bool = False) -> Boxes:
    none = np.zeros(len(kinds), dtype=np.bool_)
    corners = np.array([[0.0, 0.0, 1.0, 1.0]] * len(kinds))
    return Boxes(corners, kinds, none, none | difficult, none)


def test_classes_and_kinds_are_what_the_data_set_says() -> None:
    labels = read_labels(
        Listed(
            Target(boxes("tree", "ball"), 2),
            Target(boxes("ball", difficult=True), 0),
            Target(None, None),
        )
    )
    assert labels.classes.tolist() == [2, 0, -1]
    assert labels.objects.tolist() == [[1, 1], [0, 0], [0, 0]]  # ball, tree
    assert labels.answers == 5


def test_the_loss_is_cross_entropy_and_four_times_the_binary_one() -> None:
    labels = read_labels(Listed(Target(boxes("tree"), 1), Target(boxes("ball"), 0)))
    answers = torch.zeros(4, 5)  # two views of two pictures: all alike likely
    loss = labels.loss(answers, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(3) + OBJECTS * math.log(2))
    right = torch.full((4, 5), -50.0)
    for row, (label, kind) in enumerate([(0, 3), (1, 4), (0, 3), (1, 4)]):
        right[row, [label, kind]] = 50.0
    assert labels.loss(right, torch.tensor([1, 0])).item() < 1e-6
    assert labels.loss(right, torch.tensor([0, 1])).item() > 50


def test_a_data_set_may_have_one_of_the_two() -> None:
    assert read_labels(Listed(Target(label=1), Target(label=0))).answers == 3
    only_boxes = read_labels(GeneratedDataset("generated", 6))
    assert only_boxes.count == 0 and only_boxes.answers == 3
    assert torch.isfinite(only_boxes.loss(torch.randn(6, 3), torch.arange(6)))


def test_a_data_set_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="--labels: listed has neither classes nor boxes"):
        read_labels(Listed(Target(), Target()))


def test_scenes_are_told_by_class_and_kinds() -> None:
    labels = read_labels(ScenesDataset("scenes", "train", 40, (64, 64)))
    assert labels.count == len(CLASSES)
    assert (labels.objects.sum(1) > 0).float().mean() > 0.9
