"""Parquet shards as Hugging Face writes them: a column of encoded pictures, a column of labels.

A picture is read with the others of its row group (a hundred, mostly), which is kept until another
is wanted. That is right for one pass in order; a shuffled stream reads a group for each picture,
and is better served by files or tar archives.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.dataset import Dataset, Role, Sample, Target, header_size
from harness.data.shards import named_files
from harness.data.sizes import remembered
from harness.errors import BadPicture, HarnessError


class Cell(NamedTuple):
    """Where a picture lies: a row of a row group of a file, both from 0."""

    file: Path
    group: int
    row: int


class Listed(NamedTuple):
    """A picture: what the file calls it (None: nothing), its label, and where it lies."""

    path: str | None
    label: int
    cell: Cell


class ParquetDataset(Dataset):
    """A data set whose pictures lie in a column of parquet files."""

    def __init__(
        self,
        name: str,
        split: str,
        listed: Sequence[Listed],
        ids: Sequence[str],
        classes: tuple[str, ...],
        image: str = "image",
    ) -> None:
        self.name, self.split, self.classes = name, split, classes
        self._cells = [each.cell for each in listed]
        self._image = image
        self._kept: tuple[tuple[Path, int], list[bytes | None]] | None = None
        files = sorted({cell.file for cell in self._cells})
        sizes = remembered(files, ids, self._sizes)
        self.samples = [
            Sample(identity, size, Target(label=each.label))
            for identity, size, each in zip(ids, sizes, listed, strict=True)
        ]
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, index: int) -> bytes:
        cell = self._cells[index]
        try:
            data = self._group(cell.file, cell.group)[cell.row]
        except HarnessError as error:
            raise BadPicture(f"{self.where(index)}: {error}") from None
        if data is None:
            raise BadPicture(f"{self.where(index)}: the column {self._image!r} is empty")
        return data

    def where(self, index: int) -> str:
        cell = self._cells[index]
        return f"{cell.file}: row group {cell.group}, row {cell.row}"

    def _sizes(self) -> Iterator[tuple[int, int]]:
        order = sorted(range(len(self._cells)), key=lambda index: self._cells[index])
        sizes = [(0, 0)] * len(order)
        for index in order:
            cell = self._cells[index]
            data = self._group(cell.file, cell.group)[cell.row]
            sizes[index] = header_size(io.BytesIO(data or b""))
        return iter(sizes)

    def _group(self, path: Path, group: int) -> list[bytes | None]:
        if self._kept is None or self._kept[0] != (path, group):
            with _opened(path) as opened:
                column = _column(path, opened, group, self._image).to_pylist()
            values = [each.get("bytes") if isinstance(each, dict) else each for each in column]
            self._kept = ((path, group), values)
        return self._kept[1]


def read_parquet(
    name: str, root: Path, splits: dict[Role, str], image: str, label: str
) -> dict[Role, ParquetDataset]:
    """Open parquet files, by role the pattern of their names.

    Ids are ``<file>/<row>``. Names of classes are those of the files' own ``ClassLabel``, or else
    the labels as text. Raises ``HarnessError``.
    """
    files = {role: named_files(root, pattern) for role, pattern in splits.items()}
    listed = {
        role: [row for file in each for row in rows(file, image, label)]
        for role, each in files.items()
    }
    names = {class_names(file, label) for each in files.values() for file in each[:1]}
    if len(names) > 1:
        raise HarnessError(f"{root}: the splits do not name the same classes")
    (classes,) = names
    for role, pictures in listed.items():
        if not pictures:
            raise HarnessError(f"{files[role][0]}: no picture in it, nor in the other files")
    if classes is None:
        count = 1 + max(each.label for pictures in listed.values() for each in pictures)
        classes = tuple(str(number) for number in range(count))
    opened = {}
    for role, pictures in listed.items():
        check_labels(pictures, len(classes))
        ids, place = [], 0
        for before, each in zip([None, *pictures], pictures, strict=False):
            place = place + 1 if before and before.cell.file == each.cell.file else 0
            ids.append(f"{each.cell.file.stem}/{place:06d}")
        opened[role] = ParquetDataset(name, splits[role], pictures, ids, classes, image)
    return opened


def check_labels(pictures: Sequence[Listed], classes: int) -> None:
    """Raises ``HarnessError`` for a label that is none of the classes."""
    for each in pictures:
        if not 0 <= each.label < classes:
            raise HarnessError(
                f"{each.cell.file}: the label in row {each.cell.row} of row group "
                f"{each.cell.group}, {each.label}, is none of the {classes} classes "
                f"(0 to {classes - 1})"
            )


def class_names(file: Path, label: str) -> tuple[str, ...] | None:
    """The names of labels as Hugging Face's ``datasets`` writes them into a file's metadata."""
    with _opened(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        info = json.loads(metadata.get(b"huggingface", b"null"))
        return tuple(str(name) for name in info["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rows(file: Path, image: str, label: str) -> Iterator[Listed]:
    """The rows of a file in its order; pictures are not read. Raises ``HarnessError``."""
    with _opened(file) as opened:
        for group in range(opened.num_row_groups):
            labels = _column(file, opened, group, label).to_pylist()
            paths = opened.read_row_group(group, columns=[f"{image}.path"], use_threads=False)
            called = paths.column(0).to_pylist() if paths.num_columns else [None] * len(labels)
            for row, (value, path) in enumerate(zip(labels, called, strict=True)):
                if not isinstance(value, int) or isinstance(value, bool):
                    raise HarnessError(
                        f"{file}: column {label!r}, row {row} of row group {group}: {value!r} is "
                        "no label (0, 1, 2 …)"
                    )
                name = path.get("path") if isinstance(path, dict) else None
                yield Listed(name if isinstance(name, str) else None, value, Cell(file, group, row))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``. Raises ``HarnessError`` for a damaged one."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (OSError, arrow.ArrowException) as error:
        raise HarnessError(
            f"{file}: not a sound parquet file: {error}; download it again"
        ) from None


def _column(file: Path, opened: Any, group: int, column: str) -> Any:
    # Threads of pyarrow do not live on in forked workers.
    table = opened.read_row_group(group, columns=[column], use_threads=False)
    if table.num_columns == 0:
        names = ", ".join(opened.schema_arrow.names)
        raise HarnessError(f"{file}: has no column {column!r}; there are {names}")
    return table.column(0)
