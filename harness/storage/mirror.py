"""A folder of results on a URL, and its mirror on this machine, which all else reads and writes.

``ROOT/records`` is an ordinary folder of results; ``ROOT/state.json`` says of each of its files
which object it was when the two were last the same. So what is new there is fetched, what has gone
there goes here, and what was written here and is not there yet can be told: it is uploaded by the
next run, however the last one ended.

A result goes up as it is written on a disk: pictures, head and table before the record, which names
their sha256. Another machine may write the same result at the same time; so whoever has written a
record looks whether all its files are still there, and writes them again if not. The last one to
write a record has seen its own table beside it, and a machine that dies between leaves a record
that disowns its table: a damaged result, which is run again, and never a wrong number.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.atomic import explained, locked, replace, sweep
from harness.storage.cells import belongs, cell_of, disowned, files_of
from harness.storage.remote import Gone, Object, Remote, StorageTrouble, at, in_parallel, md5_of
from harness.storage.urls import local_folder

STATE = "state.json"
_PROBE = ".probe"
_AGAIN = 8
"""Looks at, and writes of, what another machine is writing too."""
_BATCH = 64 * 2**20
"""Bytes that are fetched before they are given their names."""


class _Stat(NamedTuple):
    """Bytes of a file, and when it was written (ns)."""

    size: int
    written: int


class _File(NamedTuple):
    """What a file is, and what it was when it was read."""

    data: bytes
    here: _Stat | None


class _Entry(NamedTuple):
    """A file as it was when it was the object of that sign."""

    sign: str
    size: int
    written: int


class Mirror:
    """The results on ``url``. ``folder`` is where they are on this machine. Methods raise
    ``HarnessError``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = local_folder("results", url)
        self.folder = self._root / "records"

    def check_writable(self) -> None:
        """Find out whether results can be stored there, before any is computed."""
        self._remote.write(_PROBE, b"\0")
        with contextlib.suppress(StorageTrouble):  # who may write need not be allowed to remove
            self._remote.remove(_PROBE)

    def pull(self) -> list[str]:
        """Make the mirror what is there. What was written here, and is not there, stays, unless
        another machine has written that very result since. Gives the records that are to be
        uploaded, by their names below the folder."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        changed = set[str]()
        for left in reversed(range(_AGAIN)):
            listing = self._remote.listing()
            there = {name: found for name, found in listing.items() if belongs(name)}
            changed |= self._take_over(there)
            # Another machine may have been between a table and its record when we looked.
            if not left or not any(disowned(self.folder / name) for name in changed):
                break
            time.sleep(random.uniform(0.2, 0.6))
        return sorted(self._unsent(self._entries(), self._here()))

    def push(self, record: str) -> None:
        """Upload the files of a record that are not there yet, the record last, and remove what it
        had there and has not here any more."""
        before = known = self._entries()
        done = dict[str, _Entry]()
        for _ in range(_AGAIN):
            with explained(self.folder), locked(self.folder):
                files = {
                    name: _File((self.folder / name).read_bytes(), _stat(self.folder / name))
                    for name in files_of(self.folder, record)
                }
            gone = {name for name in before if cell_of(name) == record and name not in files}
            stale = [
                name
                for name, file in files.items()
                if not _is_that(done.get(name) or known.get(name), file.here)
            ]
            if not stale and not gone:
                return
            for name, file in files.items():
                if name in stale or name == record:
                    self._remote.write(name, file.data)
            seen = dict(zip(files, in_parallel(self._holds, files.items()), strict=True))
            if seen.get(record) is None:  # whoever has written it since looks after it
                return
            done = {
                name: _Entry(found.sign, *here)
                for name, found in seen.items()
                if found is not None and (here := files[name].here) is not None
            }
            if len(done) == len(files):
                break
            known = {}
            time.sleep(random.uniform(0.2, 1.0))
        else:
            raise StorageTrouble(
                f"{self.url}/{record}: other machines write the same result again and again; "
                "it is kept on this machine, and the same command uploads it"
            )
        for name in gone:
            self._remote.remove(name)
        self._note(done, gone)

    def _holds(self, named: tuple[str, _File]) -> Object | None:
        name, file = named
        return self._remote.holds(name, file.data)

    @property
    def _remote(self) -> Remote:
        return at(self.url)

    def _take_over(self, there: Mapping[str, Object]) -> set[str]:
        """Fetch and remove what differs; the records of which a file was fetched."""
        entries, signs = self._entries(), dict[str, str]()
        files = self._here()
        unsent = self._unsent(entries, files)
        fetch, remove, same = dict[str, Object](), set[str](), dict[str, _Entry]()
        for name in {*there, *entries}:
            found, entry = there.get(name), entries.get(name)
            here = files.get(name)
            if found is None:
                if cell_of(name) not in unsent:
                    remove.add(name)
                continue
            signs[name] = found.sign
            if _is_that(entry, here) and entry is not None and entry.sign == found.sign:
                continue
            if here is not None and here[0] == found.size and _is(self.folder / name, found.sign):
                same[name] = _Entry(found.sign, *here)
            elif cell_of(name) not in unsent:
                fetch[name] = found
        for record in unsent:
            # Another machine has written it since we knew of it: then theirs is the result.
            entry = entries.get(record)
            if record in same or record not in there:
                continue
            if entry is None or entry.sign != there[record].sign:
                fetch.update({n: o for n, o in there.items() if cell_of(n) == record})
                remove |= {name for name in files_of(self.folder, record) if name not in there}
        self._note(same, set())
        self._fetch({n: found for n, found in fetch.items() if n not in same}, files)
        self._remove(remove)
        return {cell_of(name) for name in fetch}

    def _fetch(self, objects: Mapping[str, Object], here: Mapping[str, _Stat]) -> None:
        # Tables and heads before records, as they were written.
        names = sorted(objects, key=lambda name: (name.endswith(".json"), name))
        while names:
            batch, size = [names.pop(0)], 0
            while names and size + objects[names[0]].size < _BATCH:
                size += objects[names[0]].size
                batch.append(names.pop(0))
            read = in_parallel(self._read, [(name, objects[name]) for name in batch])
            got = dict(zip(batch, read, strict=True))
            self._keep(got, objects, here)

    def _read(self, wanted: tuple[str, Object]) -> bytes | None:
        name, expected = wanted
        try:
            data = self._remote.read(name)
            if len(data) != expected.size:  # half of it, or written anew since it was listed
                now = self._remote.look(name)
                data = self._remote.read(name, None if now is None else now.size)
        except Gone:  # since it was listed
            return None
        return data

    def _keep(
        self,
        got: Mapping[str, bytes | None],
        objects: Mapping[str, Object],
        before: Mapping[str, _Stat],
    ) -> None:
        entries = {}
        with explained(self.folder):
            by_folder: dict[Path, dict[Path, bytes]] = {}
            for name, data in got.items():
                if data is not None:
                    path = self.folder / name
                    by_folder.setdefault(path.parent, {})[path] = data
            with locked(self.folder):
                for folder, files in by_folder.items():
                    folder.mkdir(parents=True, exist_ok=True)
                    sweep(folder)
                    for path, data in files.items():
                        name = path.relative_to(self.folder).as_posix()
                        if _stat(path) != before.get(name):  # a run of this machine has written it
                            continue
                        replace({path: data})
                        now = _stat(path)
                        assert now is not None
                        entries[name] = _Entry(objects[name].sign, *now)
        self._note(entries, set())

    def _remove(self, names: set[str]) -> None:
        with explained(self.folder), locked(self.folder):
            for name in sorted(names, key=lambda name: not name.endswith(".json")):
                path = self.folder / name
                path.unlink(missing_ok=True)
                if path.parent.suffix == ".pictures":
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
        self._note({}, names)

    def _unsent(self, entries: Mapping[str, _Entry], here: Mapping[str, _Stat]) -> set[str]:
        """Records here of which a file is not what it was when here and there were the same."""
        changed = (name for name, stat in here.items() if not _is_that(entries.get(name), stat))
        return {record for name in changed if (record := cell_of(name)) in here}

    def _here(self) -> dict[str, _Stat]:
        """Every file of a result in the folder, by name."""
        found: dict[str, _Stat] = {}
        folders = [""]
        while folders:
            below = folders.pop()
            with explained(self.folder / below), os.scandir(self.folder / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{name}/")
                    elif belongs(name) and (stat := _stat(entry)) is not None:
                        found[name] = stat
        return found

    def _entries(self) -> dict[str, _Entry]:
        """What is known; nothing where the file is missing or damaged, which costs requests."""
        try:
            facts = json.loads((self._root / STATE).read_bytes())
            return {str(name): _Entry(str(a), int(b), int(c)) for name, (a, b, c) in facts.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _note(self, entries: Mapping[str, _Entry], gone: set[str]) -> None:
        if not entries and not gone:
            return
        with explained(self._root / STATE), locked(self._root):
            known = {**self._entries(), **entries}
            left = {name: entry for name, entry in sorted(known.items()) if name not in gone}
            replace({self._root / STATE: json.dumps(left).encode()})


def _stat(path: Path | os.DirEntry[str]) -> _Stat | None:
    """None where there is no such file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _Stat(status.st_size, status.st_mtime_ns)


def _is_that(entry: _Entry | None, here: _Stat | None) -> bool:
    return entry is not None and here == (entry.size, entry.written)


def _is(path: Path, sign: str) -> bool:
    """Whether the sign tells that the object's content is the file's."""
    return len(sign) == 32 and md5_of(path.read_bytes()) == sign
