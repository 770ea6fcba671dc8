"""Segmentation and depth from patches that are read once, against the same from a stream of crops:
scores and wall clock of one run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.data.catalog import Catalog
from harness.errors import HarnessError
from harness.options import Options
from harness.plan import plan
from harness.run import run

STEPS = 500
_SIDE = 256
_COMMON: dict[str, Any] = {"steps": STEPS}
_ANYWHERE: dict[str, Any] = {**_COMMON, "evaluated": "none"}
_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "segmentation": {
        "linear-seg": {**_COMMON, "size": _SIDE},
        "dinov2-linear-seg": {
            **_COMMON,
            "short": _SIDE,
            "crop": _SIDE,
            "window": _SIDE,
            "stride": _SIDE * 2 // 3,
        },
    },
    "depth": {
        "linear-depth": {**_ANYWHERE, "size": _SIDE},
        "dinov2-linear-depth": {**_ANYWHERE, "crop": _SIDE, "cut": None},
    },
}
"""By task, what is stored and what is streamed, with crops of 256 pixels."""
_SCORES = {"segmentation": ("miou", "%"), "depth": ("rmse", "m")}


def dense(options: Options) -> dict[str, Any]:
    """Of the first data set of ``options``: what the default protocol of each task that it has
    labels for scores, and DINOv2's, both with ``STEPS`` steps of 16 crops, and the seconds that
    each took from an empty feature store to its record.

    Raises ``HarnessError`` where pixels have neither classes nor depth.
    """
    name = options.datasets[0]
    train = Catalog.load(options.dataset_files, options.data_root).open(name)["train"]
    tasks = ["segmentation"] if train.semantic_classes else []
    tasks += ["depth"] if train.has_depth else []
    if not tasks:
        raise HarnessError(f"data set {name!r}: its pixels have neither classes nor depth")
    found: dict[str, Any] = {"model": options.models[0], "threads": torch.get_num_threads()}
    for task in tasks:
        score, unit = _SCORES[task]
        results = {
            protocol: _timed(replace(options, tasks=[task], protocols=[protocol]), settings)
            for protocol, settings in _SETTINGS[task].items()
        }
        (ours, took), (theirs, longer) = results.values()
        found |= {
            f"{task}_steps": STEPS,
            f"{task}_stored_{score}": round(ours[score], 3),
            f"{task}_streamed_{score}": round(theirs[score], 3),
            f"{task}_unit": unit,
            f"{task}_stored_seconds": round(took, 1),
            f"{task}_streamed_seconds": round(longer, 1),
            f"{task}_times_faster": round(longer / took, 2),
        }
    return found


def _timed(options: Options, settings: dict[str, Any]) -> tuple[dict[str, float], float]:
    """The scores of one cell, and the seconds in which it was run."""
    with tempfile.TemporaryDirectory() as folder, _own_store(Path(folder) / "features"):
        options = replace(options, settings=settings, out=Path(folder) / "out")
        (cell,) = plan(options)
        if cell.reason is not None:
            raise HarnessError(cell.told)
        began = time.perf_counter()
        ((_, record),) = run([cell], options)
        took = time.perf_counter() - began
    return {name: metric.value for name, metric in record.metrics.items()}, took


@contextmanager
def _own_store(folder: Path) -> Iterator[None]:
    before = os.environ.get("HARNESS_CACHE")
    os.environ["HARNESS_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HARNESS_CACHE"]
        else:
            os.environ["HARNESS_CACHE"] = before
