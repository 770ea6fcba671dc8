"""Tiny copies of classification data sets in the layouts of their releases."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from small_datasets import encode

from harness.data.dataset import Role

Patch = pytest.MonkeyPatch
Labels = list[tuple[str, int]]
"""Ids and labels, in order."""


@dataclass(frozen=True)
class Release:
    """What a data set in a folder should be opened as. ``part`` is a list that it needs."""

    classes: tuple[str, ...]
    roles: Mapping[Role, Labels]
    part: str
    size: tuple[int, int] = (40, 30)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def pictures(root: Path, *files: str, size: tuple[int, int] = (40, 30)) -> None:
    for file in files:
        write(root / file, encode(size))


def cifar10(root: Path, patch: Patch) -> Release:
    return _cifar(root, patch, "CIFAR10", "cifar-10-batches-py", "labels", "label_names")


def cifar100(root: Path, patch: Patch) -> Release:
    return _cifar(root, patch, "CIFAR100", "cifar-100-python", "fine_labels", "fine_label_names")


def _cifar(root: Path, patch: Patch, name: str, folder: str, labels: str, names: str) -> Release:
    """Two pictures a file; the md5s that torchvision expects are made those of these files."""
    from torchvision import datasets

    constructor = getattr(datasets, name)

    def dump(file: str, content: object) -> list[str]:
        data = write(root / folder / file, pickle.dumps(content)).read_bytes()
        return [file, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    def batch(file: str, number: int) -> list[str]:
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3072), dtype=np.uint8)
        return dump(file, {"data": pixels, labels: [number % 2, 1]})

    train = [batch(file, number) for number, (file, _) in enumerate(constructor.train_list)]
    patch.setattr(constructor, "train_list", train)
    patch.setattr(constructor, "test_list", [batch(constructor.test_list[0][0], 0)])
    file, md5 = dump(constructor.meta["filename"], {names: ["cat", "dog"]})
    patch.setattr(constructor, "meta", {"filename": file, "key": names, "md5": md5})
    train_labels = [label for number in range(len(train)) for label in (number % 2, 1)]
    return Release(
        ("cat", "dog"),
        {
            "train": [(f"train/{n:05d}", label) for n, label in enumerate(train_labels)],
            "test": [("test/00000", 0), ("test/00001", 1)],
        },
        f"{folder}/{constructor.test_list[0][0]}",
        (32, 32),
    )


def aircraft(root: Path, _: Patch) -> Release:
    data = "fgvc-aircraft-2013b/data"
    write(root / data / "variants.txt", "707-320\nA300B4\n")
    write(root / data / "images_variant_trainval.txt", "0000002 A300B4\n0000001 707-320\n")
    write(root / data / "images_variant_test.txt", "0000003 A300B4\n")
    pictures(root / data / "images", "0000001.jpg", "0000002.jpg", "0000003.jpg")
    return Release(
        ("707-320", "A300B4"),
        {
            "train": [(f"{data}/images/0000002.jpg", 1), (f"{data}/images/0000001.jpg", 0)],
            "test": [(f"{data}/images/0000003.jpg", 1)],
        },
        f"{data}/images_variant_test.txt",
    )


def cars(root: Path, _: Patch) -> Release:
    base = root / "stanford_cars"
    pictures(base, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg",
             "cars_test/00002.jpg")  # fmt: skip
    (base / "devkit").mkdir()
    rows = {"train": [("00001.jpg", 2), ("00002.jpg", 1)], "test": [("00001.jpg", 1),
            ("00002.jpg", 2)]}  # fmt: skip
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, file in files.items():
        annotations = np.array(
            [(name, label) for name, label in rows[split]],
            dtype=[("fname", object), ("class", object)],
        )
        savemat(base / file, {"annotations": annotations})
    names = np.array(["Audi S4", "BMW M3"], dtype=object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    return Release(
        ("Audi S4", "BMW M3"),
        {
            "train": [("stanford_cars/cars_train/00001.jpg", 1),
                      ("stanford_cars/cars_train/00002.jpg", 0)],
            "test": [("stanford_cars/cars_test/00001.jpg", 0),
                     ("stanford_cars/cars_test/00002.jpg", 1)],
        },
        "stanford_cars/cars_test_annos_withlabels.mat",
    )  # fmt: skip


def dtd(root: Path, _: Patch) -> Release:
    names = {
        "train": ["banded/b1.jpg", "dotted/d1.jpg"],
        "val": ["dotted/d2.jpg", "banded/b2.jpg"],
        "test": ["dotted/d3.jpg", "banded/b3.jpg"],
    }
    for split, files in names.items():
        write(root / f"dtd/dtd/labels/{split}1.txt", "\n".join(files) + "\n")
        pictures(root / "dtd/dtd/images", *files)
    labels = {
        split: [(f"dtd/dtd/images/{file}", int(file.startswith("dotted"))) for file in files]
        for split, files in names.items()
    }
    return Release(
        ("banded", "dotted"),
        {"train": labels["train"] + labels["val"], "test": labels["test"]},
        "dtd/dtd/labels/val1.txt",
    )


def flowers(root: Path, patch: Patch) -> Release:
    """Five pictures of the first three kinds."""
    from torchvision.datasets import Flowers102

    base = root / "flowers-102"
    pictures(base / "jpg", *(f"image_{number:05d}.jpg" for number in range(1, 6)))
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 3, 2, 1])})
    splits = {"trnid": [2, 1], "valid": [3], "tstid": [5, 4]}
    savemat(base / "setid.mat", {key: np.array(ids) for key, ids in splits.items()})
    known = dict(Flowers102._file_dict)
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        data = (base / file).read_bytes()
        known[key] = (file, hashlib.md5(data, usedforsecurity=False).hexdigest())
    patch.setattr(Flowers102, "_file_dict", known)
    # Of a split with one picture squeeze_me leaves a number, which is no list.
    savemat(base / "setid.mat", {"trnid": [2, 1], "valid": [3, 4], "tstid": [5, 4]})
    data = (base / "setid.mat").read_bytes()
    known["setid"] = ("setid.mat", hashlib.md5(data, usedforsecurity=False).hexdigest())
    at = "flowers-102/jpg/image_{:05d}.jpg".format
    return Release(
        tuple(Flowers102.classes),
        {
            "train": [(at(2), 1), (at(1), 0), (at(3), 2), (at(4), 1)],
            "test": [(at(5), 0), (at(4), 1)],
        },
        "flowers-102/imagelabels.mat",
    )


def food(root: Path, _: Patch) -> Release:
    lists = {
        "train": {"pho": ["pho/2", "pho/1"], "gyoza": ["gyoza/1"]},
        "test": {"gyoza": ["gyoza/2"], "pho": ["pho/3"]},
    }
    for split, content in lists.items():
        write(root / f"food-101/meta/{split}.json", json.dumps(content))
        files = [f"{file}.jpg" for each in content.values() for file in each]
        pictures(root / "food-101/images", *files)
    at = "food-101/images/{}.jpg".format
    return Release(
        ("gyoza", "pho"),
        {
            "train": [(at("pho/2"), 1), (at("pho/1"), 1), (at("gyoza/1"), 0)],
            "test": [(at("gyoza/2"), 0), (at("pho/3"), 1)],
        },
        "food-101/meta/test.json",
    )


def pets(root: Path, _: Patch) -> Release:
    base = root / "oxford-iiit-pet"
    write(base / "annotations/trainval.txt", "beagle_2 2 2 1\nAbyssinian_1 1 1 1\n")
    write(base / "annotations/test.txt", "Abyssinian_7 1 1 1\nbeagle_9 2 2 1\n")
    files = ["beagle_2.jpg", "Abyssinian_1.jpg", "Abyssinian_7.jpg", "beagle_9.jpg"]
    pictures(base / "images", *files)
    at = "oxford-iiit-pet/images/{}.jpg".format
    return Release(
        ("Abyssinian", "Beagle"),
        {
            "train": [(at("beagle_2"), 1), (at("Abyssinian_1"), 0)],
            "test": [(at("Abyssinian_7"), 0), (at("beagle_9"), 1)],
        },
        "oxford-iiit-pet/annotations/test.txt",
    )


def cub(root: Path, _: Patch) -> Release:
    files = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Crow/c.jpg", "002.Crow/d.jpg"]
    tables = {
        "classes": ["001.Albatross", "002.Crow"],
        "images": files,
        "image_class_labels": ["1", "1", "2", "2"],
        "train_test_split": ["1", "0", "0", "1"],
    }
    for name, lines in tables.items():
        text = "".join(f"{number} {line}\n" for number, line in enumerate(lines, 1))
        write(root / f"{name}.txt", text)
    pictures(root / "images", *files)
    at = "images/{}".format
    return Release(
        ("001.Albatross", "002.Crow"),
        {
            "train": [(at(files[0]), 0), (at(files[3]), 1)],
            "test": [(at(files[1]), 0), (at(files[2]), 1)],
        },
        "train_test_split.txt",
    )


def caltech101(root: Path, _: Patch) -> Release:
    """31 and 32 pictures: 1 and 2 are left for testing."""
    files = {"ant": [f"ant/image_{n:04d}.jpg" for n in range(1, 32)]}
    files["bass"] = [f"bass/image_{n:04d}.jpg" for n in range(1, 33)]
    picture = encode((8, 8))
    for file in files["ant"] + files["bass"]:
        write(root / "101_ObjectCategories" / file, picture)
    roles: dict[Role, Labels] = {"train": [], "test": []}
    for label, each in enumerate(files.values()):
        by_hash = sorted(each, key=lambda file: hashlib.sha256(file.encode()).hexdigest())
        at = "101_ObjectCategories/{}".format
        roles["train"] += [(at(file), label) for file in sorted(by_hash[:30])]
        roles["test"] += [(at(file), label) for file in sorted(by_hash[30:])]
    return Release(("ant", "bass"), roles, "101_ObjectCategories", (8, 8))


def sun397(root: Path, _: Patch) -> Release:
    write(root / "SUN397/ClassName.txt", "/a/abbey\n/c/cabin/indoor\n")
    lists = {
        "Training_01.txt": ["/a/abbey/sun_a.jpg", "/c/cabin/indoor/sun_b.jpg"],
        "Testing_01.txt": ["/c/cabin/indoor/sun_c.jpg", "/a/abbey/sun_d.jpg"],
    }
    for name, files in lists.items():
        write(root / name, "\n".join(files) + "\n")
        pictures(root / "SUN397", *(file[1:] for file in files))
    at = "SUN397{}".format
    return Release(
        ("abbey", "cabin/indoor"),
        {
            "train": [(at("/a/abbey/sun_a.jpg"), 0), (at("/c/cabin/indoor/sun_b.jpg"), 1)],
            "test": [(at("/c/cabin/indoor/sun_c.jpg"), 1), (at("/a/abbey/sun_d.jpg"), 0)],
        },
        "Testing_01.txt",
    )


def places205(root: Path, _: Patch) -> Release:
    base = "data/vision/torralba/deeplearning/images256"
    lists = {
        "train": [("a/abbey/gsun_1.jpg", 0), ("b/bar/gsun_2.jpg", 1)],
        "val": [("b/bar/gsun_3.jpg", 1), ("a/abbey/gsun_4.jpg", 0)],
    }
    for separator, (split, rows) in zip(" ,", lists.items(), strict=True):
        text = "".join(f"{file}{separator}{label}\n" for file, label in rows)
        write(root / f"trainvalsplit_places205/{split}_places205.csv", text)
        pictures(root / base, *(file for file, _ in rows), size=(256, 256))
    return Release(
        ("a/abbey", "b/bar"),
        {
            "train": [(f"{base}/{file}", label) for file, label in lists["train"]],
            "test": [(f"{base}/{file}", label) for file, label in lists["val"]],
        },
        "trainvalsplit_places205/val_places205.csv",
        (256, 256),
    )


def places365(root: Path, _: Patch) -> Release:
    write(root / "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n")
    train = "/b/bar/00000001.jpg 1\n/a/airfield/00000001.jpg 0\n"
    write(root / "places365_train_standard.txt", train)
    write(root / "places365_val.txt", "Places365_val_00000001.jpg 1\n")
    files = ["data_256/b/bar/00000001.jpg", "data_256/a/airfield/00000001.jpg"]
    pictures(root, *files, "val_256/Places365_val_00000001.jpg", size=(256, 256))
    return Release(
        ("a/airfield", "b/bar"),
        {
            "train": [(files[0], 1), (files[1], 0)],
            "test": [("val_256/Places365_val_00000001.jpg", 1)],
        },
        "places365_val.txt",
        (256, 256),
    )


def inat2018(root: Path, _: Patch) -> Release:
    folders = ["train_val2018/Aves/0", "train_val2018/Plantae/1"]
    return _inaturalist(root, ["train2018.json", "val2018.json"], folders, folders)


def inat2021(root: Path, _: Patch) -> Release:
    names = ["00000_Animalia_Aves", "00001_Plantae_Rosa"]
    train, val = ([f"{split}/{name}" for name in names] for split in ("train", "val"))
    return _inaturalist(root, ["train.json", "val.json"], train, val)


def _inaturalist(root: Path, lists: list[str], train: list[str], val: list[str]) -> Release:
    roles: dict[Role, Labels] = {
        "train": [(f"{train[1]}/a.jpg", 1), (f"{train[0]}/b.jpg", 0)],
        "test": [(f"{val[0]}/c.jpg", 0), (f"{val[1]}/d.jpg", 1)],
    }
    for name, rows in zip(lists, roles.values(), strict=True):
        images = [
            {"id": 7 + n, "file_name": file, "width": 40, "height": 30, "latitude": float("nan")}
            for n, (file, _) in enumerate(rows)
        ]
        annotations = [
            {"id": n, "image_id": 7 + n, "category_id": label} for n, (_, label) in enumerate(rows)
        ]
        write(root / name, json.dumps({"images": images, "annotations": annotations}))
        pictures(root, *(file for file, _ in rows))
    classes = tuple(folder.partition("/")[2] for folder in train)
    return Release(classes, roles, lists[1])


RELEASES: Mapping[str, Callable[[Path, Patch], Release]] = {
    each.__name__: each
    for each in (
        aircraft, caltech101, cars, cifar10, cifar100, cub, dtd, flowers, food, inat2018, inat2021,
        pets, places205, places365, sun397,
    )
}  # fmt: skip
