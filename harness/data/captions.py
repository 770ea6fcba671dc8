"""Pictures and what people say of them: what readers of captions share, and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.dataset import Dataset, Role, Sample, Target, header_size, safe_relative
from harness.data.files import FileDataset, Listing, read_lines
from harness.data.json_files import parse_line
from harness.errors import HarnessError

_READERS = 8  # headers are read at a disk's pace, not at a core's


class Described(NamedTuple):
    """One picture of a list: its ``id``; its ``file`` relative to the folder of pictures, with
    forward slashes; what the list has for its ``captions``, not yet looked at; ``where`` the list
    says so; its ``(width, height)`` where the list says it."""

    id: str
    file: str
    captions: object
    where: str
    size: tuple[int, int] | None = None


def open_described(
    name: str, split: str, folder: Path, rows: Sequence[Described], source: Path
) -> FileDataset:
    """The data set of ``rows``, which ``source`` lists, with pictures below ``folder``.

    Pictures that are not there do not raise: ask ``Dataset.missing``. Raises ``HarnessError`` for
    an empty list, an id that stands twice, a path that leaves the folder, and a picture without a
    caption or with one that is no text or empty. No caption is too long.
    """
    if not rows:
        raise HarnessError(f"{source}: lists no picture of the split {split!r}")
    seen = dict[str, str]()
    listing, absent = Listing(folder), []
    for row in rows:
        safe_relative(row.file, row.where)
        if row.id in seen:
            raise HarnessError(f"{row.where}: {row.id!r} stands twice (first: {seen[row.id]})")
        seen[row.id] = row.where
        if row.file not in listing:
            absent.append(row.id)
    samples = [
        Sample(row.id, size, Target(captions=_captions(row)))
        for row, size in zip(rows, _sizes(folder, rows), strict=True)
    ]
    return FileDataset(name, split, samples, (), folder, [row.file for row in rows], absent)


def read_json_lines(
    name: str, root: Path, splits: Mapping[Role, str], images: str
) -> dict[Role, Dataset]:
    """A file a role with a picture a line: ``{"image": PATH, "captions": [TEXT, …]}``.

    Paths are relative to the folder ``images`` of ``root``. An ``id`` may stand beside them; else
    the path is it. What else a line says is not looked at. Raises ``HarnessError``.
    """
    return {
        role: open_described(
            name, Path(file).stem, root / images, list(_lines(root / file)), root / file
        )
        for role, file in splits.items()
    }


def _lines(path: Path) -> Iterator[Described]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        data = parse_line(line, where)
        file = text_of(data, "image", where)
        identity = text_of(data, "id", where) if "id" in data else file
        if "captions" not in data:
            raise HarnessError(f'{where}: has no captions: "captions": [TEXT, …] was expected')
        yield Described(identity, file.replace("\\", "/"), data["captions"], where)


def text_of(data: Mapping[str, Any], key: str, where: str) -> str:
    """The text ``data[key]``. Raises ``HarnessError`` where there is none."""
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise HarnessError(f"{where}: {key} is {_short(value)}; text was expected")
    _refuse_halves(value, f"{where}: {key}")
    return value


def _captions(row: Described) -> tuple[str, ...]:
    found = row.captions
    if not isinstance(found, list):
        raise HarnessError(
            f"{row.where}: captions is {_short(found)}; a list of texts was expected"
        )
    if not found:
        raise HarnessError(
            f"{row.where}: {row.id!r} has no caption: give it one, or take it off the list"
        )
    for place, caption in enumerate(found):
        if not isinstance(caption, str):
            raise HarnessError(
                f"{row.where}: captions[{place}] is {_short(caption)}; text was expected"
            )
        if not caption.strip():
            raise HarnessError(f"{row.where}: captions[{place}] is empty")
        _refuse_halves(caption, f"{row.where}: captions[{place}]")
    return tuple(found)


def _refuse_halves(text: str, where: str) -> None:
    """JSON can write half of a surrogate pair, which no file name and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HarnessError(f"{where} holds what is no character") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _sizes(folder: Path, rows: Sequence[Described]) -> Iterator[tuple[int, int]]:
    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(lambda row: row.size or header_size(folder / row.file), rows)
