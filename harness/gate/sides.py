"""A folder of records as a gate reads it: what is whole, and what is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.records import finished
from harness.tables.rows import Chosen, Result


@dataclass(frozen=True)
class Side:
    """The results of a folder, and what is wrong with those that are damaged, by path."""

    folder: Path
    results: Sequence[Result]
    damaged: dict[Path, str]


def read_side(folder: Path, chosen: Chosen) -> Side:
    """Raises ``HarnessError`` where the folder is missing, or has no whole result that is asked
    for."""
    if not folder.is_dir():
        raise HarnessError(f"{folder}: no such folder; `harness run --out` makes one")
    results: list[Result] = []
    damaged = {}
    seen = False
    for path in sorted(folder.glob("*/*/*/*.json")):
        dataset, task, model = path.relative_to(folder).parts[:3]
        wanted = (chosen.datasets, dataset), (chosen.tasks, task), (chosen.models, model)
        if path.name.startswith("."):
            continue
        seen = True
        if any(names and one not in names for names, one in wanted):
            continue
        try:
            record = finished(path)
        except HarnessError as error:
            damaged[path] = str(error)
            continue
        if record is None:
            continue
        if (record.dataset.name, record.task, record.model.name) != (dataset, task, model):
            # A copy, perhaps of another run: nothing says which of two counts.
            named = "/".join((record.dataset.name, record.task, record.model.name))
            damaged[path] = f"{path}: in the wrong folder; it is a result of {named}"
            continue
        results.append(Result(path, record))
    if not results:
        if damaged:
            raise HarnessError(f"no whole result in {folder}: {next(iter(damaged.values()))}")
        asked = " of what was asked for" if seen else "; `harness run --out` writes them"
        raise HarnessError(f"no result in {folder}{asked}")
    return Side(folder, results, damaged)
