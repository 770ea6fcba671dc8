"""The one fixture: a ``harness`` command in a process of its own, with a fault on its way.

The process is forked from this one, which has imported everything, so that a run costs what the
command costs. A fault comes when the command is about to make, rename or remove its n-th file
(which a seed draws again exactly), or after a share of the time that the command takes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from faults.place import Place

MARK = "FAULTS_CASE"
"""In the environment of every process of a case, so that what is left over is found."""
LIMIT_SECONDS = 600.0
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

Act = Callable[[], bool]
"""A fault; False where it cannot come at this moment, and may at the next."""


@dataclass
class Ended:
    """``status`` as ``subprocess`` tells it, ``events`` how many files were made, renamed or
    removed, ``told`` what the command printed."""

    status: int
    told: str
    seconds: float
    events: int = 0
    landed: bool = False


_running: set[int] = set()


def end_all() -> None:
    """Kill the commands that still run: nobody will look at them."""
    for pid in _running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


class Started:
    """A command that runs."""

    def __init__(
        self,
        arguments: Sequence[str],
        place: Place,
        at: int | None = None,
        act: Act | None = None,
        log: Path | None = None,
        cold: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._place, self._log = place, log or place.log
        self._landed = place.root / f"{self._log.name}.landed"
        self._landed.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        self._began = time.monotonic()
        self._ended: Ended | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._child(arguments, at, act, cold, {**place.environment, **environment})
        _running.add(self.pid)

    def _child(
        self,
        arguments: Sequence[str],
        at: int | None,
        act: Act | None,
        cold: bool,
        environment: Mapping[str, str],
    ) -> None:
        status = 99
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            os.chdir(self._place.root)
            os.environ.update(
                {
                    "HARNESS_CACHE": str(self._place.store),
                    "TMPDIR": str(self._place.temporary),
                    "RAY_TMPDIR": str(self._place.ray),
                    MARK: str(self._place.root),
                    **environment,
                }
            )
            import tempfile

            tempfile.tempdir = None
            if cold:
                os.execv(sys.executable, [sys.executable, "-m", "harness.cli", *arguments])
            written = self._place.out, self._place.store, self._place.root / "machines"
            count = _watch(written, at, act, self._landed)
            if self._place.shard is not None:
                import harness.features.store

                harness.features.store.SHARD = self._place.shard
            from harness.cli import main

            status = main(arguments)
            self._place.events.write_text(str(count()))
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def running(self) -> bool:
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._end(status)
        return self._ended is None

    def _end(self, status: int) -> None:
        _running.discard(self.pid)
        seconds = time.monotonic() - self._began
        told = self._log.read_text(errors="replace") if self._log.exists() else ""
        events = int(self._place.events.read_text()) if self._place.events.exists() else 0
        landed = self._landed.exists()
        self._ended = Ended(os.waitstatus_to_exitcode(status), told, seconds, events, landed)

    def after(self, seconds: float) -> bool:
        """Wait; whether it runs then."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.005)
        return self.running()

    def end(self) -> Ended:
        """Wait for its end; one that does not end is killed and told as status -100."""
        late = self.after(LIMIT_SECONDS)
        if late:
            os.killpg(self.pid, signal.SIGKILL)
            self._end(os.waitpid(self.pid, 0)[1])
        assert self._ended is not None
        if late:
            self._ended.status = -100
        return self._ended


def _watch(
    folders: Sequence[Path], at: int | None, act: Act | None, landed: Path
) -> Callable[[], int]:
    """Count what is done to files under ``folders`` in this process, and act at the one that
    ``at`` says, or at the first after it where it works."""
    own, roots = os.getpid(), tuple(f"{folder}/" for folder in folders)
    seen, busy, done = 0, False, at is None or act is None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, busy, done
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in _CHANGES:
            return
        path = arguments[0]
        if busy or isinstance(path, int) or os.getpid() != own:
            return
        if not os.fsdecode(path).startswith(roots):
            return
        busy = True
        try:
            seen += 1
            if not done and at is not None and act is not None and seen > at:
                os.close(os.open(landed, os.O_WRONLY | os.O_CREAT))
                done = act()
                if not done:
                    landed.unlink()
        finally:
            busy = False

    sys.addaudithook(hook)
    return lambda: seen


def descendants(pid: int) -> Iterator[int]:
    """Processes that ``pid`` has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    todo = list(parents.get(pid, []))
    while todo:
        one = todo.pop()
        yield one
        todo += parents.get(one, [])


def at_work(mark: str) -> list[int]:
    """Processes of Ray's that run a piece or finish a cell at this moment, whose raylet has
    ``mark`` (``NAME=value``) in its environment: others on this machine are not ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if not (entry / "cmdline").read_bytes().startswith((b"ray::_piece", b"ray::_fini")):
                    continue
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                raylet = Path("/proc") / parent / "environ"  # the worker's own is its title now
                if mark.encode() in raylet.read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def left_over(place: Place, sessions: Collection[int]) -> dict[int, str]:
    """Processes of the case in ``place`` that still run, with what they are called: those of the
    ``sessions`` that its commands began, and those that inherited its environment."""
    found, mark = {}, f"{MARK}={place.root}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, IndexError):
                state, *fields = (entry / "stat").read_text().rpartition(")")[2].split()
                ours = int(fields[2]) in sessions
                if state != "Z" and (ours or mark in (entry / "environ").read_bytes().split(b"\0")):
                    name = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = name.decode(errors="replace")[:80]
    return found
