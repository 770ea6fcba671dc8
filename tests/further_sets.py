"""Small data sets of which some are further test sets of another, and runs on them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness import evaluate, records
from harness.records import Record, read_columns

CLASSES = tuple("abcdefg")
SHORT: dict[str, dict[str, object]] = {
    "linear": {"min_steps": 12, "learning_rates": [0.01, 0.1], "n_last_blocks": [1, 2]},
    "dinov2-linear": {"steps": 8, "learning_rates": [0.01, 0.1], "n_last_blocks": [1, 2]},
}


def paint(folder: Path, classes: Sequence[str], count: int, seed: int) -> None:
    """Noise so strong that its brightness tells the class only sometimes."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            level = 40 + 22 * CLASSES.index(name) if name in CLASSES else 128
            pixels = generator.normal(level + generator.normal(0, 25), 40, (32, 32, 3))
            file = folder / name / f"{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@dataclass
class World:
    """``base`` with train and val; ``same``, its val under another name; ``more``, ``some`` (three
    of its classes) and ``strange`` (one that it has not), test sets alone; ``own``, with a train
    split."""

    root: Path
    models: Path
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.root / "out"
        names = ("base", "same", "more", "some", "strange", "own")
        entries = [f"{name}: {{format: folder, root: {name}}}\n" for name in names]
        (self.root / "sets.yaml").write_text("".join(entries))

    def options(self, **changes: Any) -> dict[str, Any]:
        protocol = changes.pop("protocol", "linear")
        given: dict[str, Any] = {
            "protocols": [protocol],
            "model_files": [self.models],
            "dataset_files": [self.root / "sets.yaml"],
            "settings": {"crop": 28, "resize": 32, "batch_size": 16, **SHORT[protocol]},
            "out": self.out,
            "workers": 0,
            "device": "cpu",
            "store": False,
        }
        return {**given, **changes}

    def run(self, *test_on: str, model: Any = "tiny", **changes: Any) -> list[Record]:
        return evaluate("linear", model, "base", test_on, **self.options(**changes))

    def path(self, record: Record) -> Path:
        names = record.dataset.name, record.task, record.model.name, record.protocol.name
        return records.record_path(self.out, *names, record.variant)

    def columns(self, record: Record) -> dict[str, list[Any]]:
        return {name: each.tolist() for name, each in read_columns(self.path(record)).items()}


def paint_all(root: Path) -> None:
    paint(root / "base/train", CLASSES, 5, 0)
    paint(root / "base/val", CLASSES, 3, 1)
    paint(root / "more/val", CLASSES, 2, 2)
    paint(root / "some/test", "gce", 2, 3)
    paint(root / "strange/val", [*CLASSES, "cat"], 1, 4)
    paint(root / "own/train", CLASSES, 2, 5)
    paint(root / "own/val", CLASSES, 1, 6)
    shutil.copytree(root / "base/val", root / "same/val")


def save(path: Path, number: int) -> None:
    """A picture of its own for each ``number``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 100 + 30 * number, (32, 32, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
