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
from harness.errors import HarnessError, Unwritable, after_failures
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

    Cells of one model and data set run side by side on one forward pass. Where such a group fails,
    that is noted, the others are run, and ``SomeFailed`` is raised at the end (a plain
    ``HarnessError`` where no cell is done). Raises ``Unwritable`` at once. The records yielded
    before are on the disk.
    """
    progress = progress or Silent()
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    if not todo:
        records.tidy(options.out)
        return
    records.check_writable(options.out)
    registry = Registry.load(options.model_files, options.allow_code)
    store = user_store() if options.store else None
    backbone: Backbone | None = None
    failures: list[tuple[str, HarnessError]] = []

    def fail(cells: Sequence[Cell], error: HarnessError) -> None:
        failures.append((failure(cells, str(error)), error))
        progress.note(f"failed: {failures[-1][0]}")

    for entry, of_model in groups(todo):
        backbone = None  # let go of the last model before the next is loaded
        try:
            backbone = load_model(entry, options, registry)
        except HarnessError as error:
            fail([cell for group in of_model for cell in group], error)
            continue
        for group in of_model:
            if lost := [cell for cell in group if cell.base is not None and not cell.base.done]:
                fail(lost, HarnessError(HEAD_LOST))
            left = [cell for cell in group if cell.base is None or cell.base.done]
            try:
                if left:
                    yield from run_group(backbone, left, options, progress, store)
            except Unwritable:
                raise
            except _Failed as error:
                fail(error.cells, error)
            except HarnessError as error:
                fail([cell for cell in left if cell.done is None] or left, error)
    if len(failures) == 1 and not any(cell.done for cell in cells):
        raise failures[0][1]
    if failures:
        raise after_failures([text for text, _ in failures], any(cell.done for cell in cells))


class _Failed(HarnessError):
    """Of a group of cells these failed, or their results are not all where they should be."""

    def __init__(self, failures: Sequence[tuple[Cell, str]]) -> None:
        super().__init__("; ".join(why for _, why in failures))
        self.cells = list({id(cell): cell for cell, _ in failures}.values())


HEAD_LOST = "the head to be judged was not trained"


def failure(cells: Sequence[Cell], why: str) -> str:
    """``MODEL · DATA SET · PROTOCOLS: why``, of cells of one model that were not run."""
    sets = ", ".join(dict.fromkeys(cell.dataset.name for cell in cells))
    names = ", ".join(dict.fromkeys(cell.protocol.name for cell in cells))
    return f"{cells[0].entry.name} · {sets} · {names}: {why}"


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
    failures: list[tuple[Cell, str]] = []
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
                    failures.append((cell, str(error)))
                    continue
                scored.seconds += time.perf_counter() - began
                if number + 1 < len(cell.repeats):
                    todo.append((place, cell, scored))
                    continue
                cell.path, cell.done = store_record(backbone, cell, scored, options)
                again = one.repeat, one.evaluation, one.cutoffs
                try:
                    save_predictions(backbone, cell, *again, options, progress)
                except Unwritable:
                    raise
                except HarnessError as error:  # the record is there
                    failures.append((cell, str(error)))
                try:
                    push(cell.path)
                except HarnessError as error:
                    failures.append((cell, str(error)))
                yield cell.path, cell.done
    if failures:
        raise _Failed(failures)
