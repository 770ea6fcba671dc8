"""Whether folders of results are whole, and say what their own tables say. Nothing is written."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import records
from harness.errors import HarnessError
from harness.records import DamagedResult, head_path
from harness.results.identity import Pictures, below, contradictions, place_of
from harness.results.layout import Problem, survey
from harness.results.scores import Intervals, wrong_scores
from harness.schema import Record
from harness.tables.rows import Result

_BETWEEN_RENAMES = 0.2
"""Seconds: another run may just have given its table its name, and not yet its record."""
_SHOWN = 3
_AGAIN = "run its cell again, or remove it"


@dataclass(frozen=True)
class Report:
    """What a check found. ``records`` counts all, damaged ones too."""

    folders: Sequence[Path]
    records: int
    problems: Sequence[Problem]


def check(folders: Sequence[Path]) -> Report:
    """Look at every file in ``folders``, which tables would read together.

    Raises ``HarnessError`` where one is no folder, or where there is no record in any.
    """
    layouts = [survey(folder) for folder in folders]
    known = [each for one in layouts for each in (*one.problems, *one.litter)]
    found = _Check(frozenset(folders), known)
    every = (path for layout in layouts for path in layout.records)
    paths = list({os.path.realpath(path): path for path in every}.values())
    if not paths and not found.problems:
        raise HarnessError(
            f"no record in {', '.join(map(str, folders))}; `harness run --out` writes them"
        )
    damaged = []
    for path in paths:
        try:
            found.examine(path)
        except DamagedResult:
            damaged.append(path)
        except HarnessError as error:
            found.problems.append(_told(path, error))
    if damaged:
        time.sleep(_BETWEEN_RENAMES)
    for path in damaged:
        try:
            found.examine(path)
        except HarnessError as error:
            found.problems.append(_told(path, error))
    found.finish()
    problems = list(dict.fromkeys(found.problems))
    return Report(folders, len(paths), sorted(problems, key=lambda each: str(each.path)))


@dataclass
class _Check:
    folders: frozenset[Path]
    problems: list[Problem]
    intervals: Intervals = field(default_factory=Intervals)
    cells: dict[tuple[str, str, bytes, bytes], Result] = field(default_factory=dict)
    pictures: dict[tuple[str, str, str], Pictures] = field(default_factory=dict)
    commands: dict[Path, str] = field(default_factory=dict)

    def examine(self, path: Path) -> None:
        """One record with the files beside it. Raises ``HarnessError`` for one that cannot be read
        whole; nothing of it is kept then."""
        record = records.read(path)
        table = records.read_columns(path, record)
        records.read_head(path, record)
        if (command := record.provenance.command) is not None:
            overwrite = [] if "--overwrite" in command else ["--overwrite"]
            self.commands[path] = shlex.join([*command, *overwrite])
        place = place_of(path, record)
        if path != place:
            self._tell(path, f"of another place: it says that it is {below(place)}", "move it")
        if record.head is None and head_path(path).exists():
            self._tell(head_path(path), "a head that its record does not name", "remove it")
        for what in contradictions(record):
            self._tell(path, what)
        self._tell_together(path, list(wrong_scores(path, record, table, self.intervals)))
        ids = table.get("image_id")
        if ids is None or len(set(ids.tolist())) != len(ids):
            self._tell(path.with_suffix(".parquet"), "not one row for each picture (image_id)")
        else:
            key = record.dataset.fingerprint, record.task, record.protocol.hash
            self.pictures.setdefault(key, Pictures()).add(path, ids)
        self._once(Result(path, record))
        if self.intervals.full:
            self._finish_intervals()

    def _once(self, result: Result) -> None:
        """A cell has one result in all folders, or several that are the same."""
        record, path = result.record, result.path
        if path.parents[3] not in self.folders:
            return  # of a folder in the folder, which no table reads with it
        cell = result.model, record.dataset.name, result.comparable, result.variant
        before = self.cells.setdefault(cell, result)
        if _numbers(before.record) != _numbers(record):
            self._tell(path, f"of the same cell as {before.path}, and differs", "keep one")

    def finish(self) -> None:
        """Look at what several records say together."""
        self._finish_intervals()
        for pictures in self.pictures.values():
            for path, other in pictures.strangers():
                self._tell(
                    path.with_suffix(".parquet"),
                    f"its pictures are not those of {other.with_suffix('.parquet')}, though the "
                    "records say so: one is of another data set",
                )

    def _finish_intervals(self) -> None:
        found: dict[Path, list[str]] = {}
        for path, what in self.intervals.wrong():
            found.setdefault(path, []).append(what)
        for path, several in found.items():
            self._tell_together(path, several)

    def _tell_together(self, path: Path, several: list[str]) -> None:
        """What is wrong with the scores of one record, as one problem."""
        more = [f"and {len(several) - _SHOWN} more"] if len(several) > _SHOWN else []
        if several:
            self._tell(path, "; ".join([*several[:_SHOWN], *more]))

    def _tell(self, path: Path, what: str, advice: str | None = None) -> None:
        command = self.commands.get(path.with_suffix(".json"))
        again = _AGAIN if command is None else f"run it again: {command}"
        self.problems.append(Problem(path, what, advice or again))


def _numbers(record: Record) -> tuple[object, object]:
    return record.per_picture, record.metrics


def _told(path: Path, error: HarnessError) -> Problem:
    """An error names its file first, and what to do, where that is not to run again, last."""
    text = str(error)
    for named in (path, path.with_suffix(".parquet"), head_path(path)):
        if text.startswith(f"{named}: "):
            path, text = named, text.removeprefix(f"{named}: ")
            break
    if isinstance(error, DamagedResult):
        return Problem(path, text, _AGAIN)
    what, _, advice = text.rpartition("; ")
    return Problem(path, what or text, advice if what else "mend its permissions")
