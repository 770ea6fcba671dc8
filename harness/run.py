"""plan -> stream -> outcomes -> records. One forward pass serves all who may share it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from harness import records, schema
from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.data.dataset import ROLES
from harness.errors import HarnessError
from harness.features.shared import user_store
from harness.features.store import Store
from harness.options import Options
from harness.passes import Elsewhere, begin, run_pass, take, that_share
from harness.pictured.saving import save_predictions
from harness.plan import Cell
from harness.progress import Progress, Silent
from harness.recording import Scored, store_record
from harness.register_neurons import as_loaded, searched
from harness.registry import ModelEntry, Registry
from harness.storage.mirrors import push

if TYPE_CHECKING:
    from pathlib import Path


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
    registry = Registry.load(options.model_files, options.allow_code)
    store = user_store() if options.store else None
    backbone: Backbone | None = None
    for entry, of_model in groups(todo):
        backbone = None  # let go of the last model before the next is loaded
        backbone = load_model(entry, options, registry)
        for group in of_model:
            yield from run_group(backbone, group, options, progress, store)


def load_model(entry: ModelEntry, options: Options, registry: Registry) -> Backbone:
    """The model that the cells of ``entry`` begin with, on the device of ``options``."""
    how = options.device, options.weights, options.seed, options.compiled
    return load_backbone(as_loaded(entry), *how, registry)


def groups(cells: Sequence[Cell]) -> list[tuple[ModelEntry, list[list[Cell]]]]:
    """Of each model, the cells that run side by side, in groups."""
    by_model = groupby(cells, key=lambda cell: cell.entry)
    return [
        (entry, [list(group) for _, group in groupby(of_model, key=_side_by_side)])
        for entry, of_model in by_model
    ]


def _side_by_side(cell: Cell) -> tuple[str, str]:
    """Cells of a model in which this agrees run side by side: of one data set, and where register
    neurons are searched, with those found on one."""
    added = cell.entry.test_time_registers
    searching = added is not None and added.searched
    return cell.dataset.name, (cell.base or cell).dataset.name if searching else ""


def run_group(
    backbone: Backbone,
    cells: Sequence[Cell],
    options: Options,
    progress: Progress,
    store: Store | None,
    elsewhere: Elsewhere | None = None,
) -> Iterator[tuple[Path, schema.Record]]:
    """Run ``cells``, which are one of the ``groups``, on the model as it was loaded, and yield each
    record as it is written. What other processes have read of a pass already is in ``elsewhere``.
    """
    with searched(backbone, cells[0], options, progress) as (running, passes):
        yield from _run_group(running, cells, options, progress, store, passes, elsewhere or {})


def _run_group(
    backbone: Backbone,
    cells: Sequence[Cell],
    options: Options,
    progress: Progress,
    store: Store | None,
    passes: int,
    elsewhere: Elsewhere,
) -> Iterator[tuple[Path, schema.Record]]:
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    failures = []
    todo = [(place, cell, Scored(forward_passes=passes)) for place, cell in enumerate(cells)]
    with exact_float32():
        # One repeat after the other: what their seed does not move is in the feature store, and in
        # memory once.
        for number in itertools.count():
            todo = [each for each in todo if number < len(each[1].repeats)]
            if not todo:
                break
            running = [
                (place, begin(backbone, cell, scored, number, options, store))
                for place, cell, scored in todo
            ]
            for role in ROLES:
                listeners = [each for each in running if role in each[1].repeat.requests]
                seen = {place: elsewhere.get((number, role, place), ()) for place, _ in listeners}
                read = [one for place, one in listeners if not take(one, role, seen[place])]
                for sharing in that_share(read, role):
                    run_pass(backbone, role, sharing, options, progress, store)
                for _, one in listeners:
                    one.evaluation.end(role)
            todo = []
            for place, one in running:
                cell, scored = one.cell, one.scored
                began = time.perf_counter()
                try:
                    scored.outcomes.append(one.evaluation.finish())
                except HarnessError as error:  # its neighbours' pass is not to be lost with it
                    failures.append(str(error))
                    continue
                scored.seconds += time.perf_counter() - began
                if number + 1 < len(cell.repeats):
                    todo.append((place, cell, scored))
                    continue
                cell.path, cell.done = store_record(backbone, cell, scored, options)
                again = one.repeat, one.evaluation, one.cutoffs
                try:
                    save_predictions(backbone, cell, *again, options, progress)
                except HarnessError as error:  # the record is there
                    failures.append(str(error))
                try:
                    push(cell.path)
                except HarnessError as error:
                    failures.append(str(error))
                yield cell.path, cell.done
    if failures:
        raise HarnessError("; ".join(failures))
