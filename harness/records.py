"""The store of results.

A result is two files: ``<protocol>.json`` with everything a table needs, and beside it
``<protocol>.parquet`` with one row a picture, from which intervals and paired tests are computed
again. The JSON names the parquet's sha256, so a pair that does not belong together is seen. Where a
head was trained there is a third, ``<protocol>.head.safetensors``, named in the same way. A result
is whole without it (it may be too large to publish); a head that is another is damage.

All are written whole under other names before any is renamed (`atomic.py`), the JSON last.
Whoever is killed before the last rename leaves no JSON or one that disowns its parquet: an
unfinished or a damaged cell, which is run again, and never a wrong number. The renames happen
under one lock on the results folder, so that two runs at once leave a pair of one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from harness.atomic import explained, locked, replace, sweep, temporary, write_through
from harness.columns import check_columns, to_numpy, to_parquet
from harness.errors import HarnessError
from harness.schema import (
    SCHEMA_VERSION,
    BadPictureFacts,
    Cost,
    DatasetFacts,
    HeadFacts,
    Metric,
    ModelFacts,
    PerPicture,
    ProtocolFacts,
    Provenance,
    Record,
    pictures_folder,
    record_path,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.columns import Column

__all__ = [
    "SCHEMA_VERSION",
    "BadPictureFacts",
    "Cost",
    "DamagedResult",
    "DatasetFacts",
    "HeadFacts",
    "Metric",
    "ModelFacts",
    "PerPicture",
    "ProtocolFacts",
    "Provenance",
    "Record",
    "adopt",
    "check_folder",
    "check_writable",
    "files",
    "find",
    "finished",
    "head_path",
    "look_at_all",
    "read",
    "read_columns",
    "read_head",
    "record_path",
    "write",
]


class DamagedResult(HarnessError):
    """A result whose files are broken or do not belong together. Its cell is to be run again."""


def write(
    path: Path, record: Record, columns: Mapping[str, Column], head: bytes | None = None
) -> Record:
    """Store a result, its per-picture ``columns`` (each ``[n]``, or of numbers ``[n, k]``, the same
    n, at least one column) and the file of its ``head``, where it has one.

    ``path`` as ``record_path`` gives it for this record. Returns the record with ``per_picture``
    and ``head`` filled in. Raises ``HarnessError`` naming the path where it cannot be written:
    nothing that was on the disk before is touched then, and no temporary file stays.
    """
    out = _results_folder(path)
    names = (record.dataset.name, record.task, record.model.name, record.protocol.name)
    if path != record_path(out, *names, record.variant):
        raise ValueError(f"{path} is not the place of this record")
    table, rows = to_parquet(columns)
    table_path = path.with_suffix(".parquet")
    per_picture = PerPicture(
        file=table_path.name,
        sha256=hashlib.sha256(table).hexdigest(),
        rows=rows,
        columns=list(columns),
    )
    files = {table_path: table}
    facts = None
    if head is not None:
        facts = HeadFacts(file=head_path(path).name, sha256=hashlib.sha256(head).hexdigest())
        files[head_path(path)] = head
    record = record.model_copy(update={"per_picture": per_picture, "head": facts})
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(out):
            sweep(path.parent)
            replace({**files, path: text.encode() + b"\n"})
    return record


def files(path: Path) -> dict[str, bytes]:
    """The files of the result at ``path`` and the pictures beside it, by their names from its
    folder on: what ``adopt`` takes."""
    beside = [path.with_suffix(".parquet"), head_path(path), path]
    pictures = sorted(pictures_folder(path).glob("*.png"))
    there = [each for each in (*pictures, *beside) if each.is_file()]
    return {str(each.relative_to(path.parent)): each.read_bytes() for each in there}


def adopt(path: Path, files: Mapping[str, bytes]) -> Record:
    """Store a result that another process has written, of which ``files`` gave the files, at
    ``path``. Raises ``HarnessError`` as ``write`` does."""
    pictures = {path.parent / name: data for name, data in files.items() if "/" in name}
    own = {path.parent / name: data for name, data in files.items() if "/" not in name}
    with explained(path):
        for folder in {path.parent, *(each.parent for each in pictures)}:
            folder.mkdir(parents=True, exist_ok=True)
        with locked(_results_folder(path)):
            sweep(path.parent)
            replace(own)
            for each, data in pictures.items():
                replace({each: data})
    return _whole(path)


def check_writable(out: Path) -> None:
    """Find out before a run whether its results can be stored; clear away killed runs' litter.

    Raises ``HarnessError`` naming the folder and the reason.
    """
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            _sweep_all(out)
            probe = temporary(out / "probe")
            try:
                write_through(probe, b"\0" * 4096)
            finally:
                with contextlib.suppress(OSError):
                    probe.unlink(missing_ok=True)


def tidy(out: Path) -> None:
    """Clear away killed runs' litter where a run has nothing to do, if that can be done."""
    if any(out.glob(".*.tmp")) or any(out.glob("*/*/*/.*.tmp")):
        with contextlib.suppress(OSError, HarnessError), locked(out):
            _sweep_all(out)


def _sweep_all(out: Path) -> None:
    for folder in (out, *(found for found in out.glob("*/*/*") if found.is_dir())):
        sweep(folder)


def check_folder(folder: Path) -> None:
    """Raises ``HarnessError`` where ``folder`` is no folder, or cannot be looked into."""
    try:
        os.scandir(folder).close()
    except NotADirectoryError:
        raise HarnessError(f"{folder}: a file; name the folder that records are in") from None
    except FileNotFoundError:
        raise HarnessError(f"{folder}: no such folder; `harness run --out` makes one") from None
    except OSError as error:
        raise HarnessError(f"{folder}: cannot be read: {error.strerror}") from None


def read(path: Path) -> Record:
    """The record at ``path``; its table is not looked at.

    Raises ``DamagedResult`` for what is no record, and a plain ``HarnessError`` for a file that is
    missing, unreadable, or written by a later version of the harness.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such result") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        facts = json.loads(data, parse_constant=_refuse, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise DamagedResult(f"{path}: damaged, not strict JSON: {error}") from None
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: of schema {version}; this harness reads up to {SCHEMA_VERSION}; upgrade it"
        )
    if isinstance(version, int) and version < SCHEMA_VERSION:
        raise DamagedResult(
            f"{path}: of schema {version}, which this harness does not read any more (it reads "
            f"{SCHEMA_VERSION}); run its cell again"
        )
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        what = f"{where}: {what}" if where else what
        raise DamagedResult(f"{path}: damaged, not a record: {what}") from None


def read_columns(
    path: Path, record: Record | None = None, names: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The per-picture columns of the record at ``path``, each ``[n]`` or ``[n, k]``: all, or those
    of ``names`` that there are. ``record`` saves reading it again.

    Raises ``DamagedResult`` where the table is missing or is not the one the record was made of.
    """
    import pyarrow
    import pyarrow.parquet

    record = record or read(path)
    data = _table_bytes(path, record)
    table_path, facts = path.with_suffix(".parquet"), record.per_picture
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        columns = file.schema_arrow.names
        there = [name for name in columns if names is None or name in names]
        table = file.read(there, use_threads=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DamagedResult(f"{table_path}: damaged: {error}") from None
    if facts is None or (table.num_rows, columns) != (facts.rows, facts.columns):
        raise DamagedResult(f"{table_path}: damaged: not the rows and columns that {path.name} has")
    try:
        found = {name: to_numpy(table.column(name)) for name in table.column_names}
        check_columns(found, record.metrics, columns)
    except ValueError as error:
        raise DamagedResult(f"{table_path}: damaged: {error}") from None
    return found


def read_head(path: Path, record: Record) -> bytes | None:
    """The file of the head that the record at ``path`` names; None where there is none.

    Raises ``DamagedResult`` for one that is not the record's.
    """
    if record.head is None:
        return None
    file = head_path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HarnessError(f"{file}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != record.head.sha256:
        raise DamagedResult(f"{file}: not the head that {path.name} was made with")
    return data


def finished(path: Path) -> Record | None:
    """The record at ``path`` if it is whole; None where the cell has not been run (to its end).

    Raises ``DamagedResult`` where JSON, table and head are broken or disagree. Whether a whole
    record is of the very model, data and settings in question is the caller's to compare.
    """
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _whole(path)
    except DamagedResult:
        # Another run may be between its two renames: look again when none can be.
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # results published read-only have no writer
                stack.enter_context(locked(_results_folder(path)))
            return _whole(path)


def find(
    out: Path,
    damaged: list[HarnessError] | None = None,
    models: Collection[str] | None = None,
) -> Iterator[tuple[Path, Record]]:
    """Every whole record under ``out`` that has a score, or those of ``models``, in the order of
    their paths.

    One that is not so raises; with a list in ``damaged`` its error is put there instead, so that a
    table can be made of the others and say what it lacks.
    """
    for path, found in look_at_all(out, lambda path: not models or path.parent.name in models):
        if isinstance(found, Record):
            yield path, found
        elif damaged is None:
            raise found
        else:
            damaged.append(found)


def look_at_all(
    out: Path, wanted: Callable[[Path], bool] = lambda _: True
) -> Iterator[tuple[Path, Record | HarnessError]]:
    """Every record under ``out`` whose path is ``wanted``, in the order of their paths, or why it
    cannot be counted on; and folders that cannot be looked into, with the reason."""
    folders: list[tuple[Path, Record | HarnessError]] = []
    paths = [path for path in _cells(out, folders) if wanted(path)]
    yield from folders
    for path in sorted(paths):
        try:
            record = finished(path)
        except HarnessError as error:
            yield path, error
            continue
        if record is None:
            yield path, HarnessError(f"{path}: a link to nothing; remove it")
        elif not record.metrics:
            yield path, HarnessError(f"{path}: it has no score; run its cell again")
        else:
            yield path, record


def _cells(out: Path, told: list[tuple[Path, Record | HarnessError]]) -> Iterator[Path]:
    """Every ``<dataset>/<task>/<model>/*.json`` below ``out``; a folder that cannot be looked into
    is told."""
    folders = [out]
    for _ in range(4):
        paths = []
        for folder in folders:
            try:
                with os.scandir(folder) as entries:
                    paths += [folder / entry.name for entry in entries if entry.name[0] != "."]
            except (NotADirectoryError, FileNotFoundError):
                continue
            except OSError as error:
                what = HarnessError(f"{folder}: cannot be read: {error.strerror}")
                told.append((folder, what))
        folders = paths
    yield from (path for path in folders if path.suffix == ".json")


def _results_folder(path: Path) -> Path:
    return path.parents[3]


def _whole(path: Path) -> Record:
    record = read(path)
    _table_bytes(path, record)
    read_head(path, record)
    return record


def head_path(path: Path) -> Path:
    """Where the head of the record at ``path`` lies, if it has one: beside it."""
    return path.with_suffix(".head.safetensors")


def _table_bytes(path: Path, record: Record) -> bytes:
    table_path = path.with_suffix(".parquet")
    if record.per_picture is None or record.per_picture.file != table_path.name:
        raise DamagedResult(f"{path}: damaged: it does not name {table_path.name} as its table")
    try:
        data = table_path.read_bytes()
    except FileNotFoundError:
        raise DamagedResult(f"{table_path}: missing, though {path.name} names it") from None
    except OSError as error:
        raise HarnessError(f"{table_path}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != record.per_picture.sha256:
        raise DamagedResult(f"{table_path}: not the table that {path.name} was made of")
    return data


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) != len(pairs):
        raise ValueError("a key stands twice")
    return facts
