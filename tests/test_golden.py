"""A protocol's name and version promise that its scores compare. These are the scores, box by box.

A change that moves one needs a new version of the protocol, and then new golden scores:
``HARNESS_WRITE_GOLDEN=1 .venv/bin/pytest tests/test_golden.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioned import captioned, notes
from landmarks import paint
from several import squares

from harness import evaluate
from harness.classification import TokenProtocol
from harness.records import find, read_columns
from harness.task_names import find_task, task_names

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("tiny", "tiny-reg4")
PAINTED = "golden: {format: scenes, count: {train: 240, test: 40}, size: 56}"
CLASSIFIED: dict[str, object] = {"resize": 56, "crop": 56}
STEPS: dict[str, object] = {"steps": 4, "batch_size": 8, "crop": 42}
WINDOWS: dict[str, object] = {**STEPS, "short": 56, "window": 42, "stride": 28}
CROPS: dict[str, object] = {**STEPS, "cut": None, "evaluated": "none"}
SETTINGS: dict[str, dict[str, object]] = {
    "attention-sinks": {"share": 0.02},  # the tiny models have none that draws more
    "linear": {"epochs": 1, "min_steps": 40},
    "dinov2-linear": {"steps": 4, "batch_size": 32},
    "linear-seg": {"size": 56, "steps": 8},
    "knn-seg": {"size": 56},
    "dinov2-linear-seg": WINDOWS,
    "dinov2-linear-seg-ms": WINDOWS,
    "dinov3-linear-seg": WINDOWS,
    "linear-depth": {"size": 56, "steps": 8, "evaluated": "none"},
    "dinov2-linear-depth": CROPS,
    "dinov2-linear-depth-4": CROPS,
    "dinov3-linear-depth": CROPS,
    "anatomy": {"outliers": "quantile0.9"},
    "zeroshot-seg": {"size": 56, "templates": "prompts"},
    "zeroshot-seg-windows": {
        "short": 56,
        "window": 42,
        "stride": 28,
        "templates": "prompts",
    },
    "local-information": {"outliers": "quantile0.9", "held_out": 0.5},
    "clip-retrieval": {"size": 56},
    "text-retrieval": {"size": 56},
    "typographic": {"size": 56, "letters": 0.4},
    "typographic-written": {"size": 56},
    "zeroshot": {"size": 56},
    "zeroshot-multilabel": {"size": 56},
}
"""By protocol, what makes it short, or tell something. The hash that is held is that of the
protocol as it is."""
LONG = {"dinov2-linear-seg-ms"}
PIXELS = {"depth", "segmentation", "zeroshot-seg"}
"""Tasks that tell something of every pixel."""
CASES = [(task, protocol) for task in task_names() for protocol in find_task(task).protocols]


def scores(task: str, protocol: str, models: Path, out: Path) -> dict[str, Any]:
    """Everything that a protocol says of twelve generated pictures, or of some painted ones where
    it needs classes or queries, as JSON."""
    chosen = find_task(task).protocols[protocol]
    data = out / "data.yaml"
    data.write_text(PAINTED)
    classified = isinstance(chosen, TokenProtocol)
    settings = {**(CLASSIFIED if classified else {}), **SETTINGS.get(protocol, {})}
    painted = classified or task in {*PIXELS, "typographic", "zeroshot"}
    dataset, files = "golden" if painted else "generated", [data]
    if task == "instance-retrieval":
        dataset, files = "landmarks", [paint(out / "painted")]
    if protocol in {"logistic-multilabel", "zeroshot-multilabel"}:
        dataset, files = "squares", [squares(out)]
    if task == "text-retrieval":
        dataset, files = "captioned", [captioned(out / "painted")]
    if protocol == "typographic-written":
        dataset, files = "notes", [notes(out / "painted")]
    for model in MODELS:
        evaluate(
            task,
            model,
            dataset,
            protocols=[protocol],
            settings=settings,
            model_files=[models],
            dataset_files=files,
            out=out,
            workers=0,
            device="cpu",
            store=False,
        )
    result = {
        record.model.name: {
            "metrics": {name: metric.value for name, metric in record.metrics.items()},
            "columns": {name: column.tolist() for name, column in read_columns(path).items()},
        }
        for path, record in find(out)
    }
    return {"version": chosen.version, "hash": chosen.hash(), "scores": result}


@pytest.mark.parametrize(
    ("task", "protocol"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] in LONG)) for case in CASES],
)
def test_scores_move_only_with_the_protocols_version(
    task: str, protocol: str, tiny_models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    models = request.getfixturevalue("texted") if find_task(task).needs_text else tiny_models
    found = scores(task, protocol, models, tmp_path)
    path = GOLDEN / f"{protocol}.json"
    if os.environ.get("HARNESS_WRITE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    if golden["version"] != found["version"]:
        pytest.fail(f"{protocol} is now {found['version']}: write its golden scores anew")
    assert found["hash"] == golden["hash"], f"a setting of {protocol} changed: give it a version"
    for model in MODELS:
        for name, value in golden["scores"][model]["metrics"].items():
            near = 1e-2 if task in PIXELS else 1e-6
            assert found["scores"][model]["metrics"][name] == pytest.approx(value, near), name
        columns = found["scores"][model]["columns"]
        assert columns.keys() == golden["scores"][model]["columns"].keys()
        for name, column in golden["scores"][model]["columns"].items():
            if task in PIXELS and name not in {"image_id", "scene"}:
                # Trained, so that machines differ a little: in metres, or in a few pixels.
                off = 3 if np.ndim(column) == 2 else 1e-3
                np.testing.assert_allclose(columns[name], column, rtol=1e-3, atol=off)
            elif np.ndim(column) == 2 or np.asarray(column).dtype.kind == "f":
                # Logits and other numbers, which machines round each in its way.
                np.testing.assert_allclose(columns[name], column, rtol=1e-3, atol=1e-3)
            else:
                assert columns[name] == column, (model, name)


def test_every_golden_file_is_of_a_protocol() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {protocol for _, protocol in CASES}
