"""Captions one a line: Flickr30k's own release, and the CSV files that others made of it.

Young et al., "From image descriptions to visual denotations" (TACL 2014): its
results_20130124.token has lines ``1000092795.jpg#0<TAB>Two young guys …``. Kaggle's results.csv has
``1000092795.jpg| 0| Two young guys …``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from harness.data.captions import Described, open_described
from harness.data.dataset import safe_relative
from harness.data.files import FileDataset, read_lines
from harness.errors import HarnessError

_LONGEST = 1_000_000  # characters of a field: csv's own bound is an eighth of that
_PICTURE = {"image", "image_name", "filename", "file_name"}
_TEXT = {"caption", "comment", "sentence", "raw"}

_Line = tuple[str, str, str]
"""Where it stands, the picture's file, the caption."""


def read_caption_list(
    name: str, root: Path, file: str, images: str, list_file: str | None = None
) -> FileDataset:
    """The pictures of ``file`` in the order in which they are named first, or those of
    ``list_file`` (a name a line) in its order; the other paths are relative to ``root``.

    A file whose name ends in .csv has a heading; else it is in the release's form. A sample's id is
    its picture's file name. Raises ``HarnessError``.
    """
    path = root / file
    said: dict[str, list[object]] = {}
    first: dict[str, str] = {}
    for where, picture, caption in _csv(path) if file.lower().endswith(".csv") else _token(path):
        first.setdefault(picture, where)
        said.setdefault(picture, []).append(caption)
    chosen, split = list(said), path.stem
    if list_file is not None:
        chosen, split = list(_chosen(root / list_file, path, said)), Path(list_file).stem
    rows = [Described(each, each, said[each], first[each]) for each in chosen]
    return open_described(name, split, root / images, rows, path)


def _token(path: Path) -> Iterator[_Line]:
    for number, line in read_lines(path):
        found = re.fullmatch(r"([^\t]+)#[0-9]+\t(.+)", line)
        if not found:
            raise HarnessError(
                f"{path}:{number}: {line[:60]!r}: NAME.jpg#0, a tab and a caption were expected"
            )
        yield f"{path}:{number}", found[1], found[2]


def _csv(path: Path) -> Iterator[_Line]:
    lines = read_lines(path)
    if not lines:
        raise HarnessError(f"{path}: is empty; a heading and captions were expected")
    heading = lines[0][1]
    mark = "|" if "|" in heading else ","
    names = [each.strip().lower() for each in heading.split(mark)]
    places = [
        next((place for place, each in enumerate(names) if each in wanted), None)
        for wanted in (_PICTURE, _TEXT)
    ]
    picture, text = places
    if picture is None or text is None:
        raise HarnessError(
            f"{path}:1: the heading {heading[:60]!r} names no picture and caption (one of "
            f"{', '.join(sorted(_PICTURE))} and one of {', '.join(sorted(_TEXT))})"
        )
    for number, line in lines[1:]:
        fields = _fields(line, mark, f"{path}:{number}")
        if len(fields) == len(names) - 1 and "comment_number" in names:
            fields = _mended(fields, names.index("comment_number"))
        if len(fields) != len(names):
            raise HarnessError(
                f"{path}:{number}: {len(fields)} fields where the heading has {len(names)}: "
                f"{line[:60]!r}"
            )
        yield f"{path}:{number}", fields[picture].strip(), fields[text].strip()


def _fields(line: str, mark: str, where: str) -> list[str]:
    if mark == "|":  # Kaggle's file has no quoting: a quotation mark is one
        return line.split(mark)
    csv.field_size_limit(_LONGEST)
    try:
        return next(csv.reader([line], delimiter=mark, strict=True))
    except csv.Error as error:
        raise HarnessError(f"{where}: not a line of CSV: {error}") from None


def _mended(fields: list[str], number: int) -> list[str]:
    """One line of Kaggle's file, of 2199200615.jpg, lacks the mark between number and caption."""
    found = re.fullmatch(r"\s*([0-9]+)\s+(\S.*)", fields[number])
    return fields if not found else [*fields[:number], found[1], found[2], *fields[number + 1 :]]


def _chosen(chosen: Path, path: Path, said: dict[str, list[object]]) -> Iterator[str]:
    """The names of a list, with or without the suffix of a picture."""
    for number, line in read_lines(chosen):
        where = f"{chosen}:{number}"
        name = safe_relative(line, where).name
        name = name if name in said else f"{name}.jpg"
        if name not in said:
            raise HarnessError(f"{where}: {line!r} has no caption in {path}")
        yield name
