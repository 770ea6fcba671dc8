"""A folder of records as a gate reads it: what is whole, and what is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.records import Record, check_folder, look_at_all
from harness.results.identity import below, place_of
from harness.tables.rows import Chosen, Result


@dataclass(frozen=True)
class Side:
    """The results of a folder, and what is wrong with those that are damaged, by path."""

    folder: Path
    results: Sequence[Result]
    damaged: dict[Path, str]


def read_side(folder: Path, chosen: Chosen) -> Side:
    """Raises ``HarnessError`` where the folder is missing or cannot be looked into, or has no whole
    result that is asked for."""
    check_folder(folder)
    results: list[Result] = []
    damaged = {}
    seen = False

    def wanted(path: Path) -> bool:
        nonlocal seen
        seen = True
        dataset, task, model = path.relative_to(folder).parts[:3]
        asked = (chosen.datasets, dataset), (chosen.tasks, task), (chosen.models, model)
        return all(not names or one in names for names, one in asked)

    for path, found in look_at_all(folder, wanted):
        if isinstance(found, Record):
            if path == (place := place_of(path, found)):
                results.append(Result(path, found))
            else:  # a copy, perhaps of another run: nothing says which of two counts
                damaged[path] = f"{path}: in the wrong place; it is the result of {below(place)}"
        elif path.suffix == ".json":
            damaged[path] = str(found)
        else:  # what a folder hides, nobody can judge
            raise found
    if not results:
        if damaged:
            raise HarnessError(f"no whole result in {folder}: {next(iter(damaged.values()))}")
        asked = " of what was asked for" if seen else "; `harness run --out` writes them"
        raise HarnessError(f"no result in {folder}{asked}")
    return Side(folder, results, damaged)
