"""Pictures and their label files (masks, depth), paired by name; a data set of such pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.data.dataset import SUFFIXES, Dense, Sample, header_size, safe_relative
from harness.data.files import FileDataset, Listing, read_bytes, read_lines
from harness.data.label_maps import DepthRule, MaskRule
from harness.data.pictures import find_pictures
from harness.errors import HarnessError

_READERS = 8  # headers are read at a disk's pace, not at a core's
_FIRST = (".jpg", ".png")  # the suffixes that most pictures have
_ABSENT = -1


class Pair(NamedTuple):
    """Files relative to the root, with forward slashes."""

    id: str
    picture: str
    label: str
    scene: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a split lie and where their labels; ``{split}`` stands for its name.

    A picture ``images/ID + image_suffix`` has the label ``labels/ID + label_suffix``; an empty
    ``image_suffix`` is any of a picture's. ``ID`` may have folders in it, and is the sample's id.
    The pictures are those of the file ``listed``, one id a line, else all that there are. With
    ``scenes`` the pictures of one folder are of one scene.
    """

    images: str
    labels: str
    image_suffix: str = ""
    label_suffix: str = ".png"
    listed: str | None = None
    scenes: bool = False

    def of(self, split: str) -> Layout:
        """The layout of one split."""
        listed = None if self.listed is None else _named(self.listed, split)
        return Layout(
            _named(self.images, split),
            _named(self.labels, split),
            self.image_suffix,
            self.label_suffix,
            listed,
            self.scenes,
        )

    def needs(self, root: Path, split: str) -> list[Path]:
        """The folders and the list that there must be."""
        each = self.of(split)
        lists = [] if each.listed is None else [root / each.listed]
        return [root / each.images, root / each.labels, *lists]

    def pairs(self, root: Path, split: str) -> list[Pair]:
        """The pairs of ``split``, sorted or in the list's order; a picture without a label, or a
        label without a picture, is one too. Raises ``HarnessError``."""
        each = self.of(split)
        return each._found(root) if each.listed is None else each._listed(root, each.listed)

    def _found(self, root: Path) -> list[Pair]:
        pictures: dict[str, str] = {}
        for file in sorted(_ending(find_pictures(root / self.images), self.image_suffix)):
            identity = self._id(file)
            if identity in pictures:
                raise HarnessError(
                    f"{root / self.images}: {pictures[identity]} and {file}: two pictures of one "
                    "name, so their label can be that of either"
                )
            pictures[identity] = file
        last = frozenset({"." + self.label_suffix.rpartition(".")[2].lower()})
        labels = _ending(find_pictures(root / self.labels, last), self.label_suffix)
        ids = {file[: len(file) - len(self.label_suffix)] for file in labels}
        return [
            self._pair(each, pictures.get(each, each + (self.image_suffix or _FIRST[0])))
            for each in sorted(ids | pictures.keys())
        ]

    def _listed(self, root: Path, listed: str) -> list[Pair]:
        listing = Listing(root)
        suffixes = (self.image_suffix,) if self.image_suffix else (*_FIRST, *sorted(SUFFIXES))
        pairs = []
        for number, line in read_lines(root / listed):
            identity = self._id(safe_relative(line, f"{root / listed}:{number}").as_posix())
            files = [identity + suffix for suffix in suffixes]
            there = [file for file in files if within(self.images, file) in listing]
            pairs.append(self._pair(identity, there[0] if there else files[0]))
        return pairs

    def _id(self, file: str) -> str:
        if self.image_suffix:
            return file.removesuffix(self.image_suffix)
        stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a hundred thousand names
        return stem if suffix.lower() in SUFFIXES else file

    def _pair(self, identity: str, file: str) -> Pair:
        scene = identity.rpartition("/")[0] or self.images if self.scenes else None
        label = within(self.labels, identity + self.label_suffix)
        return Pair(identity, within(self.images, file), label, scene)


class PairedDataset(FileDataset):
    """Pictures whose labels are files of their own, read when they are asked for.

    The fingerprint covers the label files' names and sizes in bytes, and how they are read: other
    labels are noticed without decoding them, unless they happen to be of the same size.
    """

    def __init__(
        self,
        name: str,
        split: str,
        root: Path,
        pairs: Sequence[Pair],
        sizes: Sequence[tuple[int, int]],
        label_bytes: Sequence[int],
        rule: MaskRule | DepthRule,
    ) -> None:
        """``sizes`` are those of the pictures, ``label_bytes`` the lengths of the label files (-1:
        there is none)."""
        listing = Listing(root)
        super().__init__(
            name,
            split,
            [
                Sample(pair.id, size, scene=pair.scene)
                for pair, size in zip(pairs, sizes, strict=True)
            ],
            (),
            root,
            [pair.picture for pair in pairs],
            [
                pair.id
                for pair, length in zip(pairs, label_bytes, strict=True)
                if length == _ABSENT or pair.picture not in listing
            ],
        )
        self.semantic_classes = rule.classes if isinstance(rule, MaskRule) else ()
        self.has_depth = isinstance(rule, DepthRule)
        self.labels = [pair.label for pair in pairs]
        self._bytes = list(label_bytes)
        self._rule = rule
        self._mark = rule.mark()

    def dense(self, index: int) -> Dense:
        path = self.root / self.labels[index]
        data = read_bytes(path, "label of a picture")
        return self._rule.dense(data, str(path), self.samples[index].size)

    def dense_mark(self, index: int) -> str:
        name = self.labels[index].rpartition("/")[2]
        return f"{name} {self._bytes[index]} {self._mark}"


def open_pairs(
    name: str,
    split: str,
    root: Path,
    pairs: Sequence[Pair],
    rule: MaskRule | DepthRule,
    source: Path,
) -> PairedDataset:
    """The data set of ``pairs``, which come from ``source`` (a list or a folder).

    Pictures or labels that are not there do not raise: ask ``Dataset.missing``. Raises
    ``HarnessError`` where there is no pair, or one stands twice.
    """
    if not pairs:
        raise HarnessError(f"{source}: no picture of the split {split!r}")
    seen = set[str]()
    for pair in pairs:
        if pair.id in seen:
            raise HarnessError(f"{source}: {pair.id!r} stands twice")
        seen.add(pair.id)
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = list(readers.map(lambda pair: header_size(root / pair.picture), pairs))
        lengths = list(readers.map(lambda pair: _length(root / pair.label), pairs))
    return PairedDataset(name, split, root, pairs, sizes, lengths, rule)


def within(folder: str, file: str) -> str:
    """``file`` in ``folder``, which is "." for the root itself."""
    return file if folder == "." else f"{folder}/{file}"


def _ending(files: Iterable[str], suffix: str) -> list[str]:
    return [file for file in files if file.endswith(suffix)]


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return _ABSENT


def _named(pattern: str, split: str) -> str:
    return pattern.replace("{split}", split)
