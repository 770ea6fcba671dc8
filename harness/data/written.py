"""Photographs of things with a note that names something else: typographic attacks by hand.

RTA-100 (Azuma and Matsui, "Defense-Prefix for Preventing Typographic Attacks on CLIP", 2023) and
PAINT's photographs (Ilharco et al., "Patching open-vocabulary models by interpolating weights",
2022) say both in the file's name: ``label=dog_text=cat.png``.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.data.dataset import Dataset, Role, Sample, Target, header_size
from harness.data.files import FileDataset
from harness.data.pictures import find_pictures
from harness.errors import HarnessError

_READERS = 8  # headers are read at a disk's pace, not at a core's


def read_written(name: str, root: Path) -> dict[Role, Dataset]:
    """Every picture below ``root``, as test, sorted by its path, which is its id.

    The classes are all things that are shown or written, sorted. Raises ``HarnessError`` for a
    picture that is not called so, or on which stands what it shows.
    """
    files = sorted(find_pictures(root))
    if not files:
        raise HarnessError(f"{root}: no picture in it")
    pairs = [_pair(root, file) for file in files]
    classes = sorted({each for pair in pairs for each in pair})
    places = {each: place for place, each in enumerate(classes)}
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = readers.map(lambda file: header_size(root / file), files)
        samples = [
            Sample(file, size, Target(label=places[shown], written=places[text]))
            for file, size, (shown, text) in zip(files, sizes, pairs, strict=True)
        ]
    return {"test": FileDataset(name, "test", samples, tuple(classes), root, files)}


def _pair(root: Path, file: str) -> tuple[str, str]:
    """What is shown, and what is written."""
    found = re.fullmatch(r"label=(.+)_text=(.+)", Path(file).stem)
    if not found or "_text=" in found[1]:
        raise HarnessError(
            f"{root / file}: a picture here is called label=SHOWN_text=WRITTEN, such as "
            "label=dog_text=cat.png"
        )
    if found[1] == found[2]:
        raise HarnessError(f"{root / file}: what is written on it, {found[2]!r}, is what it shows")
    return found[1], found[2]
