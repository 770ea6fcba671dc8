"""How long tables take over many records: 2,000 results of 1,000 pictures, made up."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import records, schema
from harness.registry import ModelEntry, Registry
from harness.stats import bootstrap_together

_MODELS, _DATASETS, _PICTURES = 40, 25, 1_000


def tables() -> dict[str, Any]:
    """Seconds of ``harness leaderboard``, ``harness compare --pairs`` (20 pairs on 50 cells: hits
    and a distance), ``harness regress`` (all of them against as many that moved), ``harness results
    check`` and ``harness report``, reading included, and the report's size."""
    from harness.cli import main

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models = folder / "models.yaml"
        models.write_text("".join(_entry(number) for number in range(_MODELS)))
        count = _write(folder / "results", models)
        moved = str(folder / "moved")
        _write(folder / "moved", models, noise=0.05)
        page = folder / "report.html"
        asked = ["--results", str(folder / "results"), "--models", str(models), "--json"]
        commands = {
            "leaderboard": ["leaderboard", *asked],
            "compare": ["compare", "--pairs", *asked],
            "regress": ["regress", "--baseline", asked[1], "--candidate", moved, "--json"],
            "check": ["results", "check", str(folder / "results"), "--json"],
            "report": ["report", "--out", str(page), *asked],
        }
        seconds = {}
        for name, command in commands.items():
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                main(command)
            seconds[name] = round(time.perf_counter() - began, 2)
        size = page.stat().st_size
    return {
        "records": count,
        "pictures": _PICTURES,
        **{f"{k}_s": v for k, v in seconds.items()},
        "report_mib": round(size / 2**20, 1),
    }


def _entry(number: int) -> str:
    """Every second model has registers and the one before it as its baseline."""
    baseline = f"  registers: 4\n  baseline: made-up{number - 1}\n" if number % 2 else ""
    return f"made-up{number}:\n  timm: vit_tiny_patch16_224\n{baseline}"


def _write(out: Path, models: Path, noise: float = 0.0) -> int:
    """Results of two tasks, one of hits and one of a distance, on each data set; with ``noise``
    each picture is a little harder or easier for the same model."""
    generator, further = np.random.default_rng(0), np.random.default_rng(1)
    ids = [f"picture-{number:05d}" for number in range(_PICTURES)]
    registry, count = Registry.load([models]), 0
    for dataset in range(_DATASETS):
        hard = generator.normal(size=_PICTURES)
        cells, fingerprint = [], 8 * f"{dataset:08x}"  # its first digits seed the draws
        for model in range(_MODELS):
            skill = hard + generator.normal(size=_PICTURES) + 0.2 * (model % 2)
            skill = skill + noise * further.normal(size=_PICTURES)
            cells.append((model, "lost", "corloc", 100.0, skill > 0))
            cells.append((model, "depth", "rmse", 1.0, np.exp(-skill / 4)))
        columns = np.stack([scale * column for *_, scale, column in cells], axis=1)
        (intervals,) = bootstrap_together(
            [lambda weights, columns=columns: weights @ columns / _PICTURES],  # type: ignore[misc]
            _PICTURES,
            int(fingerprint[:8], 16),
        )
        for cell, value, low, high in zip(cells, columns.mean(axis=0), *intervals, strict=True):
            model, task, metric, scale, column = cell
            entry = registry.entry(f"made-up{model}")
            record = _record(task, entry, f"set{dataset}", fingerprint)
            facts = schema.Metric(
                value=float(value),
                low=float(low),
                high=float(high),
                unit="%" if metric == "corloc" else "m",
                higher_is_better=metric == "corloc",
                column=metric,
                scale=scale,
            )
            record = record.model_copy(update={"metrics": {metric: facts}})
            path = records.record_path(out, record.dataset.name, task, entry.name, task)
            records.write(path, record, {"image_id": ids, metric: column})
            count += 1
    return count


def _record(task: str, entry: ModelEntry, dataset: str, fingerprint: str) -> schema.Record:
    settings: dict[str, Any] = {"name": task, "version": "1.0"}
    text = json.dumps(settings, sort_keys=True)
    return schema.Record(
        task=task,
        model=schema.ModelFacts(
            name=entry.name,
            entry=entry.canonical(),
            entry_digest=entry.digest(),
            weights="released",
            weights_digest=entry.digest(),
            registers=0,
        ),
        protocol=schema.ProtocolFacts(
            **settings, hash=hashlib.sha256(text.encode()).hexdigest(), settings=settings
        ),
        dataset=schema.DatasetFacts(
            name=dataset,
            split="test",
            fingerprint=fingerprint,
            fingerprints={"test": fingerprint},
            pictures=_PICTURES,
        ),
        metrics={},
        cost=schema.Cost(
            pictures=_PICTURES,
            forward_passes=_PICTURES,
            seconds=1.0,
            images_per_second=1000.0,
            peak_memory_bytes=0,
            device="none",
            dtype="fp32",
        ),
        provenance=schema.Provenance(
            harness_version="0",
            python="3",
            versions={},
            seed=0,
            started="2025-01-01T00:00:00Z",
            ended="2025-01-01T00:00:01Z",
        ),
    )
