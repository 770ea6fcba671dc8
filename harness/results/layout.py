"""What lies in a folder of results: records, the files that belong to them, and what does not.

Nothing is written. Folders that are links are followed (a large data set's results may lie on
another disk), one that leads back to itself is not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import records
from harness.atomic import writer

CELL_DEPTH = 4
"""``<dataset>/<task>/<model>/<protocol>.json`` below the folder of results."""

_PICTURES = ".pictures"
_BESIDE = {".parquet": "a table", ".head.safetensors": "a head"}
_OF_A_RECORD = {"task", "model", "protocol", "dataset", "metrics", "provenance"}


@dataclass(frozen=True)
class Problem:
    """Something wrong at ``path``, and what to do about it."""

    path: Path
    what: str
    advice: str


@dataclass
class Layout:
    """The records below ``root``, in the order of their paths; ``problems`` with what may be or
    hide a record; and ``litter``, which belongs to none."""

    root: Path
    records: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    litter: list[Problem] = field(default_factory=list)


def survey(root: Path) -> Layout:
    """Look at every name below ``root``.

    A record in a folder of results that lies in ``root`` itself (``results/baseline``) is one too.
    Raises ``HarnessError`` where ``root`` is no folder or cannot be read.
    """
    records.check_folder(root)
    found = Layout(root)
    for folder, names in _folders(root, found.problems):
        _sort_out(found, folder, names)
    found.records.sort()
    return found


def _folders(root: Path, problems: list[Problem]) -> Iterator[tuple[Path, dict[str, bool]]]:
    """Every folder below ``root`` with its names: whether each is a folder."""
    todo: list[tuple[Path, tuple[str, ...]]] = [(root, (os.path.realpath(root),))]
    while todo:
        folder, above = todo.pop()
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: _is_folder(entry) for entry in entries}
        except OSError as error:
            problems.append(_unreadable(folder, error))
            continue
        yield folder, names
        for name, is_folder in names.items():
            if not is_folder or name.startswith(".") or name.endswith(_PICTURES):
                continue
            real = os.path.realpath(folder / name)
            if real in above:
                problems.append(
                    Problem(folder / name, "a link back to a folder that it is in", "remove it")
                )
            else:
                todo.append((folder / name, (*above, real)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem(path, f"cannot be read: {error.strerror}", "mend its permissions")


def _sort_out(found: Layout, folder: Path, names: dict[str, bool]) -> None:
    depth = len(folder.relative_to(found.root).parts) + 1
    for name, is_folder in names.items():
        path = folder / name
        if name.startswith("."):
            pid = writer(name)
            if pid is not None and not _alive(pid):
                found.litter.append(
                    Problem(path, "left by a run that was killed", "the next run clears it away")
                )
        elif is_folder:
            if name.endswith(_PICTURES) and not _named(names, name, _PICTURES):
                found.litter.append(_orphan(path, "pictures"))
            elif name.endswith(".json"):
                found.problems.append(Problem(path, "a folder, not a record", "remove it"))
        elif name.endswith(".json"):
            if depth == CELL_DEPTH or (depth > CELL_DEPTH and _is_record(path)):
                found.records.append(path)
            elif _is_record(path):
                found.problems.append(
                    Problem(
                        path,
                        "a record where no table looks for one",
                        "move it to <dataset>/<task>/<model>/<protocol>.json",
                    )
                )
        elif depth >= CELL_DEPTH:
            for suffix, what in _BESIDE.items():
                if name.endswith(suffix) and not _named(names, name, suffix):
                    found.litter.append(_orphan(path, what))


def _named(names: dict[str, bool], name: str, suffix: str) -> bool:
    return name.removesuffix(suffix) + ".json" in names


def _orphan(path: Path, what: str) -> Problem:
    return Problem(path, f"{what} without a record", "run its cell again, or remove it")


def _alive(pid: int) -> bool:
    """Whether a process of this number runs here: it may be writing."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _is_record(path: Path) -> bool:
    """Whether a JSON file that lies elsewhere is a record: it need not be a whole one."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.keys() >= _OF_A_RECORD
