"""Releases with a class for every pixel: layouts, official classes and splits."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_files import first_row, ids, opened, png, put, put_picture

from harness.data.dense_entries import SegmentationEntry
from harness.data.entries import FORMATS
from harness.data.segmentation import SETS


def ade20k(root: Path) -> None:
    for split, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        put_picture(root / f"images/{split}/{name}.jpg")
        put(root / f"annotations/{split}/{name}.png", png(ids(0, 1, 150)))


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        put_picture(root / f"{split}/0001TP_1.png")
        put(root / f"{split}annot/0001TP_1.png", png(ids(0, 10, 11)))


def cityscapes(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "lindau"), ("test", "bonn")):
        stem = f"{city}/{city}_000000_000019"
        put_picture(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png")
        put(root / f"gtFine/{split}/{stem}_gtFine_labelIds.png", png(ids(7, 33, 4)))
        put(root / f"gtFine/{split}/{stem}_gtFine_color.png", png(np.zeros((30, 40, 3), np.uint8)))
        put(root / f"gtFine/{split}/{stem}_gtFine_instanceIds.png", png(ids(7, dtype=np.uint16)))


def coco_stuff(root: Path) -> None:
    for split in ("train2017", "val2017"):
        put_picture(root / f"{split}/000000000009.jpg")
        put(root / f"stuffthingmaps/{split}/000000000009.png", png(ids(0, 181, 255)))


def voc(root: Path) -> None:
    for split, name in (("train", "2007_1"), ("val", "2007_2"), ("trainaug", "2008_3")):
        put(root / f"ImageSets/Segmentation/{split}.txt", f"{name}\n")
        put_picture(root / f"JPEGImages/{name}.jpg")
        put(root / f"SegmentationClass/{name}.png", png(ids(0, 20, 255), palette=True))
    put_picture(root / "JPEGImages/2009_9.jpg")
    put(root / "SegmentationClassAug/2008_3.png", png(ids(5, 6, 255)))


RELEASES: dict[str, Callable[[Path], None]] = {
    "ade20k": ade20k,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "coco-stuff": coco_stuff,
    "voc-segmentation": voc,
}
EXPECTED: dict[str, tuple[int, list[int], dict[str, str]]] = {
    "ade20k": (150, [255, 0, 149], {"train": "ADE_train_1", "test": "ADE_val_1"}),
    "camvid": (11, [0, 10, 255], dict.fromkeys(("train", "select", "test"), "0001TP_1")),
    "cityscapes": (
        19,
        [0, 18, 255],
        {"train": "aachen/aachen_000000_000019", "test": "lindau/lindau_000000_000019"},
    ),
    "coco-stuff": (171, [0, 170, 255], dict.fromkeys(("train", "test"), "000000000009")),
    "voc-segmentation": (21, [0, 20, 255], {"train": "2007_1", "test": "2007_2"}),
}


def test_every_release_is_tested() -> None:
    formats = sorted(each for each, entry in FORMATS.items() if entry is SegmentationEntry)
    assert formats == sorted(SETS) == sorted(RELEASES) == sorted(EXPECTED)


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_opens_with_its_classes_and_official_splits(name: str, tmp_path: Path) -> None:
    RELEASES[name](tmp_path / "root")
    classes, row, firsts = EXPECTED[name]
    roles = opened(tmp_path / "root", format=name)
    assert {role: dataset.samples[0].id for role, dataset in roles.items()} == firsts
    for dataset in roles.values():
        assert len(dataset.samples) == 1 and dataset.samples[0].size == (40, 30)
        assert len(dataset.semantic_classes) == len(set(dataset.semantic_classes)) == classes
        assert dataset.classes == () and not dataset.missing()
        assert first_row(dataset) == row
        assert dataset.picture(0).shape == (30, 40, 3)
        assert first_row(pickle.loads(pickle.dumps(dataset))) == row


def ids_by_name(name: str) -> dict[str, int]:
    rule = SETS[name].rule
    return {rule.classes[p]: stored for stored, p in enumerate(rule.places) if p not in (-1, 255)}


def test_official_classes_stand_at_their_official_places() -> None:
    names = {name: each.rule.classes for name, each in SETS.items()}
    assert (names["ade20k"][0], names["ade20k"][7], names["ade20k"][149]) == ("wall", "bed", "flag")
    assert (names["voc-segmentation"][15], names["camvid"][3]) == ("person", "road")
    assert ids_by_name("cityscapes") == {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
        "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
        "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
        "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    # COCO's own category ids, less 1, on both sides of every gap.
    around = {
        "person": 1, "fire hydrant": 11, "stop sign": 13, "zebra": 24, "giraffe": 25,
        "backpack": 27, "umbrella": 28, "handbag": 31, "bottle": 44, "wine glass": 46,
        "potted plant": 64, "bed": 65, "dining table": 67, "toilet": 70, "tv": 72,
        "refrigerator": 82, "book": 84, "toothbrush": 90, "banner": 92, "wood": 182,
    }  # fmt: skip
    stored = ids_by_name("coco-stuff")
    assert {name: stored[name] + 1 for name in around} == around


def test_the_things_of_coco_stuff_are_in_the_order_of_coco(shared_data: Path) -> None:
    text = (shared_data / "coco256/annotations/instances_val2017.json").read_text()
    categories = sorted(json.loads(text)["categories"], key=lambda each: each["id"])
    things = SETS["coco-stuff"].rule.classes[:80]
    assert list(things) == [each["name"] for each in categories]


def test_the_augmented_voc_takes_its_masks_from_another_folder(tmp_path: Path) -> None:
    voc(tmp_path / "root")
    splits = {"train": "trainaug", "test": "val"}
    roles = opened(tmp_path / "root", format="voc-segmentation", splits=splits)
    assert first_row(roles["train"]) == [5, 6, 255]
    assert first_row(roles["test"]) == [0, 20, 255]


def test_other_folders_of_a_release_can_be_named_and_move_no_fingerprint(tmp_path: Path) -> None:
    root = tmp_path / "root"
    coco_stuff(root)
    before = opened(root, format="coco-stuff")
    (root / "images").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).rename(root / "images" / split)
    (root / "stuffthingmaps").rename(root / "annotations")
    folders = {"images": "images/{split}", "masks": "annotations/{split}"}
    after = opened(root, format="coco-stuff", **folders)
    for role, dataset in after.items():
        assert dataset.fingerprint() == before[role].fingerprint()
        assert first_row(dataset) == [0, 170, 255]


def test_camvid_is_read_as_it_lies_there(shared_data: Path, tmp_path: Path) -> None:
    splits = {"train": "train", "test": "val"}
    root = tmp_path / "root"
    root.symlink_to(shared_data / "camvid")
    roles = opened(root, format="camvid", splits=splits)
    assert {role: len(dataset.samples) for role, dataset in roles.items()} == {
        "train": 123,
        "test": 51,
    }
    mask = roles["test"].dense(0).semantic
    assert mask is not None and mask.shape == (360, 480)
    # A street in front of the car: the sky is above, the road below.
    names = roles["test"].semantic_classes
    rows, _ = np.nonzero(mask == names.index("road"))
    above, _ = np.nonzero(mask == names.index("sky"))
    assert above.mean() < 180 < rows.mean()
