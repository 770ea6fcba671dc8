"""Further test sets of ImageNet-1k's classes: other pictures, or other labels of its own.

ImageNet-V2, -A, -R and -Sketch are one folder a class, called by its WordNet id or by its number:
the place of the WordNet id among the thousand in sorted order. ReaL (Beyer et al., "Are we done
with ImageNet?", 2020) is all classes that the validation pictures show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dataset, Dense, Labels, Role, Sample, Target
from harness.data.folder import Found, find, open_folder, refuse_empty
from harness.data.imagenet import read_validation, thousand, timm_list
from harness.errors import HarnessError

_NUMBER = re.compile(r"ILSVRC2012_val_([0-9]{8})")
_REAL = "imagenet_real_labels.json"


def read_class_folders(name: str, root: Path) -> dict[Role, Dataset]:
    """Open ``root/<wnid>/…`` or ``root/<number>/…``: the role test. Ids are paths relative to
    ``root``; classes are the WordNet ids that are there, sorted. Raises ``HarnessError``."""
    found = find(root, "")
    refuse_empty(root, found)
    if not found.classes:
        raise HarnessError(f"{root}: no picture in a class's folder")
    by_wnid: dict[str, list[str]] = {}
    for folder, ids in found.classes.items():
        wnid = _wnid(root, folder)
        if wnid in by_wnid:
            raise HarnessError(f"{root}: two folders are of the class {wnid}: one is {folder}")
        by_wnid[wnid] = ids
    named = Found(by_wnid, found.ignored, found.empty)
    return {"test": open_folder(name, root, "test", named, sorted(by_wnid))}


def _wnid(root: Path, folder: str) -> str:
    wnids = thousand()
    if folder in set(wnids):
        return folder
    if re.fullmatch("[0-9]{1,4}", folder) and int(folder) < len(wnids):
        return wnids[int(folder)]
    raise HarnessError(
        f"{root / folder}: is called by none of ImageNet's {len(wnids)} classes (n01440764) and by "
        f"no number of one (0 to {len(wnids) - 1})"
    )


def read_real(name: str, root: Path, labels: Path | None) -> dict[Role, Dataset]:
    """The validation pictures of the ImageNet in ``root`` with all classes that are right for each:
    the role test. ``labels`` is the official ``real.json``; None: the same in timm.

    Raises ``HarnessError`` where there are no such pictures, their names have no number, or the
    labels are not as released.
    """
    source = labels or timm_list(_REAL)
    right = _right(source)
    pictures = read_validation(name, root)
    samples = []
    for sample in pictures.samples:
        number = _NUMBER.search(sample.id.rpartition("/")[2])
        place = int(number[1]) if number else 0
        if not 1 <= place <= len(right):
            raise HarnessError(
                f"{root}: {sample.id} is not called by its number among the {len(right):,} "
                "validation pictures (ILSVRC2012_val_00000001)"
            )
        samples.append(replace(sample, target=Target(labels=Labels(right[place - 1]))))
    return {"test": Relabelled(pictures, samples, thousand())}


def _right(source: Path) -> list[tuple[int, ...]]:
    """The classes of each validation picture, in order of their numbers, rising."""
    try:
        lists = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HarnessError(f"{source}: not a list of labels: {error}") from None
    if not isinstance(lists, list):
        raise HarnessError(f"{source}: not a list of labels, one a validation picture")
    classes = range(len(thousand()))
    for place, each in enumerate(lists, 1):
        if not isinstance(each, list) or not all(type(n) is int and n in classes for n in each):
            raise HarnessError(
                f"{source}: picture {place}: a list of classes from 0 to {len(classes) - 1} was "
                f"expected, not {each!r}"
            )
    return [tuple(sorted(set(each))) for each in lists]


class Relabelled(Dataset):
    """The pictures of another data set under labels of their own."""

    def __init__(
        self, pictures: Dataset, samples: Sequence[Sample], classes: tuple[str, ...]
    ) -> None:
        """``samples`` are those of ``pictures``, in the same order, with other targets."""
        self.name, self.split = pictures.name, pictures.split
        self.samples, self.classes = samples, classes
        self.semantic_classes, self.has_depth = pictures.semantic_classes, pictures.has_depth
        self._pictures = pictures

    def read(self, index: int) -> bytes:
        return self._pictures.read(index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        return self._pictures.picture(index)

    def dense(self, index: int) -> Dense:
        return self._pictures.dense(index)

    def dense_mark(self, index: int) -> str | None:
        return self._pictures.dense_mark(index)

    def where(self, index: int) -> str:
        return self._pictures.where(index)

    def missing(self) -> list[str]:
        return self._pictures.missing()
