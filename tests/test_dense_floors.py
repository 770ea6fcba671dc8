"""On painted scenes a trained ViT tells more of every pixel than what knows nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.tasks.depth import DepthJudge, StoredDepthProtocol

from harness import evaluate
from harness.aggregates import score
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset
from harness.dense.classes import ClassJudge
from harness.dense.judge import Judge
from harness.probes.dense_losses import ClassMap
from harness.schema import Metric
from harness.stats import Interval

SIDE = 128
SETTINGS: dict[str, dict[str, Any]] = {
    "segmentation": {"size": SIDE, "steps": 200},
    "depth": {"size": SIDE, "steps": 200, "evaluated": "none", "farthest": 25},
}
METRIC = {"segmentation": "miou", "depth": "rmse"}


def opened(file: Path) -> tuple[Dataset, Dataset]:
    roles = Catalog.load([file]).open("floors")
    return roles["train"], roles["test"]


def found(task: str, model: str, weights: str, file: Path, out: Path) -> Metric:
    (record,) = evaluate(
        task, model, "floors", settings=SETTINGS[task], weights=weights, dataset_files=[file],
        out=out, device="cpu", workers=0,
    )  # fmt: skip
    return record.metrics[METRIC[task]]


def constant(task: str, file: Path) -> Interval:
    """The interval of a prediction that is the same everywhere: the most frequent class of train,
    or its mean depth."""
    train, test = opened(file)
    if task == "segmentation":
        names = train.semantic_classes
        judge: Judge = ClassJudge(names, ClassMap(len(names)), None, 8)
        pixels = [train.dense(index).semantic for index in range(len(train.samples))]
        value = float(np.bincount(np.concatenate([np.ravel(each) for each in pixels])).argmax())
    else:
        judge = DepthJudge(StoredDepthProtocol(evaluated="none", farthest=25), 8)
        maps = np.stack([train.dense(index).depth for index in range(len(train.samples))])
        value = float(maps[(maps > 0) & (maps < 25)].mean())
    kind = torch.int64 if task == "segmentation" else torch.float32
    said = torch.full((SIDE, SIDE), value, dtype=kind)
    rows = [judge.row(said, judge.truth(test.dense(n))) for n in range(len(test.samples))]
    outcome = judge.outcome(np.stack(rows))
    spec = outcome.metrics[METRIC[task]]
    columns = [np.asarray(outcome.columns[name]) for name in (spec.column, *spec.others)]
    return score(spec.aggregate, columns, spec.scale, 0)[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_trained_beats_random_weights_and_pixels_and_a_constant(task: str, tmp_path: Path) -> None:
    file = tmp_path / "floors.yaml"
    file.write_text(f"floors: {{format: scenes, count: {{train: 200, test: 100}}, size: {SIDE}}}")
    out = tmp_path / "out"
    trained = found(task, "nano-reg4", "released", file, out)
    floors = {
        "random weights": found(task, "nano-reg4", "random", file, out),
        "pixels": found(task, "pixels", "released", file, out),
        "a constant": constant(task, file),
    }
    for name, floor in floors.items():
        if task == "segmentation":
            assert trained.low > floor.high, name
        else:
            assert trained.high < floor.low, name
