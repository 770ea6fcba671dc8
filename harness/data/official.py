"""Classification data sets read by their own official lists: CUB, Caltech-101, SUN397, Places,
iNaturalist. (torchvision has no class for these, or one without the split.)

Each reader takes the root and gives names of classes and, by role, the pictures with labels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset, Role
from harness.data.files import read_lines
from harness.data.folder import find, refuse_empty
from harness.data.listed import Annotations, Listed, Row, open_listed
from harness.errors import HarnessError

CALTECH_TRAIN = 30
"""Training pictures a class of Caltech-101."""
_PLACES_SIZE = (256, 256)  # of every picture of the small releases; there are millions of headers
_PLACES205 = "data/vision/torralba/deeplearning/images256"
_PLACES365 = ("data_256", "data_256_standard")  # the archive's name, and torchvision's


@dataclass(frozen=True)
class OfficialSet:
    """``needs`` are relative to the root."""

    needs: tuple[str, ...]
    read: Callable[[Path], Annotations]

    def open(self, name: str, root: Path) -> dict[Role, Dataset]:
        """Raises ``HarnessError``."""
        return {**open_listed(name, root, self.read(root))}


def read_cub(root: Path) -> Annotations:
    """CUB-200-2011 (Wah et al., 2011): ``root`` is the folder ``CUB_200_2011``."""
    names = _numbered(root / "classes.txt")
    images, source = _numbered(root / "images.txt"), root / "train_test_split.txt"
    labels = _numbered(root / "image_class_labels.txt")
    in_train = _numbered(source)
    places = {number: place for place, number in enumerate(names)}
    rows: dict[str, list[Row]] = {"1": [], "0": []}
    for number, file in images.items():
        for table, of in ((labels, "image_class_labels.txt"), (in_train, source.name)):
            if number not in table:
                raise HarnessError(f"{root / of}: has no line for picture {number} ({file})")
        if labels[number] not in places:
            raise HarnessError(
                f"{root / 'image_class_labels.txt'}: the class of picture {number}, "
                f"{labels[number]!r}, is not in classes.txt"
            )
        if in_train[number] not in rows:
            raise HarnessError(f"{source}: picture {number}: {in_train[number]!r} is not 0 or 1")
        rows[in_train[number]].append(Row(f"images/{file}", places[labels[number]]))
    return Annotations(
        tuple(names.values()),
        {"train": Listed("train", source, rows["1"]), "test": Listed("test", source, rows["0"])},
    )


def read_caltech101(root: Path) -> Annotations:
    """Caltech-101 (Fei-Fei et al., 2004), ``root/101_ObjectCategories/<class>/…``.

    There are no official splits, only the custom to train on 30 pictures of each class and test on
    the rest. Here the 30 are those whose file (``<class>/<name>``) has the smallest sha256. The
    class of backgrounds counts, as in Kornblith et al. (2019, arXiv 1805.08974): 102 classes,
    3,060 + 6,084 pictures.
    """
    folder = root / "101_ObjectCategories"
    found = find(root, folder.name)
    refuse_empty(root, found)
    train: list[Row] = []
    test: list[Row] = []
    classes = sorted(found.classes)
    for label, each in enumerate(classes):
        files = found.classes[each]
        if len(files) <= CALTECH_TRAIN:
            raise HarnessError(
                f"{folder / each}: {len(files)} pictures; {CALTECH_TRAIN} of each class are for "
                "training, and at least one for testing: unpack 101_ObjectCategories anew"
            )
        files.sort(key=lambda file: hashlib.sha256(_from_class(file).encode()).digest())
        train += [Row(file, label) for file in sorted(files[:CALTECH_TRAIN])]
        test += [Row(file, label) for file in sorted(files[CALTECH_TRAIN:])]
    return Annotations(
        tuple(classes),
        {
            "train": Listed(f"{CALTECH_TRAIN} a class", folder, train),
            "test": Listed("the rest", folder, test),
        },
    )


def _from_class(file: str) -> str:
    return file.partition("/")[2]


def read_sun397(root: Path) -> Annotations:
    """SUN397 (Xiao et al., 2010), the first of its ten partitions (50 + 50 pictures a class):
    ``root`` holds ``SUN397/``, ``Training_01.txt`` and ``Testing_01.txt``."""
    names = [line for _, line in read_lines(root / "SUN397/ClassName.txt")]
    labels = {name: label for label, name in enumerate(names)}

    def listed(file: str) -> Listed:
        rows = []
        for number, line in read_lines(root / file):
            each_class = line.rpartition("/")[0]
            if each_class not in labels:
                raise HarnessError(
                    f"{root / file}:{number}: {each_class!r} is not in ClassName.txt"
                )
            rows.append(Row(f"SUN397{line}", labels[each_class]))
        return Listed(Path(file).stem, root / file, rows)

    classes = tuple(re.sub(r"^/[a-z]/", "", name) for name in names)  # /a/abbey is abbey
    return Annotations(
        classes, {"train": listed("Training_01.txt"), "test": listed("Testing_01.txt")}
    )


def read_places205(root: Path) -> Annotations:
    """Places205 (Zhou et al., 2014), pictures of 256x256; its validation split is test, as in
    DINOv2. Classes are called by their folders."""
    lists = root / "trainvalsplit_places205"
    sources = {"train": lists / "train_places205.csv", "val": lists / "val_places205.csv"}
    listed = {split: _labelled(source) for split, source in sources.items()}
    classes = _classes_of(
        (file.rpartition("/")[0], label, sources[split])
        for split, pairs in listed.items()
        for file, label in pairs
    )
    rows = {
        split: [Row(f"{_PLACES205}/{file}", label, _PLACES_SIZE) for file, label in pairs]
        for split, pairs in listed.items()
    }
    return Annotations(
        classes,
        {
            "train": Listed("train", sources["train"], rows["train"]),
            "test": Listed("val", sources["val"], rows["val"]),
        },
    )


def read_places365(root: Path) -> Annotations:
    """Places365-Standard (Zhou et al., 2017), the small release of 256x256; its validation split
    is test."""
    categories = root / "categories_places365.txt"
    names = {label: file for file, label in _labelled(categories)}
    if sorted(names) != list(range(len(names))):
        raise HarnessError(f"{categories}: its labels are not 0, 1, 2 … each once")
    folder = next((each for each in _PLACES365 if (root / each).is_dir()), _PLACES365[0])
    train, val = root / "places365_train_standard.txt", root / "places365_val.txt"

    def listed(split: str, source: Path, folder: str) -> Listed:
        rows = [Row(f"{folder}/{f}", label, _PLACES_SIZE) for f, label in _labelled(source)]
        return Listed(split, source, rows)

    return Annotations(
        tuple(names[label] for label in range(len(names))),
        {"train": listed("train-standard", train, folder), "test": listed("val", val, "val_256")},
    )


def read_inaturalist(root: Path, train: str, val: str) -> Annotations:
    """iNaturalist (Van Horn et al., 2018, 2021): two files of annotations in COCO's manner; the
    validation split is test. Classes are called by their folders; sizes are as annotated."""
    read = {name: _inaturalist_split(root / name) for name in (train, val)}
    classes = _classes_of(
        ("/".join(row.file.split("/")[1:-1]), row.label, root / name)
        for name, rows in read.items()
        for row in rows
    )
    return Annotations(
        classes,
        {
            "train": Listed("train", root / train, read[train]),
            "test": Listed("val", root / val, read[val]),
        },
    )


def _inaturalist_split(path: Path) -> list[Row]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{path}: not JSON: {error}") from None
    try:
        labels = {each["image_id"]: each["category_id"] for each in data["annotations"]}
        return [_inaturalist_row(image, labels) for image in data["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise HarnessError(
            f"{path}: not a list of iNaturalist: images with id, file_name, width, height and "
            f"annotations with image_id and category_id were expected ({error!r})"
        ) from None


def _inaturalist_row(image: Mapping[str, Any], labels: Mapping[Any, Any]) -> Row:
    size = (int(image["width"]), int(image["height"]))
    return Row(str(image["file_name"]), int(labels[image["id"]]), size)


def _classes_of(uses: Iterable[tuple[str, int, Path]]) -> tuple[str, ...]:
    """The name of each label, which every use must agree on."""
    names: dict[int, str] = {}
    for name, label, source in uses:
        if names.setdefault(label, name) != name:
            raise HarnessError(
                f"{source}: label {label} is of {name!r} here and of {names[label]!r} elsewhere"
            )
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
        raise HarnessError(
            "the lists of pictures give their classes labels other than 0, 1, 2 … each once: "
            f"{len(names)} labels up to {max(names, default=0)}, {len(set(names.values()))} names"
        )
    return tuple(names[label] for label in range(len(names)))


def _numbered(path: Path) -> dict[str, str]:
    """Lines of a number and a text, as CUB's lists have them."""
    table: dict[str, str] = {}
    for place, line in read_lines(path):
        number, _, text = line.partition(" ")
        if not number.isdecimal() or not text or number in table:
            raise HarnessError(f"{path}:{place}: {line!r}: a new number and a text were expected")
        table[number] = text.strip()
    return table


def _labelled(path: Path) -> Sequence[tuple[str, int]]:
    """Lines of a path and a label, after a space or a comma; a leading slash is taken off."""
    pairs = []
    for number, line in read_lines(path):
        found = re.fullmatch(r"/?(.*\S)[ ,]+([0-9]{1,9})", line)
        if not found:
            raise HarnessError(f"{path}:{number}: {line!r}: a path and its label were expected")
        pairs.append((found[1], int(found[2])))
    return pairs


SETS: Mapping[str, OfficialSet] = {
    "caltech101": OfficialSet(("101_ObjectCategories",), read_caltech101),
    "cub": OfficialSet(
        (
            "images",
            "images.txt",
            "classes.txt",
            "image_class_labels.txt",
            "train_test_split.txt",
        ),
        read_cub,
    ),
    "inat2018": OfficialSet(
        ("train_val2018", "train2018.json", "val2018.json"),
        lambda root: read_inaturalist(root, "train2018.json", "val2018.json"),
    ),
    "inat2021": OfficialSet(
        ("train", "val", "train.json", "val.json"),
        lambda root: read_inaturalist(root, "train.json", "val.json"),
    ),
    "places205": OfficialSet(
        (
            _PLACES205,
            "trainvalsplit_places205/train_places205.csv",
            "trainvalsplit_places205/val_places205.csv",
        ),
        read_places205,
    ),
    "places365": OfficialSet(
        (
            "val_256",
            "categories_places365.txt",
            "places365_train_standard.txt",
            "places365_val.txt",
        ),
        read_places365,
    ),
    "sun397": OfficialSet(
        ("SUN397/ClassName.txt", "Training_01.txt", "Testing_01.txt"), read_sun397
    ),
}
