"""Pictures of coloured blocks, whose colour tells the class and the depth of every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness import evaluate
from harness.records import find, read_columns
from harness.schema import Record

BLOCK = 16
SIDE = 64
COLOURS = np.array([[220, 40, 40], [40, 200, 40], [40, 40, 220]], np.uint8)
NAMES = ("red", "green", "blue")
METRES = np.array([1.0, 2.0, 4.0])


def blocks(folder: Path, train: int = 12, test: int = 6) -> Path:
    """A data-set file with ``blocks`` (masks) and ``far`` (depth) of the same pictures."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in ("images", "masks", "depth"):
            (folder / "blocks" / kind / split).mkdir(parents=True)
        for number in range(count):
            coarse = generator.integers(0, 3, (SIDE // BLOCK, SIDE // BLOCK))
            save(folder, split, f"{number:02d}", np.kron(coarse, np.ones((BLOCK, BLOCK), int)))
    file = folder / "blocks.yaml"
    file.write_text(
        f"blocks: {{format: masks, root: blocks, splits: {{train: train, test: test}}, classes: "
        f"[{', '.join(NAMES)}]}}\n"
        "far: {format: rgbd, root: blocks, splits: {train: train, test: test}}\n"
    )
    return file


def save(folder: Path, split: str, name: str, classes: np.ndarray) -> None:
    root = folder / "blocks"
    Image.fromarray(COLOURS[classes]).save(root / f"images/{split}/{name}.png")
    Image.fromarray(classes.astype(np.uint8)).save(root / f"masks/{split}/{name}.png")
    depth = (1000 * METRES[classes]).astype(np.uint16)
    Image.fromarray(depth).save(root / f"depth/{split}/{name}.png")


def scored(
    task: str, dataset: str, folder: Path, protocol: str, settings: dict[str, Any], **more: Any
) -> Record:
    """The record of a model (``pixels``) on ``dataset``, which is made in ``folder`` first."""
    file = folder / "blocks.yaml"
    if not file.exists():
        blocks(folder)
    given: dict[str, Any] = {"workers": 0, "device": "cpu", "out": folder / "out", **more}
    (record,) = evaluate(
        task, given.pop("model", "pixels"), dataset, protocols=[protocol], settings=settings,
        dataset_files=[file], **given,
    )  # fmt: skip
    return record


def columns(folder: Path) -> dict[str, np.ndarray]:
    """Of the only record there."""
    ((path, _),) = find(folder)
    return read_columns(path)
