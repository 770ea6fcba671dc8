"""Webdataset's shards: tar archives in which files of one stem belong together.

``000123.jpg`` and ``000123.cls`` (the label as a number) are a picture and its label; in place of
``.cls`` a ``.json`` with ``label`` serves. Members of one stem stand side by side in one shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.data.dataset import SUFFIXES, Role
from harness.data.tars import Filed, Member, TarDataset, members
from harness.errors import HarnessError

_BRACES = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MOST_SHARDS = 100_000
_MOST_LABEL_BYTES = 1 << 20


class Labelled(NamedTuple):
    """A picture of a shard: its member, its stem, its label."""

    key: str
    member: Member
    label: int


def named_files(root: Path, pattern: str) -> list[Path]:
    """The files that ``pattern`` names below ``root``: ``x-{0000..0012}.tar``, which must all be
    there, or ``x-*.tar``. Raises ``HarnessError`` where there are none, or some lack."""
    braces = _BRACES.search(pattern)
    if braces is None:
        files = sorted(path for path in root.glob(pattern) if path.is_file())
        if not files:
            raise HarnessError(f"{root}: no file is called {pattern}")
        return files
    first, last = int(braces[1]), int(braces[2])
    if not first <= last < first + _MOST_SHARDS:
        raise HarnessError(f"{root / pattern}: {{{braces[1]}..{braces[2]}}} is no range of numbers")
    before, after, digits = pattern[: braces.start()], pattern[braces.end() :], len(braces[1])
    files = [root / f"{before}{n:0{digits}d}{after}" for n in range(first, last + 1)]
    lacking = [file for file in files if not file.is_file()]
    if lacking:
        raise HarnessError(
            f"{lacking[0]}: no such shard ({len(lacking)} of {len(files)} are not there): "
            "download what is missing"
        )
    return files


def read_webdataset(
    name: str, root: Path, splits: dict[Role, str], classes: tuple[str, ...] | None
) -> dict[Role, TarDataset]:
    """Open shards, by role the pattern of their names. Ids are ``<shard>/<key>``; without names of
    ``classes`` these are their labels as text. Raises ``HarnessError``."""
    found = {role: _all(named_files(root, pattern)) for role, pattern in splits.items()}
    if classes is None:
        count = 1 + max(each.label for pictures in found.values() for each in pictures)
        classes = tuple(str(label) for label in range(count))
    opened = {}
    for role, pictures in found.items():
        check_labels(pictures, len(classes))
        filed = [
            Filed(f"{each.member.archive.stem}/{each.key}", each.label, each.member)
            for each in pictures
        ]
        opened[role] = TarDataset(name, splits[role], filed, classes)
    return opened


def check_labels(pictures: Sequence[Labelled], classes: int) -> None:
    """Raises ``HarnessError`` for a label that is none of the classes."""
    for each in pictures:
        if each.label >= classes:
            raise HarnessError(
                f"{each.member.archive}: the label of {each.key}, {each.label}, is none of the "
                f"{classes} classes (0 to {classes - 1})"
            )


def _all(shards: Sequence[Path]) -> list[Labelled]:
    pictures = [each for shard in shards for each in labelled(shard)]
    if not pictures:
        raise HarnessError(f"{shards[0]}: no picture in it, nor in the other shards")
    return pictures


def labelled(shard: Path) -> Iterator[Labelled]:
    """The pictures of one shard, in its order. Raises ``HarnessError`` for one without a label."""
    seen: set[str] = set()
    group: dict[str, Member] = {}
    key = ""
    for member in members(shard):
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        name = f"{folder}/{stem}" if folder else stem
        if name != key:
            yield from _picture(shard, key, group)
            key, group = name, {}
            if key in seen:
                raise HarnessError(f"{shard}: the files of {key!r} do not stand side by side")
            seen.add(key)
        group[f".{extension.lower()}"] = member
    yield from _picture(shard, key, group)


def _picture(shard: Path, key: str, group: dict[str, Member]) -> Iterator[Labelled]:
    pictures = [member for extension, member in group.items() if extension in SUFFIXES]
    if not pictures:
        return
    if len(pictures) > 1:
        raise HarnessError(f"{shard}: {key!r} has {len(pictures)} pictures; one was expected")
    yield Labelled(key, pictures[0], _label(shard, key, group))


def _label(shard: Path, key: str, group: dict[str, Member]) -> int:
    member = group.get(".cls") or group.get(".json")
    if member is None:
        raise HarnessError(f"{shard}: {key!r} has no label (.cls, or .json with label)")
    if member.length > _MOST_LABEL_BYTES:
        raise HarnessError(f"{shard}: {member.name}: {member.length:,} bytes are no label")
    with shard.open("rb") as file:
        file.seek(member.offset)
        text = file.read(member.length)
    try:
        label = json.loads(text)
    except (ValueError, RecursionError):
        label = None
    if isinstance(label, dict):
        label = label.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise HarnessError(f"{shard}: {member.name}: {text[:40]!r} is no label (0, 1, 2 …)")
    return label
