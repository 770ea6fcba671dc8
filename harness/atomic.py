"""Files that are there whole or not at all, and one writer at a time.

A file is written to a hidden temporary name in its own folder (``.<name>.<pid>.tmp``), flushed to
the disk, and renamed. Writers take the lock ``FOLDER/.lock`` first. That is a lock of the operating
system: it ends with the process that held it, however that ended, and the empty file that stays
means nothing. So a temporary file that is seen under the lock is a dead process's litter.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import HarnessError, Unwritable

LOCK_SECONDS = 60.0

_TEMPORARY = re.compile(r"\..+\.([0-9]+)\.tmp")
_NO_SPACE = "free some space or choose another folder"
_NO_ACCESS = "choose a folder that you may write to"
_NO_FOLDER = "a file stands where a folder is needed; choose another folder"
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: _NO_ACCESS,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, which must exist.

    Raises ``HarnessError`` where another process holds it for longer than a write can take.
    """
    import filelock

    path = folder / ".lock"
    lock = filelock.FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise HarnessError(
            f"{path}: held by another process for more than {LOCK_SECONDS:.0f} s; "
            "look for a run that hangs or was stopped (Ctrl-Z)"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Any ``OSError`` inside -> ``Unwritable`` with the path, the reason and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        raise Unwritable(
            f"{path}: cannot be written: {error.strerror or error}"
            f"{'; ' + advice if advice else ''}. Results written earlier are untouched."
        ) from error


def publish(path: Path, data: bytes) -> None:
    """Write the one file that a command was asked for, and its folder if need be. What killed
    processes of this machine left of it goes.

    Raises ``HarnessError``, also for what stands there and is no file: a device or a pipe
    (``/dev/stdout``) would be replaced by one.
    """
    with explained(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise HarnessError(f"{path}: a device or a pipe, not a file; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            number = writer(left.name)
            if number is not None and temporary(path, number) == left and not runs(number):
                left.unlink(missing_ok=True)
        replace({path: data})


def replace(files: Mapping[Path, bytes]) -> None:
    """Write ``files``, all of one folder, and give them their names in the order given.

    The first name is given only when every byte is on the disk, so a full disk changes nothing.
    To be called under the folder's lock. Raises ``OSError`` where nothing was changed, and
    ``HarnessError`` for the rare case that some of the files have their names and others cannot
    get theirs. No temporary file stays.
    """
    temporaries = {path: temporary(path) for path in files}
    named: list[Path] = []
    try:
        for path, data in files.items():
            write_through(temporaries[path], data)
        for path in files:
            try:
                temporaries[path].replace(path)
            except OSError as error:
                if not named:
                    raise
                raise HarnessError(
                    f"{path}: cannot be written: {error.strerror}, though {named[-1].name} beside "
                    "it was; this one result is damaged and has to be run again"
                ) from error
            named.append(path)
    except BaseException:
        for leftover in temporaries.values():
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _flush_folder(folder)


def temporary(path: Path, process: int | None = None) -> Path:
    """The hidden name under which ``path`` is written by this process, or by another one, with the
    process id for whoever looks."""
    return path.with_name(f".{path.name}.{process or os.getpid()}.tmp")


def runs(process: int) -> bool:
    """Whether there is a process of that id on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def writer(name: str) -> int | None:
    """The process id in the name of a temporary file; None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else int(found[1])


def write_through(path: Path, data: bytes) -> None:
    """Write ``path`` and wait until it is on the disk. Raises ``OSError``."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes from ``folder``, under its lock."""
    for path in folder.glob(".*.tmp"):
        if writer(path.name) is not None:
            with contextlib.suppress(OSError):
                path.unlink()


def _flush_folder(folder: Path) -> None:
    # A rename is on the disk when its folder is. Some file systems cannot flush one; a power cut
    # there loses the newest result, and its cell is run again.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
