"""A folder of records as a gate reads it: what is whole, and what is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.records import check_folder, finished
from harness.results.identity import below, place_of
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
    check_folder(folder)
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
            place = path if record is None else place_of(path, record)
        except HarnessError as error:
            damaged[path] = str(error)
            continue
        if record is None:
            continue
        if path != place:
            # A copy, perhaps of another run: nothing says which of two counts.
            damaged[path] = f"{path}: in the wrong place; it is the result of {below(place)}"
            continue
        results.append(Result(path, record))
    if not results:
        if damaged:
            raise HarnessError(f"no whole result in {folder}: {next(iter(damaged.values()))}")
        asked = " of what was asked for" if seen else "; `harness run --out` writes them"
        raise HarnessError(f"no result in {folder}{asked}")
    return Side(folder, results, damaged)
