"""What a worker process does: a piece of a pass, or what finishes a group of cells.

Nothing here knows of Ray: the functions take and give what can be pickled, and the last model
stays loaded, so that a worker that is given pieces of one model loads it once.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import platform
import re
import shutil
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import records
from harness.atomic import runs
from harness.backbone.vit import Backbone
from harness.engine.pieces import Piece, run_piece
from harness.errors import HarnessError
from harness.features.shared import user_store
from harness.options import Options
from harness.passes import Elsewhere, Seen
from harness.plan import Cell
from harness.progress import Silent
from harness.register_neurons import as_loaded
from harness.registry import Registry
from harness.run import load_model, run_group

_loaded: tuple[str, Backbone] | None = None


@dataclass(frozen=True)
class Finished:
    """What came of a group. ``results`` have the place of a cell, where its record lies under the
    results folder, and its files by name; ``failed`` says why the others have none."""

    results: list[tuple[int, str, dict[str, bytes]]] = field(default_factory=list)
    failed: str | None = None


def piece(group: Sequence[Cell], part: Piece, options: Options) -> dict[int, Seen]:
    """What every cell of a piece got of its pictures."""
    sweep()
    return run_piece(_backbone(group[0], options), part, group, options)


def finish(
    group: Sequence[Cell],
    places: Sequence[int],
    elsewhere: Elsewhere,
    bases: Mapping[str, dict[str, bytes]],
    options: Options,
) -> Finished:
    """Run the cells at ``places`` of a group to their end, in a folder of this process alone: what
    is in it is the driver's to keep. ``bases`` are results whose heads are judged, by their path
    under the results folder. A cell that fails leaves the records written before it."""
    found: list[tuple[int, str, dict[str, bytes]]] = []
    failed = None
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{_mine()}{os.getpid()}-") as folder:
        own, out = dataclasses.replace(options, out=Path(folder)), options.out
        for name, files in bases.items():
            records.adopt(own.out / name, files)
        cells = [group[place] for place in places]
        for cell in cells:
            if cell.base is not None:
                cell.base.path = own.out / cell.base.path.relative_to(out)
        renumbered = {
            (repeat, role, places.index(place)): seen
            for (repeat, role, place), seen in elsewhere.items()
            if place in places
        }
        store = user_store() if options.store else None
        try:
            backbone = _backbone(cells[0], options)
            for path, _ in run_group(backbone, cells, own, Silent(), store, renumbered):
                place = next(p for p, c in zip(places, cells, strict=True) if c.path == path)
                found.append((place, str(path.relative_to(own.out)), records.files(path)))
        except HarnessError as error:
            failed = str(error)
        except Exception:  # of a stranger's task or network: the other groups go on
            failed = traceback.format_exc()
    return Finished(found, failed)


def sweep() -> None:
    """Remove the folders of workers of this machine that were killed while they finished a cell."""
    start = _mine()
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(start)}*-*"):
        number = folder.name.removeprefix(start).partition("-")[0]
        if number.isdecimal() and not runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _mine() -> str:
    """How the names of such folders begin, before the process id. With the machine's name, for a
    container or another machine that shares the folder has process ids of its own."""
    node = re.sub(r"[^A-Za-z0-9.]", "-", platform.node())[:60]
    return f"harness-{node}-"


def _backbone(cell: Cell, options: Options) -> Backbone:
    global _loaded
    entry = cell.entry
    how = options.device, options.weights, options.seed, options.compiled
    key = f"{as_loaded(entry).digest()} {how}"
    if _loaded is None or _loaded[0] != key:
        _loaded = None  # let go of the last model before the next is loaded
        registry = Registry.load(options.model_files, options.allow_code)
        _loaded = key, load_model(entry, options, registry)
    return _loaded[1]
