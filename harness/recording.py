"""Outcomes -> a record, written with all that says where its numbers come from."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from harness import heads, provenance, records, schema
from harness.aggregates import complete, scenes, score
from harness.backbone.vit import Backbone
from harness.describe import gigaflops
from harness.errors import HarnessError, Unwritable
from harness.further import selected_on, trained_on
from harness.language.source import text_digest
from harness.options import Options
from harness.plan import Cell, scored_role
from harness.registry import ModelEntry
from harness.repeats import over_seeds
from harness.task import Outcome


@dataclass
class Scored:
    """A cell's outcomes, one for each repeat that has been run, and what all have cost."""

    outcomes: list[Outcome] = field(default_factory=list)
    started: str = field(default_factory=provenance.utc_now)
    pictures: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    bad: list[tuple[str, str]] = field(default_factory=list)
    dtype: str = "fp32"


def store_record(
    backbone: Backbone, cell: Cell, scored: Scored, options: Options
) -> tuple[Path, schema.Record]:
    """Write what came of a cell: where it lies, and the record as it was written.

    Raises ``Unwritable`` with the scores where it cannot be written, so that they are not lost.
    """
    outcome = over_seeds(scored.outcomes, [repeat.seed for repeat in cell.repeats])
    role = scored_role(cell.dataset)
    fingerprint = cell.dataset.fingerprints[role]
    bad = sorted(set(scored.bad))
    variant = dict(cell.variant)
    if bad:
        variant["skipped"] = [identity for identity, _ in bad]
    names = cell.dataset.name, cell.task.name, cell.entry.name, cell.protocol.name
    path = records.record_path(options.out, *names, variant)
    kind: Literal["released", "checkpoint", "random"] = options.weights
    if cell.checkpoint_sha256 is not None:
        kind = "checkpoint"
    record = schema.Record(
        task=cell.task.name,
        model=schema.ModelFacts(
            name=cell.entry.name,
            entry=cell.entry.canonical(),
            entry_digest=cell.entry.digest(),
            checkpoint_sha256=cell.checkpoint_sha256,
            weights=kind,
            weights_digest=backbone.weights_digest,
            registers=backbone.architecture.layout.registers,
            interventions=cell.entry.interventions,
            text_tower=cell.entry.text.name if cell.task.needs_text and cell.entry.text else None,
            text_digest=text_digest(cell.task, cell.entry, cell.variant),
        ),
        protocol=schema.ProtocolFacts(
            name=cell.protocol.name,
            version=cell.protocol.version,
            hash=cell.protocol.hash(),
            settings=cell.protocol.settings(),
            resolved={**_input_facts(backbone), **outcome.resolved},
        ),
        dataset=schema.DatasetFacts(
            name=cell.dataset.name,
            split=cell.dataset.roles[role].split,
            fingerprint=fingerprint,
            fingerprints=cell.fingerprints,
            pictures=cell.dataset.whole[role],
        ),
        metrics=metrics_of(outcome, fingerprint),
        selected_on=outcome.selected_on if cell.base is None else selected_on(cell),
        counts=dict(outcome.counts),
        details=dict(outcome.details),
        bad_pictures=[schema.BadPictureFacts(id=i, reason=reason) for i, reason in bad],
        cost=schema.Cost(
            pictures=scored.pictures,
            forward_passes=scored.forward_passes,
            seconds=round(scored.seconds, 3),
            images_per_second=round(scored.pictures / scored.seconds, 3) if scored.seconds else 0.0,
            peak_memory_bytes=peak_memory(backbone.device),
            device=device_name(backbone.device),
            dtype=scored.dtype,
            gigaflops=gigaflops_of(cell.entry),
        ),
        provenance=provenance.collect(options.seed, scored.started, command=options.command),
        limit=options.limit,
        variant=variant,
        trained_on=trained_on(cell),
    )
    head = None if outcome.head is None else heads.packed(outcome.head)
    try:
        return path, records.write(path, record, outcome.columns, head)
    except HarnessError as error:
        scores = ", ".join(f"{name} {m.value:.2f} {m.unit}" for name, m in record.metrics.items())
        raise Unwritable(f"{error} Not stored: {cell.entry.name}: {scores}") from None


def _input_facts(backbone: Backbone) -> dict[str, Any]:
    facts = backbone.architecture
    found: dict[str, Any] = {"mean": list(facts.mean), "std": list(facts.std), "patch": facts.patch}
    if neurons := backbone.intervention.neurons:
        found["register_neurons"] = [list(pair) for pair in neurons]
    return found


_COUNTED: dict[str, float | None] = {}


def gigaflops_of(entry: ModelEntry) -> float | None:
    """As ``harness describe`` counts them, once a model; None for a stranger's network that does
    not run without data."""
    digest = entry.digest()
    if digest not in _COUNTED:
        try:
            _COUNTED[digest] = round(gigaflops(entry), 4)
        except Exception:  # a stranger's network may fail in any way, and its scores are there
            _COUNTED[digest] = None
    return _COUNTED[digest]


def metrics_of(outcome: Outcome, fingerprint: str) -> dict[str, schema.Metric]:
    """Scores with their bootstrap intervals over pictures, or over the scenes that a column names,
    drawn the same for one fingerprint."""
    metrics = {}
    numbers = scenes(outcome.columns)
    for name, spec in outcome.metrics.items():
        columns = [np.asarray(outcome.columns[each]) for each in (spec.column, *spec.others)]
        together = columns if numbers is None else [*columns, numbers]
        if spec.partial:
            together = complete(together)
        clusters = None if numbers is None else together[-1]
        columns, seed = together[: len(columns)], int(fingerprint[:8], 16)
        value, interval = score(spec.aggregate, columns, spec.scale, seed, clusters)
        metrics[name] = schema.Metric(
            value=value,
            low=interval.low,
            high=interval.high,
            unit=spec.unit,
            higher_is_better=spec.higher_is_better,
            column=spec.column,
            scale=spec.scale,
            shown=spec.shown,
            sd=spec.sd,
            aggregate=spec.aggregate,
            others=list(spec.others),
        )
    return metrics


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator since the pass began, or of this whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({torch.get_num_threads()} threads)"
