"""An image folder: ``train/<class>/…`` and ``val/<class>/…`` (ImageNet's layout, sorted).

The label of a picture is the place of its class among the sorted names of the class folders, the
same for both splits. ``train`` is the role train; ``val`` (or ``test``, where there is no ``val``)
is the role test. A folder with a test split only is a data set too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.data.dataset import SUFFIXES, Role, Sample, Target, header_size
from harness.data.files import FileDataset
from harness.errors import HarnessError

TEST_FOLDERS = ("val", "test")
_READERS = 8  # headers are read at a disk's pace, not at a core's


@dataclass(frozen=True)
class Found:
    """The pictures of one split: ids by class, the files that are no pictures, and the folders of
    classes in which there is none."""

    classes: dict[str, list[str]]
    ignored: list[str]
    empty: list[str]


class FolderDataset(FileDataset):
    """One split of an image folder. ``ignored`` are its files that are not taken for pictures:
    hidden ones, those with another suffix than a picture's, those outside a class's folder."""

    ignored: tuple[str, ...] = ()


def splits(root: Path) -> dict[Role, str]:
    """Which folder holds which role. Raises ``HarnessError`` where there is no test split."""
    found = [folder for folder in TEST_FOLDERS if (root / folder).is_dir()]
    if not found:
        raise HarnessError(f"{root}: has no folder val/ (or test/) with one folder a class in it")
    roles: dict[Role, str] = {"test": found[0]}
    return {"train": "train", **roles} if (root / "train").is_dir() else roles


def read_folder(name: str, root: Path) -> dict[Role, FolderDataset]:
    """Open every split of the image folder ``root``, called ``name``. Raises ``HarnessError``.

    Ids are paths relative to ``root`` with forward slashes, in sorted order. Sizes are read from
    the pictures' headers.
    """
    roles = splits(root)
    found = {role: find(root, split) for role, split in roles.items()}
    classes = sorted(set().union(*(each.classes for each in found.values())))
    for role, each in found.items():
        lacking = [each_class for each_class in classes if each_class not in each.classes]
        if lacking:
            raise HarnessError(
                f"{root / roles[role]}: the class {lacking[0]!r} has pictures in another split and "
                f"none here ({len(lacking)} of {len(classes)} classes)"
            )
    if not classes:
        raise HarnessError(f"{root / roles['test']}: no picture in a class's folder")
    for each in found.values():
        refuse_empty(root, each)
    return {
        role: open_folder(name, root, roles[role], each, classes) for role, each in found.items()
    }


def open_folder(
    name: str, root: Path, split: str, found: Found, classes: Sequence[str]
) -> FolderDataset:
    """The pictures of ``found``, in order of their ids; labels are places in ``classes``."""
    labels = {
        identity: label
        for label, each_class in enumerate(classes)
        for identity in found.classes[each_class]
    }
    ids = sorted(labels)
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = readers.map(lambda identity: header_size(root / identity), ids)
        samples = [
            Sample(identity, size, Target(label=labels[identity]))
            for identity, size in zip(ids, sizes, strict=True)
        ]
    dataset = FolderDataset(name, split, samples, tuple(classes), root, ids)
    dataset.ignored = tuple(sorted(found.ignored))
    return dataset


def refuse_empty(root: Path, found: Found) -> None:
    """Raises ``HarnessError`` for a class's folder without a picture: were it left out, the
    classes after it would get other labels than the data set gives them."""
    if found.empty:
        raise HarnessError(
            f"{root / min(found.empty)}: no picture in this class's folder "
            f"({len(found.empty)} are so): remove it, or put its pictures there"
        )


def find(root: Path, split: str) -> Found:
    """The pictures below ``root/split/<class>``, or ``root/<class>`` with an empty ``split``.
    Raises ``HarnessError``."""
    found = Found({}, [], [])
    for entry in _scan(root / split):
        relative = f"{split}/{entry.name}" if split else entry.name
        if entry.name.startswith(".") or not entry.is_dir():
            found.ignored.append(relative)
            continue
        pictures: list[str] = []
        _walk(root / relative, relative, (), pictures, found.ignored)
        if pictures:
            found.classes[entry.name] = pictures
        else:
            found.empty.append(relative)
    return found


def _walk(
    folder: Path,
    relative: str,
    above: tuple[tuple[int, int], ...],
    pictures: list[str],
    ignored: list[str],
) -> None:
    """Collect the files below ``folder``. Linked folders are followed, but not in a circle."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise HarnessError(f"{folder}: a link that leads back to a folder above it")
    for entry in _scan(folder):
        identity = f"{relative}/{entry.name}"
        if entry.name.startswith("."):
            ignored.append(identity)
        elif entry.is_dir():
            _walk(folder / entry.name, identity, (*above, here), pictures, ignored)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a million names
            pictures.append(identity)
        else:
            ignored.append(identity)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise HarnessError(f"{folder}: cannot be listed: {error.strerror}") from None
