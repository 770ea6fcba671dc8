"""plan -> stream -> outcomes -> records. One forward pass serves all who may share it."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from harness import heads, provenance, records, schema
from harness.aggregates import complete, score
from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.data.dataset import ROLES, Role
from harness.errors import HarnessError
from harness.features.cutoffs import resolve
from harness.features.extract import Pass, Tally, out_of_memory, stream
from harness.features.keys import RunningModel, can_be_keyed
from harness.features.loading import processes
from harness.features.order import Steps, indices
from harness.features.outliers import OutlierRule
from harness.features.select import Selector
from harness.features.serve import Reader, batches, stored_features
from harness.features.store import SHARD, Feature, Store
from harness.further import selected_on, trained_on
from harness.plan import Cell, Options, Repeat, scored_role
from harness.progress import Progress, Silent
from harness.registry import Registry
from harness.repeats import over_seeds
from harness.task import Batch, Context, Evaluation, HeadTask, Outcome, TokenRequest

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class _Scored:
    """A cell's outcomes, one for each repeat that has been run, and what all have cost."""

    outcomes: list[Outcome] = field(default_factory=list)
    started: str = field(default_factory=provenance.utc_now)
    pictures: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    bad: list[tuple[str, str]] = field(default_factory=list)
    dtype: str = "fp32"


@dataclass
class _Running:
    """One repeat of a cell, being scored."""

    cell: Cell
    repeat: Repeat
    evaluation: Evaluation
    cutoffs: Mapping[OutlierRule, float]
    scored: _Scored


def run(
    cells: Sequence[Cell], options: Options, progress: Progress | None = None
) -> Iterator[tuple[Path, schema.Record]]:
    """Run the cells that are to be done; yield each record as it is written, and set it as the
    cell's ``done``.

    Cells of one model and data set run side by side on one forward pass. Raises ``HarnessError``
    when something cannot go on; the records yielded before are on the disk.
    """
    progress = progress or Silent()
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    if not todo:
        return
    records.check_writable(options.out)
    registry = Registry.load(options.model_files)
    store = Store() if options.store else None
    backbone: Backbone | None = None
    for entry, of_model in groupby(todo, key=lambda cell: cell.entry):
        backbone = None  # let go of the last model before the next is loaded
        backbone = load_backbone(
            entry,
            options.device,
            options.weights,
            options.seed,
            options.compiled,
            registry,
        )
        for _, group in groupby(of_model, key=lambda cell: cell.dataset.name):
            yield from _run_group(backbone, list(group), options, progress, store)


def _run_group(
    backbone: Backbone,
    cells: list[Cell],
    options: Options,
    progress: Progress,
    store: Store | None,
) -> Iterator[tuple[Path, schema.Record]]:
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    failures = []
    todo = [(cell, _Scored()) for cell in cells]
    with exact_float32():
        # One repeat after the other: what their seed does not move is in the feature store, and in
        # memory once.
        for number in itertools.count():
            todo = [(cell, scored) for cell, scored in todo if number < len(cell.repeats)]
            if not todo:
                break
            running = [_begin(backbone, *each, number, options, store) for each in todo]
            for role in ROLES:
                listeners = [one for one in running if role in one.repeat.requests]
                for sharing in _that_share(listeners, role):
                    _pass(backbone, role, sharing, options, progress, store)
                for one in listeners:
                    one.evaluation.end(role)
            todo = []
            for one in running:
                cell, scored = one.cell, one.scored
                began = time.perf_counter()
                try:
                    scored.outcomes.append(one.evaluation.finish())
                except HarnessError as error:  # its neighbours' pass is not to be lost with it
                    failures.append(str(error))
                    continue
                scored.seconds += time.perf_counter() - began
                if number + 1 < len(cell.repeats):
                    todo.append((cell, scored))
                    continue
                cell.path, cell.done = _store(backbone, cell, scored, options)
                yield cell.path, cell.done
    if failures:
        raise HarnessError("; ".join(failures))


def _begin(
    backbone: Backbone,
    cell: Cell,
    scored: _Scored,
    number: int,
    options: Options,
    store: Store | None,
) -> _Running:
    """A repeat before its first picture. That of a further test set takes over the head of its
    base, the head's cut-offs, and the list of pictures that it was trained without."""
    repeat = cell.repeats[number]
    head = None
    if cell.base is not None:
        base = cell.base.done
        assert base is not None
        head = heads.read(cell.base.path, base, backbone.weights_digest)
        without = base.bad_pictures
        scored.bad += [(f"{base.dataset.name}/{each.id}", each.reason) for each in without]
    if head is None:
        cutoffs, passes = _cutoffs(backbone, cell, repeat, options, store)
    else:
        cutoffs, passes = dict(head.cutoffs), 0
    scored.forward_passes += passes
    context = Context(
        backbone.architecture,
        cell.dataset.roles,
        cell.protocol,
        repeat.seed,
        cutoffs,
        str(backbone.device),
    )
    if head is None:
        evaluation = cell.task.start(context)
    else:
        assert isinstance(cell.task, HeadTask)
        evaluation = cell.task.judge(context, head)
    return _Running(cell, repeat, evaluation, cutoffs, scored)


def _cutoffs(
    backbone: Backbone, cell: Cell, repeat: Repeat, options: Options, store: Store | None
) -> tuple[dict[OutlierRule, float], int]:
    """The cut-off of every rule for outliers among what ``cell`` asks for, estimated on its first
    role (train, where there is one), and the forward passes that it took."""
    role = next(role for role in ROLES if role in repeat.requests)
    request = repeat.requests[role]
    return resolve(
        backbone,
        RunningModel.of(backbone, cell.entry, cell.weights_from),
        cell.dataset.roles[role],
        cell.source(role, repeat.seed),
        request.select,
        store,
        options.batch_size,
        processes(options.workers),
        options.on_bad_picture == "skip",
    )


def _that_share(listeners: list[_Running], role: Role) -> list[list[_Running]]:
    """Listeners brought together where one pass can serve them: not where one rule for outliers
    came to two cut-offs (of two layers, say)."""
    groups: dict[tuple[object, ...], list[list[_Running]]] = {}
    for one in listeners:
        alike = groups.setdefault(one.repeat.requests[role].sharing, [])
        for group in alike:
            if all(
                one.cutoffs.get(rule, cutoff) == cutoff
                for other in group
                for rule, cutoff in other.cutoffs.items()
            ):
                group.append(one)
                break
        else:
            alike.append([one])
    return [group for alike in groups.values() for group in alike]


def _pass(
    backbone: Backbone,
    role: Role,
    listeners: list[_Running],
    options: Options,
    progress: Progress,
    store: Store | None,
) -> None:
    """One pass over the pictures of a role, for all ``listeners``."""
    requests: list[TokenRequest] = [one.repeat.requests[role] for one in listeners]
    dataset = listeners[0].cell.dataset.roles[role]
    first = requests[0]
    wanted = Pass(
        view=first.view,
        reads=frozenset().union(*(request.reads for request in requests)),
        attention=frozenset().union(*(request.attention for request in requests)),
        pixels=any(request.pixels for request in requests),
        precision=first.precision,
        selectors=frozenset(selector for request in requests for selector in request.select),
        cutoffs={rule: cutoff for one in listeners for rule, cutoff in one.cutoffs.items()},
    )
    tally = Tally(options.batch_size)
    steps = [Steps(request.step_size) for request in requests]
    names = ", ".join(dict.fromkeys(one.cell.protocol.name for one in listeners))
    total = len(dataset.samples) if first.pictures is None else first.pictures
    progress.start(f"{backbone.name} · {listeners[0].cell.dataset.name} · {names}", total)
    began = time.perf_counter()

    def tell() -> None:
        for notices in (tally.notices, [] if store is None else store.notices):
            while notices:
                progress.note(notices.pop(0))

    try:
        for batch in _batches(backbone, role, listeners, wanted, tally, options, progress, store):
            for one, dealt in zip(listeners, steps, strict=True):
                for part in dealt.add(batch):
                    one.evaluation.update(role, part)
            tell()
        for one, dealt in zip(listeners, steps, strict=True):
            for part in dealt.rest():
                one.evaluation.update(role, part)
        tell()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise HarnessError(
            f"out of memory on {backbone.device} while {names} scored a picture: a smaller "
            f"--batch-size, another --device, or a smaller max_patches with --on-bad-image skip"
        ) from None
    seconds = time.perf_counter() - began
    for one in listeners:
        one.scored.pictures += tally.pictures
        one.scored.forward_passes += tally.forward_passes
        one.scored.seconds += seconds
        one.scored.bad += tally.bad
        one.scored.dtype = backbone.precision(first.precision)


def _batches(
    backbone: Backbone,
    role: Role,
    listeners: list[_Running],
    wanted: Pass,
    tally: Tally,
    options: Options,
    progress: Progress,
    store: Store | None,
) -> Iterator[Batch]:
    """What a pass reads: of pictures read once, vectors that the store has are not computed."""
    # Those of one round have one seed.
    cell, (seed, requests) = listeners[0].cell, listeners[0].repeat
    dataset, first = cell.dataset.roles[role], requests[role]
    how = seed, processes(options.workers), options.on_bad_picture == "skip"
    if first.order != "once" or not wanted.selectors:
        order = indices(first, len(dataset.samples), seed)
        yield from stream(backbone, dataset, wanted, order, tally, *how, progress.advance)
        return
    features: dict[Selector, Feature] = {}
    if store is not None and can_be_keyed(first.view):
        running = RunningModel.of(backbone, cell.entry, cell.weights_from)
        source = cell.source(role, seed)
        features = stored_features(store, running, source, wanted, len(dataset.samples))
    shard = SHARD if store is None else store.shard
    reader = Reader(backbone, dataset, wanted, tally, *how, shard, progress.advance)
    yield from batches(reader, features, all(o.repeat.requests[role].storable for o in listeners))


def _store(
    backbone: Backbone, cell: Cell, scored: _Scored, options: Options
) -> tuple[Path, schema.Record]:
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
        metrics=_metrics(outcome, fingerprint),
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
        raise HarnessError(f"{error} Not stored: {cell.entry.name}: {scores}") from None


def _input_facts(backbone: Backbone) -> dict[str, Any]:
    facts = backbone.architecture
    return {"mean": list(facts.mean), "std": list(facts.std), "patch": facts.patch}


def _metrics(outcome: Outcome, fingerprint: str) -> dict[str, schema.Metric]:
    """Scores with their bootstrap intervals over pictures, drawn the same for one fingerprint."""
    metrics = {}
    for name, spec in outcome.metrics.items():
        columns = [np.asarray(outcome.columns[each]) for each in (spec.column, *spec.others)]
        if spec.partial:
            columns = complete(columns)
        value, interval = score(spec.aggregate, columns, spec.scale, int(fingerprint[:8], 16))
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
