"""A protocol's name and version promise that its scores compare. These are the scores, box by box.

A change that moves one needs a new version of the protocol, and then new golden scores:
``HARNESS_WRITE_GOLDEN=1 .venv/bin/pytest tests/test_golden.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness import evaluate
from harness.records import read_columns, record_path
from harness.task import find_task, task_names

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("tiny", "tiny-reg4")
CASES = [(task, protocol) for task in task_names() for protocol in find_task(task).protocols]


def scores(task: str, protocol: str, models: Path, out: Path) -> dict[str, Any]:
    """Everything that a protocol says of the twelve generated pictures, as JSON."""
    result: dict[str, Any] = {}
    for model in MODELS:
        (record,) = evaluate(
            task,
            model,
            "generated",
            protocols=[protocol],
            model_files=[models],
            out=out,
            workers=0,
            device="cpu",
        )
        path = record_path(out, "generated", task, model, protocol)
        result[model] = {
            "metrics": {name: metric.value for name, metric in record.metrics.items()},
            "columns": {name: column.tolist() for name, column in read_columns(path).items()},
        }
    chosen = find_task(task).protocols[protocol]
    return {"version": chosen.version, "hash": chosen.hash(), "scores": result}


@pytest.mark.parametrize(("task", "protocol"), CASES)
def test_scores_move_only_with_the_protocols_version(
    task: str, protocol: str, tiny_models: Path, tmp_path: Path
) -> None:
    found = scores(task, protocol, tiny_models, tmp_path)
    path = GOLDEN / f"{protocol}.json"
    if os.environ.get("HARNESS_WRITE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    if golden["version"] != found["version"]:
        pytest.fail(f"{protocol} is now {found['version']}: write its golden scores anew")
    assert found["hash"] == golden["hash"], f"a setting of {protocol} changed: give it a version"
    for model in MODELS:
        for name, value in golden["scores"][model]["metrics"].items():
            assert found["scores"][model]["metrics"][name] == pytest.approx(value), (model, name)
        assert found["scores"][model]["columns"] == golden["scores"][model]["columns"], model


def test_every_golden_file_is_of_a_protocol() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {protocol for _, protocol in CASES}
