"""How long tables take over many records: 2,000 results of 1,000 pictures, made up."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import records, schema
from harness.registry import Registry

_MODELS, _DATASETS, _PICTURES = 40, 25, 1_000


def tables() -> dict[str, Any]:
    """Seconds of ``harness leaderboard``, ``harness compare --pairs`` (20 pairs on 50 cells: hits
    and a distance) and ``harness regress`` (all of them against as many that moved), reading
    included."""
    from harness.cli import main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models.yaml"
        models.write_text("".join(_entry(number) for number in range(_MODELS)))
        results, moved = folder / "results", folder / "moved"
        count = _write(results, models)
        _write(moved, models, noise=0.05)
        asked = ["--results", str(results), "--models", str(models)]
        seconds = {}
        for command in (
            ["leaderboard", *asked],
            ["compare", "--pairs", *asked],
            ["regress", "--baseline", str(results), "--candidate", str(moved)],
        ):
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                main([*command, "--format", "json"])
            seconds[command[0]] = round(time.perf_counter() - began, 2)
    return {"records": count, "pictures": _PICTURES, **{f"{k}_s": v for k, v in seconds.items()}}


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
        for model in range(_MODELS):
            entry = registry.entry(f"made-up{model}")
            skill = hard + generator.normal(size=_PICTURES) + 0.2 * (model % 2)
            skill = skill + noise * further.normal(size=_PICTURES)
            for task, metric, column in (
                ("lost", "corloc", skill > 0),
                ("depth", "rmse", np.exp(-skill / 4)),
            ):
                scale = 100.0 if metric == "corloc" else 1.0
                value = float(column.mean()) * scale
                record = _record(task, entry.name, f"set{dataset}", entry.digest(), dataset)
                record = record.model_copy(
                    update={"metrics": {metric: _metric(metric, value, scale)}}
                )
                names = record.dataset.name, task, entry.name, task
                path = records.record_path(out, *names)
                records.write(path, record, {"image_id": ids, metric: column})
                count += 1
    return count


def _metric(name: str, value: float, scale: float) -> schema.Metric:
    half = value / 30
    return schema.Metric(
        value=value,
        low=value - half,
        high=value + half,
        unit="%" if name == "corloc" else "m",
        higher_is_better=name == "corloc",
        column=name,
        scale=scale,
    )


def _record(task: str, model: str, dataset: str, digest: str, number: int) -> schema.Record:
    fingerprint = 8 * f"{number:08x}"  # its first digits seed the draws
    return schema.Record(
        task=task,
        model=schema.ModelFacts(
            name=model,
            entry={},
            entry_digest=digest,
            weights="released",
            weights_digest=digest,
            registers=0,
        ),
        protocol=schema.ProtocolFacts(name=task, version="1.0", hash="0" * 64, settings={}),
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
