"""plan -> stream -> outcomes -> records. One forward pass serves all who may share it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from harness import heads, records, schema
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
from harness.features.store import Feature, Store, shard_size
from harness.options import Options
from harness.pictured.saving import save_predictions
from harness.plan import Cell, Repeat
from harness.progress import Progress, Silent
from harness.recording import Scored, store_record
from harness.register_neurons import as_loaded, searched
from harness.registry import Registry
from harness.task import Batch, Context, Evaluation, HeadTask, TokenRequest

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class _Running:
    """One repeat of a cell, being scored."""

    cell: Cell
    repeat: Repeat
    evaluation: Evaluation
    cutoffs: Mapping[OutlierRule, float]
    scored: Scored


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
            as_loaded(entry),
            options.device,
            options.weights,
            options.seed,
            options.compiled,
            registry,
        )
        for _, of_dataset in groupby(of_model, key=_together):
            group = list(of_dataset)
            with searched(backbone, group[0], options, progress) as (running, passes):
                yield from _run_group(running, group, options, progress, store, passes)


def _together(cell: Cell) -> tuple[str, str]:
    """Cells that run side by side: of one data set, and where register neurons are searched, with
    those found on one."""
    added = cell.entry.test_time_registers
    searching = added is not None and added.searched
    return cell.dataset.name, (cell.base or cell).dataset.name if searching else ""


def _run_group(
    backbone: Backbone,
    cells: list[Cell],
    options: Options,
    progress: Progress,
    store: Store | None,
    passes: int,
) -> Iterator[tuple[Path, schema.Record]]:
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    failures = []
    todo = [(cell, Scored(forward_passes=passes)) for cell in cells]
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
                cell.path, cell.done = store_record(backbone, cell, scored, options)
                again = one.repeat, one.evaluation, one.cutoffs
                try:
                    save_predictions(backbone, cell, *again, options, progress)
                except HarnessError as error:  # the record is there
                    failures.append(str(error))
                yield cell.path, cell.done
    if failures:
        raise HarnessError("; ".join(failures))


def _begin(
    backbone: Backbone,
    cell: Cell,
    scored: Scored,
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
        request.ruled,
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
        received=frozenset().union(*(request.received for request in requests)),
        pixels=any(request.pixels for request in requests),
        precision=first.precision,
        selectors=frozenset(selector for request in requests for selector in request.select),
        cutoffs={rule: cutoff for one in listeners for rule, cutoff in one.cutoffs.items()},
        dense=first.dense,
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
    shard = shard_size(store, wanted.selectors, backbone.architecture, first.view)
    reader = Reader(backbone, dataset, wanted, tally, *how, shard, progress.advance)
    yield from batches(reader, features, all(o.repeat.requests[role].storable for o in listeners))
