"""Pictures that runs saved of their predictions, a model beside its baseline.

They are written anew, smaller, into the page until its share of bytes is spent: the first of every
pair before the second of any. What is left out is counted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from harness.pictured.choice import FILE_NAME
from harness.report.origins import link
from harness.schema import pictures_folder
from harness.tables.leaderboard import Board
from harness.tables.rows import Result

WIDEST = 1200
_QUALITY = 80
_KINDS = ("worst", "median", "best")
_MOST_PIXELS = 64_000_000  # a page that `--save-predictions` draws has a few million
_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Picture(NamedTuple):
    model: str
    label: str
    id: str
    link: str
    source: str
    width: int
    height: int


@dataclass
class Group:
    """Pictures of one model, or of a baseline and a model; a row has one for each or None."""

    dataset: str
    task: str
    words: list[str]
    models: list[str]
    rows: list[list[Picture | None]] = field(default_factory=list)
    left_out: int = 0


class _File(NamedTuple):
    path: Path
    model: str
    kind: str
    number: int
    id: str


_Row = Sequence[_File | None]


def groups(
    boards: Sequence[Board],
    words: Sequence[list[str]],
    start: Path,
    budget: int,
    tell: Callable[[str], None],
) -> list[Group]:
    """Pictures of the results of ``boards``, of at most ``budget`` bytes in all; ``words`` tell the
    protocol of each board. Links start from the folder ``start``; a file that is no picture is
    told."""
    found: list[tuple[Group, list[_Row]]] = []
    for board, told in zip(boards, words, strict=True):
        for results in _together(board):
            files = [_files(each, tell) for each in results]
            group = Group(
                board.record.dataset.name,
                board.record.task,
                told,
                [each.model for each in results],
            )
            found.append((group, list(_rows(files))))
    spent, full = 0, False
    for turn in zip_longest(*(rows for _, rows in found)):
        for (group, _), row in zip(found, turn, strict=True):
            if row is None:
                continue
            read = [] if full else [_read(each, start, tell) for each in row]
            cost = sum(len(each.source) for each in read if each is not None)
            full = full or spent + cost > budget
            if full:
                group.left_out += sum(each is not None for each in row)
            elif any(read):
                spent += cost
                group.rows.append(read)
    return [group for group, _ in found if group.rows or group.left_out]


def _together(board: Board) -> Iterator[list[Result]]:
    """Results with pictures: baseline and model, then those without the other."""
    there = [each for each in board.standings if pictures_folder(each.result.path).is_dir()]
    paths = {each.result.path for each in there}
    beside: set[Path] = set()
    for each in there:
        if each.base is not None and each.base.path in paths:
            beside |= {each.base.path, each.result.path}
            yield [each.base, each.result]
    for each in there:
        if each.result.path not in beside:
            yield [each.result]


def _files(result: Result, tell: Callable[[str], None]) -> list[_File]:
    """In the order worst, median, best."""
    found: list[_File] = []
    folder = pictures_folder(result.path)
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        tell(f"left out: {folder}: cannot be read: {error.strerror}")
        paths = []
    for path in paths:
        if FILE_NAME.fullmatch(path.name) and path.is_file():
            kind, number, identity = path.stem.split("-", 2)
            found.append(_File(path, result.model, kind, int(number), identity))
    return sorted(found, key=lambda each: (_KINDS.index(each.kind), each.number, each.id))


def _rows(files: Sequence[list[_File]]) -> Iterator[_Row]:
    """What both models show of one picture, then the others as they come."""
    if len(files) == 1:
        yield from ([each] for each in files[0])
        return
    first, second = files
    by_id = {each.id: each for each in second}
    both = [(each, by_id[each.id]) for each in first if each.id in by_id]
    yield from (list(pair) for pair in both)
    shown = {each.id for each, _ in both}
    left = ([each for each in those if each.id not in shown] for those in (first, second))
    yield from (list(pair) for pair in zip_longest(*left))


def _read(file: _File | None, start: Path, tell: Callable[[str], None]) -> Picture | None:
    if file is None:
        return None
    try:
        with Image.open(file.path, formats=["PNG"]) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(f"{opened.width} × {opened.height} pixels are too many")
            image = opened.convert("RGB")
    except _ERRORS as error:
        tell(f"left out: {file.path}: no picture that can be read: {error}")
        return None
    if image.width > WIDEST:
        height = max(1, round(image.height * WIDEST / image.width))
        image = image.resize((WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    label = f"{file.kind} {file.number}"
    return Picture(file.model, label, file.id, link(file.path, start), source, *image.size)
