"""Folders of results brought together in one.

All is looked at before anything is copied: a record that is not whole, or one that differs from
another of the same place, and nothing is. Then each record is copied with what lies beside it,
under the lock that runs take and the record last, so that whoever is stopped can start again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness import records
from harness.atomic import explained, locked, replace
from harness.errors import HarnessError
from harness.records import DamagedResult, Record, head_path
from harness.results.identity import below, place_of
from harness.results.layout import CELL_DEPTH, survey
from harness.schema import pictures_folder
from harness.storage.mirrors import push

Prefer = Literal["first", "last"]
State = Literal["new", "the same", "replaces"]

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Found:
    """A whole record, and its file as it is read. Equal records name equal tables and heads by
    their digests."""

    path: Path
    record: Record
    text: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Found) and self.record == other.record


@dataclass
class Step:
    """What becomes of one place in the folder: ``chosen`` goes there, or is there."""

    target: Path
    before: bytes | None
    """The text of what is there, whole or not."""
    chosen: Found
    state: State
    beside: list[tuple[Path, Path]] = field(default_factory=list)
    """Of the same record: files that only a source has, and where they go."""


def plan(sources: Sequence[Path], into: Path, prefer: Prefer | None = None) -> list[Step]:
    """What a merge would do, place by place.

    Of records that differ ``prefer`` takes the first or the last, ``into`` being before all
    sources. Raises ``HarnessError`` where a source has none, one is not whole or not in its place,
    or two differ and nothing is preferred.
    """
    if into.exists():
        records.check_folder(into)
    places: dict[Path, list[Found]] = {}
    wrong: list[str] = []
    for source in sources:
        layout = survey(source)
        if into.exists() and source.samefile(into):
            raise HarnessError(f"{source}: is the folder to merge into; name others")
        wrong += [f"{each.path}: {each.what}" for each in layout.problems]
        own = [path for path in layout.records if len(path.relative_to(source).parts) == CELL_DEPTH]
        if not own and not layout.problems:
            raise HarnessError(f"{source}: no record in it; `harness run --out` writes them")
        for path in own:
            try:
                found = _whole(path)
            except HarnessError as error:
                wrong.append(str(error))
                continue
            if path != (place := place_of(path, found.record)):
                wrong.append(f"{path}: says that it is {below(place)}")
            places.setdefault(path.relative_to(source), []).append(found)
    _refuse(
        wrong, "records are not whole or not in their place (`harness results check` says more)"
    )
    steps, differing = [], []
    for relative, found_there in sorted(places.items()):
        target = into / relative
        step, others = _step(target, found_there, prefer)
        steps.append(step)
        differing += [f"{one} and {other}" for one, other in others]
    _refuse(
        differing,
        "results of the same place differ (--prefer first or last chooses)",
    )
    return steps


def carry_out(steps: Sequence[Step], into: Path) -> None:
    """Do what ``plan`` says. Raises ``HarnessError`` where a file cannot be read or written, or is
    not what it was; what was copied before is whole, and the same command goes on from there."""
    if any(step.state != "the same" or step.beside for step in steps):
        records.check_writable(into)
    for step in steps:
        if step.state != "the same":
            _copy(step, into)
        for source, target in step.beside:
            head = step.chosen.record.head
            of_head = head is not None and target == head_path(step.target)
            data = _bytes(source, head.sha256 if head is not None and of_head else None)
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with locked(into):
                    if not target.exists():
                        replace({target: data})
        push(step.target)


def _copy(step: Step, into: Path) -> None:
    record, source, target = step.chosen.record, step.chosen.path, step.target
    table_path, facts = source.with_suffix(".parquet"), record.per_picture
    table = _bytes(table_path, "" if facts is None else facts.sha256)
    files = {target.with_suffix(".parquet"): table}
    if (head := records.read_head(source, record)) is not None:
        files[head_path(target)] = head
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(into):
            if _text(target) != step.before:
                raise HarnessError(f"{target}: was written meanwhile; merge again")
            # What is left of another record must not be taken for this one's.
            for old in (head_path(target), *_pictures(target)):
                old.unlink(missing_ok=True)
            replace({**files, target: step.chosen.text})


def _step(
    target: Path, found: list[Found], prefer: Prefer | None
) -> tuple[Step, list[tuple[Path, Path]]]:
    """What becomes of a place, and the pairs of results that differ there."""
    before = _text(target)
    there = None
    if before is not None:
        with contextlib.suppress(DamagedResult):  # as a run would, over what is damaged
            there = _whole(target)
    every = found if there is None else [there, *found]
    different = [each for place, each in enumerate(every) if each not in every[:place]]
    chosen = every[-1] if prefer == "last" else every[0]
    state: State = "new" if there is None else "replaces"
    if chosen == there:
        state = "the same"
    step = Step(target, before, chosen, state)
    step.beside = list(_beside(step, [each for each in found if each == chosen]))
    pairs = [(different[0].path, other.path) for other in different[1:]]
    return step, [] if prefer is not None else pairs


def _beside(step: Step, same: list[Found]) -> Iterator[tuple[Path, Path]]:
    """Files of the sources' same record that its place will not have: a head that was left out of
    one of them, pictures."""
    kept, target = step.state == "the same", head_path(step.target)
    there = kept and target.exists()
    if step.chosen.record.head is not None and not there:
        heads = [path for each in same if (path := head_path(each.path)).exists()]
        if kept or not head_path(step.chosen.path).exists():  # which would be copied with it
            yield from ((path, target) for path in heads[:1])
    named: set[str] = set()
    if kept:
        named = {path.name for path in _pictures(step.target)}
    for each in same:
        for path in _pictures(each.path):
            if path.name not in named:
                named.add(path.name)
                yield path, pictures_folder(step.target) / path.name


def _pictures(record: Path) -> list[Path]:
    folder = pictures_folder(record)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())


def _whole(path: Path) -> Found:
    """The record at ``path`` with its text. Raises ``HarnessError`` where it is not whole."""
    record = records.finished(path)
    text = _text(path)
    if record is None or text is None:
        raise HarnessError(f"{path}: is not there any more; merge again")
    records.read_columns(path, record)
    return Found(path, record, text)


def _text(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None


def _bytes(path: Path, sha256: str | None) -> bytes:
    """The file at ``path``, of that digest where one is given."""
    data = _text(path)
    if data is None or (sha256 is not None and hashlib.sha256(data).hexdigest() != sha256):
        raise HarnessError(f"{path}: was written anew meanwhile; merge again")
    return data


def _refuse(found: Sequence[str], what: str) -> None:
    if found:
        more = len(found) - _SHOWN
        shown = [*found[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
        raise HarnessError(f"nothing was copied: {what}: " + "; ".join(shown))
