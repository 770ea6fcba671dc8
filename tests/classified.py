"""What the tests of kNN, linear and logistic share: features with labels, fed to an evaluation
without a backbone, and small folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.classification import CollectedEvaluation
from harness.data.dataset import Dataset, Role, Sample, Target
from harness.data.views import Geometry
from harness.features.select import Selected, Selector
from harness.task import Batch, Outcome

GEOMETRY = Geometry((224, 224), (224, 224), (0, 0, 224, 224), (0, 0, 0, 0))
ROLES: tuple[Role, ...] = ("train", "select", "test")
Features = dict[Role, torch.Tensor]
Labels = dict[Role, list[int]]


class Labelled(Dataset):
    """Ids and labels only: what an evaluation needs to know of a data set."""

    def __init__(self, split: str, labels: list[int | None], classes: int) -> None:
        self.name, self.split = "labelled", split
        self.classes = tuple(f"class {label}" for label in range(classes))
        self.samples = [
            Sample(f"{split}/{place}", (224, 224), Target(label=label))
            for place, label in enumerate(labels)
        ]


def labelled(labels: Labels, classes: int) -> dict[Role, Dataset]:
    return {role: Labelled(role, list(of), classes) for role, of in labels.items()}


def clusters(
    classes: int, noise: float, shape: tuple[int, ...] = (8,), seed: int = 0, **counts: int
) -> tuple[Features, Labels]:
    """Features of a ``shape`` in overlapping clusters, one a class; ``counts`` are by role."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, *shape, generator=generator)
    features: Features = {}
    labels: Labels = {}
    for role in ROLES:
        if count := counts.get(role):
            labels[role] = [place % classes for place in range(count)]
            drawn = torch.randn(count, *shape, generator=generator)
            features[role] = centres[labels[role]] + noise * drawn
    return features, labels


def batch(role: Role, rows: list[int], selected: dict[Selector, Selected]) -> Batch:
    return batch_of([f"{role}/{row}" for row in rows], selected)


def batch_of(ids: Sequence[str], selected: dict[Selector, Selected]) -> Batch:
    """One crop each of the pictures called so, and what the feature store would bring of them."""
    return Batch(
        tokens={},
        attention={},
        ids=tuple(ids),
        targets=tuple(Target() for _ in ids),
        sample=tuple(range(len(ids))),
        geometry=(GEOMETRY,) * len(ids),
        selected=selected,
    )


def feed(
    evaluation: CollectedEvaluation[Any],
    role: Role,
    features: torch.Tensor,
    order: list[int],
    size: int = 5,
) -> None:
    """The pictures of ``order`` in batches of ``size``; every selector is given ``features``."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        found = Selected(features[rows], torch.ones(len(rows), dtype=torch.bool))
        evaluation.update(role, batch(role, rows, dict.fromkeys(evaluation._selectors, found)))


def finished(evaluation: CollectedEvaluation[Any], features: Features) -> Outcome:
    """The outcome of all ``features``, in order."""
    for role, values in features.items():
        feed(evaluation, role, values, list(range(len(values))))
    return evaluation.finish()


def table(outcome: Outcome) -> dict[str, list[Any]]:
    return {name: np.asarray(column).tolist() for name, column in outcome.columns.items()}


def expected_scores(reference: Path, registers: int) -> dict[str, Any]:
    """What the official code scored on the recorded features."""
    path = reference / f"classification_e2e_reg{registers}_imagenette.json"
    scores: dict[str, Any] = json.loads(path.read_text())
    return scores


def recorded(reference: Path, registers: int) -> tuple[Features, Labels]:
    """Features of imagenette by a tiny DINOv2, ``[1000, 48]`` and ``[300, 48]``."""
    with np.load(reference / f"imagenette_features_reg{registers}.npz") as stored:
        features: Features = {
            "train": torch.from_numpy(stored["train"]),
            "test": torch.from_numpy(stored["val"]),
        }
        labels: Labels = {
            "train": stored["train_labels"].tolist(),
            "test": stored["val_labels"].tolist(),
        }
    return features, labels


def colours(
    root: Path, train: int, val: int, size: tuple[int, int] = (40, 56), apart: int = 100
) -> Path:
    """A data-set file with ``colours``: noise in two classes, dark and light, of each so many
    pictures of ``size``, height and width. They are so many levels ``apart``: 0 is not at all."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(("dark", "light")):
            place = root / "colours" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(apart * label, 156 + apart * label, (*size, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    path = root / "colours.yaml"
    path.write_text(f"colours: {{format: folder, root: {root / 'colours'}}}\n")
    return path


def imagenette(root: Path, data: Path) -> Path:
    """A data-set file in ``root`` with the real pictures of ``data``."""
    path = root / "real.yaml"
    path.write_text(f"imagenette: {{format: folder, root: {data / 'imagenette'}}}\n")
    return path
