"""What a dense task reads of its data set, and whether it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision
from harness.data.dataset import Dataset, Role
from harness.data.fixed_size import FixedSize
from harness.data.views import View
from harness.dense.protocol import HeadProtocol
from harness.dense.reading import Reading
from harness.task import NotApplicable, TokenRequest

NEEDED: tuple[Role, Role] = ("train", "test")


def check_splits(datasets: Mapping[Role, Dataset]) -> None:
    """Raises ``NotApplicable`` where a split is not there."""
    for role in NEEDED:
        if role not in datasets:
            raise NotApplicable(f"the data set has no {role} split")


def streamed(
    reading: Reading, protocol: HeadProtocol, steps: int, train: View, test: View
) -> dict[Role, TokenRequest]:
    """Crops of train in shuffled epochs, and every test picture once."""
    read: dict[str, Any] = {
        "layers": reading.layers,
        "norm": reading.norm,
        "precision": protocol.precision,
    }
    dealt: dict[str, Any] = {
        "order": "shuffled",
        "steps": steps,
        "step_size": protocol.batch_size,
    }
    return {
        "train": TokenRequest(train, dense="crops", **dealt, **read),
        "test": TokenRequest(test, dense="pictures", **read),
    }


def shelved(reading: Reading, architecture: Architecture, view: FixedSize, label_bytes: int) -> int:
    """Bytes of a picture's tokens and labels, of which each pixel has ``label_bytes``."""
    labels = label_bytes * view.padded[0] * view.padded[1]
    return reading.bytes_per_picture(architecture, view) + labels


def stored(
    reading: Reading,
    view: FixedSize,
    precision: Precision,
    learning: Sequence[Role],
    kept: int,
) -> dict[Role, TokenRequest]:
    """Selected tokens of every picture once. Of a picture of the ``learning`` roles ``kept`` bytes
    stay in memory."""
    read: dict[str, Any] = {"select": reading.selectors, "precision": precision}
    learn = TokenRequest(view, dense="crops", bytes_per_picture=kept, **read)
    requests = dict.fromkeys(learning, learn)
    return {**requests, "test": TokenRequest(view, dense="pictures", **read)}
