"""Pictures that lie in files, with labels that an official list gives: what such readers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.data.dataset import Role, Sample, Target, header_size, safe_relative
from harness.data.files import FileDataset, Listing
from harness.errors import HarnessError

_READERS = 8  # headers are read at a disk's pace, not at a core's


class Row(NamedTuple):
    """One picture of a list: its ``file`` relative to the root, with forward slashes; its
    ``label``; its ``(width, height)`` where the list or the release says it; its ``id`` where that
    is not its file."""

    file: str
    label: int
    size: tuple[int, int] | None = None
    id: str | None = None


@dataclass(frozen=True)
class Listed:
    """One split: what it is called, the file that lists it, its pictures in the list's order."""

    split: str
    source: Path
    rows: Sequence[Row]


@dataclass(frozen=True)
class Annotations:
    """All splits of a data set, with the names that labels index."""

    classes: tuple[str, ...]
    roles: Mapping[Role, Listed]


def open_listed(name: str, root: Path, annotations: Annotations) -> dict[Role, FileDataset]:
    """The data sets of ``annotations``, with files below ``root``.

    Pictures that are not there do not raise: ask ``Dataset.missing``. Raises ``HarnessError`` for
    an empty list, a picture listed twice, a label that is none of the classes, a path that leads
    out of ``root``.
    """
    return {
        role: open_split(name, root, listed, annotations.classes)
        for role, listed in annotations.roles.items()
    }


def open_split(name: str, root: Path, listed: Listed, classes: tuple[str, ...]) -> FileDataset:
    """One split, as ``open_listed`` says."""
    source = str(listed.source)
    if not listed.rows:
        raise HarnessError(f"{source}: lists no picture")
    listing, seen, absent = Listing(root), set[str](), list[str]()
    for row in listed.rows:
        identity = row.id or row.file
        safe_relative(row.file, source)
        if identity in seen:
            raise HarnessError(f"{source}: {identity!r} stands twice")
        if not 0 <= row.label < len(classes):
            raise HarnessError(
                f"{source}: the label of {identity}, {row.label}, is none of the "
                f"{len(classes)} classes (0 to {len(classes) - 1})"
            )
        if row.file not in listing:
            absent.append(identity)
        seen.add(identity)
    samples = [
        Sample(row.id or row.file, size, Target(label=row.label))
        for row, size in zip(listed.rows, _sizes(root, listed.rows), strict=True)
    ]
    files = [row.file for row in listed.rows]
    return FileDataset(name, listed.split, samples, classes, root, files, absent)


def _sizes(root: Path, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(lambda row: row.size or header_size(root / row.file), rows)
