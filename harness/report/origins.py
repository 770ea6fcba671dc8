"""Where a number comes from: all that a record says of one, in words, under a few heads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.console import size
from harness.schema import Metric, Record
from harness.storage.mirrors import from_there
from harness.storage.urls import is_url
from harness.tables.rows import Result, family, plain, protocol_words

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Origin:
    """A record on the page. ``link`` leads to its file from the folder of the page."""

    number: int
    model: str
    dataset: str
    task: str
    family: str
    words: list[str]
    link: str
    file: str
    metrics: list[tuple[str, str, Metric]]
    groups: list[tuple[str, Facts]]


def link(path: Path, start: Path) -> str:
    """A relative address, or that on the URL where the results are. A relative one begins with
    ``./``, so that no name of a folder makes it a script or another host."""
    place = from_there(path, start)
    if is_url(place):
        return quote(place, safe="/:")
    return "./" + quote(os.fsencode(place), safe="/")


def origins(results: Sequence[Result], start: Path) -> list[Origin]:
    """One for each of ``results``, numbered as they stand; links start from ``start``."""
    return [_origin(number, each, start) for number, each in enumerate(results, 1)]


def _origin(number: int, result: Result, start: Path) -> Origin:
    record = result.record
    return Origin(
        number=number,
        model=result.model,
        dataset=record.dataset.name,
        task=record.task,
        family=family(result.model),
        words=protocol_words(record),
        link=link(result.path, start),
        file=from_there(result.path, start),
        metrics=[(name, _unit(metric), metric) for name, metric in record.metrics.items()],
        groups=[(head, facts) for head, facts in _groups(record) if facts],
    )


def _unit(metric: Metric) -> str:
    return f"{metric.unit} {'↑' if metric.higher_is_better else '↓'}".strip()


def _groups(record: Record) -> Iterator[tuple[str, Facts]]:
    model, protocol, dataset = record.model, record.protocol, record.dataset
    cost, origin = record.cost, record.provenance
    yield (
        "model",
        _told(
            {
                "weights": model.weights,
                "digest of the weights that ran": model.weights_digest,
                "checkpoint sha256": model.checkpoint_sha256,
                "registers": model.registers,
                "interventions": model.interventions or None,
                "entry digest": model.entry_digest,
                **_spaced(model.entry),
            }
        ),
    )
    trained = record.trained_on
    yield (
        "protocol",
        _told(
            {
                "name and version": f"{protocol.name} {protocol.version}",
                "hash": protocol.hash,
                "apart from it": record.variant or None,
                "chosen on": record.selected_on,
                "head trained on": None if trained is None else trained.dataset,
                "head sha256": None if trained is None else trained.head_sha256,
                **_spaced(protocol.resolved),
            }
        ),
    )
    table = record.per_picture
    yield (
        "pictures",
        _told(
            {
                "split": dataset.split,
                "of the whole split": f"{dataset.pictures:,}",
                "limit": record.limit,
                "scored": None if table is None else f"{table.rows:,}",
                "fingerprint": dataset.fingerprint,
                **{f"fingerprint of {r}": f for r, f in sorted(dataset.fingerprints.items())},
                "left out as bad": [each.id for each in record.bad_pictures] or None,
                "table sha256": None if table is None else table.sha256,
                **_spaced(record.counts),
            }
        ),
    )
    yield (
        "cost",
        _told(
            {
                "device": f"{cost.device}, {cost.dtype}",
                "forward passes": f"{cost.forward_passes:,}",
                "seconds": cost.seconds,
                "images a second": cost.images_per_second,
                "GFLOPs a picture": cost.gigaflops,
                "peak memory": size(cost.peak_memory_bytes),
            }
        ),
    )
    command = None if origin.command is None else " ".join(origin.command)
    dirty = {True: ", with changes", False: "", None: ""}[origin.git_dirty]
    yield (
        "run",
        _told(
            {
                "command": command,
                "harness": origin.harness_version,
                "git commit": None if origin.git_commit is None else origin.git_commit + dirty,
                "python": origin.python,
                **origin.versions,
                "seed": origin.seed,
                "started": origin.started,
                "ended": origin.ended,
            }
        ),
    )


def _spaced(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in facts.items()}


def _told(facts: Mapping[str, Any]) -> Facts:
    """What is not known is not said."""
    return [(name, plain(value)) for name, value in facts.items() if value is not None]
