"""The URLs of results that were typed, each with its mirror: a folder, for all who read and write
results. Who writes into a folder of results says so here, and what is no mirror is left alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.printable import printable
from harness.storage.mirror import Mirror
from harness.storage.urls import checked, is_url, was_url

_typed: dict[Path, Mirror] = {}
_WRITE = {("run", "out"), ("results", "into")}
"""Command and option of the folders that results are written to."""


def results_folder(text: str) -> Path:
    """What an option that names a folder of results is read by: of a URL the folder of its mirror,
    which ``prepare`` brings up to date."""
    if not is_url(text):
        return Path(text)
    try:
        mirror = Mirror(checked(text))
    except HarnessError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return _typed.setdefault(mirror.folder, mirror).folder


def prepare(options: argparse.Namespace) -> None:
    """Before a command: bring the mirrors of its URLs up to date, and upload what an earlier run
    could not. Raises ``HarnessError``, also for a URL where a folder of this machine is needed."""
    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, Path):
                continue
            if path in _typed:
                writes = (options.command, name) in _WRITE
                _bring(_typed[path], writes, writes and not getattr(options, "dry_run", False))
            elif was_url(path):
                raise HarnessError(
                    f"--{name.replace('_', '-')} {path}: a URL may name a folder of results only; "
                    "name a folder or file of this machine"
                )


def push(record: Path) -> None:
    """Upload the record at ``record`` with what lies beside it, where its folder of results is a
    mirror. Raises ``HarnessError``; the result is on this machine then."""
    for folder, mirror in _typed.items():
        if record.is_relative_to(folder):
            name = record.relative_to(folder).as_posix()
            try:
                mirror.push(name)
            except HarnessError as error:
                raise HarnessError(
                    f"{error}. The result is kept on this machine; the same command uploads it."
                ) from None


def told(text: object) -> str:
    """``text`` with the URL in the place of its mirror's folder, for people to read."""
    whole = str(text)
    for folder, mirror in _typed.items():
        whole = whole.replace(str(folder), mirror.url)
    return whole


def from_there(path: Path, start: Path) -> str:
    """Where ``path`` is as told in the folder ``start``: on its URL, or relative to ``start``."""
    whole = told(path)
    return whole if is_url(whole) else Path(os.path.relpath(path, start)).as_posix()


def forget() -> None:
    """Know of no URL any more."""
    _typed.clear()


def _bring(mirror: Mirror, may_be_empty: bool, send: bool) -> None:
    unsent = mirror.pull()
    if send:
        for record in unsent:
            mirror.push(record)
        mirror.check_writable()
        if unsent:
            _tell(f"{mirror.url}: {len(unsent)} results of an earlier run are uploaded")
    elif unsent:
        _tell(
            f"{mirror.url}: {len(unsent)} results of this machine are not there yet; "
            "`harness run --out` of that URL uploads them"
        )
    if not may_be_empty and not any(mirror.folder.rglob("*.json")):
        raise HarnessError(f"{mirror.url}: no results there; `harness run --out` writes them")


def _tell(notice: str) -> None:
    print(f"harness: {printable(notice)}", file=sys.stderr)
