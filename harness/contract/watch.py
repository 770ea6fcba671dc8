"""What a task does beside its work: files that it writes, and connections that it opens."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.contract.findings import Failed
from harness.contract.subject import Subject
from harness.features.store import default_folder

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FILES = {"os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.symlink": 2, "os.link": 2}
"""Events of Python's audit, and how many paths each tells first."""
_NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"})

_watching: list[list[str]] = []
_installed = False


@contextmanager
def watched(*allowed: Path) -> Iterator[list[str]]:
    """What is done meanwhile, a phrase for each file that is written outside ``allowed`` folders
    and each connection. Python's own caches of compiled code and devices do not count."""
    global _installed
    if not _installed:  # a hook can never be taken away
        sys.addaudithook(_hook)
        _installed = True
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
        places = [os.path.realpath(folder) for folder in allowed]
        seen[:] = dict.fromkeys(each for each in seen if not _harmless(each, places))


def outside(subject: Subject) -> None:
    subject.compared()
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # of the task's own temporary files
        try:
            with watched(Path(folder), default_folder()) as seen:
                subject.ask()
                subject.play(subject.stages)
        finally:
            tempfile.tempdir = before
    if seen:
        raise Failed("nothing written, and no network", "; ".join(seen[:3]))


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    told: list[str] = []
    if event == "open" and len(arguments) == 3:
        path, mode, flags = arguments
        text = isinstance(mode, str) and any(each in mode for each in "wax+")
        if text or (isinstance(flags, int) and flags & _WRITES):
            told = _paths("writes", path)
    elif event in _FILES:
        told = _paths("writes", *arguments[: _FILES[event]])
    elif event in _NETWORK:
        told = [f"opens a connection ({event} {arguments[-1]!r})"]
    for seen in _watching:
        seen += told


def _paths(verb: str, *paths: object) -> list[str]:
    return [f"{verb} {os.fsdecode(each)}" for each in paths if isinstance(each, str | bytes)]


def _harmless(told: str, places: list[str]) -> bool:
    if not told.startswith("writes "):
        return False
    path = os.path.realpath(told.removeprefix("writes "))
    if "__pycache__" in path or path.startswith("/dev/"):
        return True
    return any(path == place or path.startswith(place + os.sep) for place in places)
