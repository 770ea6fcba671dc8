"""Where a case runs: folders of its own, each on a small disk of its own where root may mount."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import sys
from pathlib import Path

FILLER = "filler"
_PAGE = 4096
_RDONLY, _REMOUNT, _DETACH = 1, 32, 2
_libc = ctypes.CDLL(None, use_errno=True)


def in_a_namespace() -> None:
    """Begin this process again with mounts of its own, which end with it however it ends. Where
    that is not allowed it goes on, and there are no disk faults."""
    if os.environ.get("FAULTS_NAMESPACE") or shutil.which("unshare") is None:
        return
    os.environ["FAULTS_NAMESPACE"] = "1"
    own = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if os.spawnvp(os.P_WAIT, own[0], [*own, "true"]) == 0:
        os.execvp(own[0], [*own, sys.executable, *sys.orig_argv[1:]])


class Place:
    """``out`` and ``store`` are disks of ``megabytes``, ``temporary`` and ``ray`` (for what Ray
    keeps) are plain folders, all empty after ``clean``. ``mounts``: whether they are disks, which
    can be filled. ``environment`` is added to that of commands. ``shard``: pictures in a shard of
    the store, if not as many as always."""

    def __init__(self, root: Path, shard: int | None = None, megabytes: int = 48) -> None:
        self.root, self.shard = root, shard
        self.out, self.store, self.temporary = root / "out", root / "store", root / "tmp"
        self.ray = root / "r"  # short, for there are sockets far below it
        self.log, self.events = root / "log", root / "events"
        self.environment: dict[str, str] = {}
        self._size = f"size={megabytes}m".encode()
        self.mounts = os.environ.get("FAULTS_NAMESPACE") == "1"
        self.clean()

    def machine(self, name: str) -> Path:
        """What the machine of that name keeps of URLs."""
        return self.root / "machines" / name

    def clean(self) -> None:
        self.close()
        self.root.mkdir(parents=True)
        for folder in (self.out, self.store, self.temporary, self.ray):
            folder.mkdir()
        for folder in (self.out, self.store) if self.mounts else ():
            if _libc.mount(b"faults", bytes(folder), b"tmpfs", 0, self._size):
                self.mounts = False

    def close(self) -> None:
        for folder in (self.out, self.store):
            while folder.is_dir() and os.path.ismount(folder):
                _libc.umount2(bytes(folder), _DETACH)
        shutil.rmtree(self.root, ignore_errors=True)

    def tree(self) -> dict[str, bytes]:
        """Every file of ``out`` but locks and the filler, by its name from there."""
        return tree(self.out)

    def litter(self) -> list[str]:
        """Temporary files that a command has left, but for the folders that Python leaves of
        a killed process which shared memory (docs/faults.md)."""
        folders = self.out, self.store, self.temporary, self.root / "machines"
        found = [each for folder in folders for each in folder.rglob("*")]
        return [
            str(each.relative_to(self.root))
            for each in found
            if each.name.endswith(".tmp")
            or (each.parent == self.temporary and not _of_shared_memory(each))
        ]


def _of_shared_memory(path: Path) -> bool:
    if not (path.name.startswith("pymp-") and path.is_dir()):
        return False
    return all(each.is_socket() for each in path.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    files = [each for each in sorted(folder.rglob("*")) if each.is_file()]
    kept = [each for each in files if each.name not in (".lock", FILLER)]
    return {str(each.relative_to(folder)): each.read_bytes() for each in kept}


def fill(folder: Path, pages: int) -> bool:
    """Leave ``pages`` of room on the disk of ``folder``."""
    with (folder / FILLER).open("ab", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * 64 * _PAGE)
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * _PAGE)
        filler.truncate(max(0, filler.tell() - pages * _PAGE))
    return True


def read_only(folder: Path) -> bool:
    """Let nothing more be written to the disk of ``folder``; False where a file is being written
    at this moment."""
    return not _libc.mount(b"faults", bytes(folder), b"tmpfs", _REMOUNT | _RDONLY, None)


def mend(place: Place) -> None:
    """Disks that take files again."""
    for folder in (place.out, place.store) if place.mounts else ():
        _libc.mount(b"faults", bytes(folder), b"tmpfs", _REMOUNT, None)
        (folder / FILLER).unlink(missing_ok=True)


def draw_room(draw: random.Random) -> int:
    return draw.choice((0, 0, 1, 2, 4, 8))
