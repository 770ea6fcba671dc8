"""Any folder of pictures, without labels: for self-supervised training, and for ``anatomy``."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.data.dataset import SUFFIXES, Sample, header_size
from harness.data.files import FileDataset
from harness.errors import HarnessError

_READERS = 8  # headers are read at a disk's pace, not at a core's


class PicturesDataset(FileDataset):
    """Every picture in ``root`` and the folders below it, sorted by its path.

    Ids are paths relative to ``root`` with forward slashes. Hidden files and folders are left out,
    and so are files with another suffix than a picture's. Linked folders are followed, but not in
    a circle. Sizes are read from the headers: ``(0, 0)`` where there is none that can be read.
    """

    def __init__(self, name: str, root: Path, split: str = "train") -> None:
        """Raises ``HarnessError`` for a folder that cannot be listed or has no picture in it."""
        if not root.is_dir():
            raise HarnessError(f"{root}: no such folder")
        ids = sorted(find_pictures(root))
        if not ids:
            raise HarnessError(f"{root}: no picture in it ({', '.join(sorted(SUFFIXES))})")
        with ThreadPoolExecutor(_READERS) as readers:
            sizes = list(readers.map(lambda identity: header_size(root / identity), ids))
        samples = [Sample(identity, size) for identity, size in zip(ids, sizes, strict=True)]
        super().__init__(name, split, samples, (), root, ids)


def find_pictures(root: Path, suffixes: frozenset[str] = SUFFIXES) -> list[str]:
    """The paths of all pictures below ``root`` (files with one of ``suffixes``, in small letters),
    relative to it, as they are found. Raises ``HarnessError``."""
    found: list[str] = []
    left: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while left:
        relative, above = left.pop()
        folder = root / relative
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise HarnessError(f"{folder}: a link that leads back to a folder above it")
            with os.scandir(folder) as entries:
                for entry in entries:
                    identity = f"{relative}/{entry.name}" if relative else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        left.append((identity, (*above, here)))
                    elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122
                        found.append(identity)
        except OSError as error:
            raise HarnessError(f"{folder}: cannot be listed: {error.strerror}") from None
    return found
