from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packed
import pytest
from packed import LAYOUTS, VAL, WNIDS, picture
from releases import write

from harness.data.catalog import Catalog
from harness.data.dataset import Dataset
from harness.data.doctor import examine
from harness.data.imagenet import thousand, timm_list
from harness.errors import HarnessError

REAL = [[2, 0], [], [1], [999, 2]]
"""Of ILSVRC2012_val_00000001 to 4."""


def opened(folder: Path, entry: str) -> Dataset:
    file = write(folder / "sets.yaml", f"mine: {{root: root, {entry}}}\n")
    roles = Catalog.load([file]).open("mine")
    assert list(roles) == ["test"]
    return roles["test"]


def test_a_folder_called_by_a_number_is_the_class_at_that_place_in_sorted_order(
    tmp_path: Path,
) -> None:
    for number in (0, 1, 2, 10, 999):
        write(tmp_path / f"root/{number}/some.jpeg", picture(str(number)))
    write(tmp_path / "root/README.txt", "about it")
    dataset = opened(tmp_path, "format: imagenet-test, pictures: 5")
    wnids = thousand()
    assert len(wnids) == 1000 and wnids == tuple(sorted(wnids)) and wnids[:3] == WNIDS
    assert dataset.classes == tuple(wnids[number] for number in (0, 1, 2, 10, 999))
    for index, sample in enumerate(dataset.samples):
        number = int(sample.id.split("/")[0])
        assert sample.target.label is not None
        assert dataset.classes[sample.target.label] == wnids[number]
        assert dataset.read(index) == picture(str(number))
    catalog = Catalog.load([tmp_path / "sets.yaml"])
    findings = examine(catalog, "mine", decode=True).findings
    assert [each.level for each in findings] == ["ok", "warning", "ok"]
    assert "README.txt" in findings[1].what


def test_a_folder_called_by_a_wordnet_id_is_that_class(tmp_path: Path) -> None:
    for wnid in (WNIDS[2], WNIDS[0]):
        write(tmp_path / f"root/{wnid}/a.jpg", picture(wnid))
    dataset = opened(tmp_path, "format: imagenet-test")
    assert dataset.classes == (WNIDS[0], WNIDS[2])
    assert [(s.id, s.target.label) for s in dataset.samples] == [
        (f"{WNIDS[0]}/a.jpg", 0),
        (f"{WNIDS[2]}/a.jpg", 1),
    ]


@pytest.mark.parametrize(
    ("folders", "complaint"),
    [
        (["cats"], "cats: is called by none of ImageNet's 1000 classes"),
        (["1000"], "no number of one"),
        (["n00000000"], "called by none"),
        (["0", "n01440764"], "two folders are of the class n01440764"),
        (["7", "07"], "two folders are of the class"),
        ([], "no picture in a class's folder"),
    ],
)
def test_a_folder_of_no_class_or_two_of_one_are_refused(
    folders: list[str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    for folder in folders:
        write(tmp_path / "root" / folder / "a.jpg", picture("a"))
    with pytest.raises(HarnessError, match=complaint):
        opened(tmp_path, "format: imagenet-test")


def test_a_class_folder_without_a_picture_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "root/0/a.jpg", picture("a"))
    (tmp_path / "root/1").mkdir()
    with pytest.raises(HarnessError, match="no picture in this class's folder"):
        opened(tmp_path, "format: imagenet-test")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_gives_every_validation_picture_the_labels_of_its_number(
    layout: str, tmp_path: Path
) -> None:
    LAYOUTS[layout](tmp_path / "root")
    write(tmp_path / "root/real.json", json.dumps(REAL))
    dataset = opened(tmp_path, "format: imagenet-real, labels: real.json")
    assert dataset.classes == thousand()
    found = {}
    for index, sample in enumerate(dataset.samples):
        name = sample.id.rpartition("/")[2]
        assert sample.target.labels is not None and sample.target.label is None
        found[name] = sample.target.labels.present
        assert dataset.read(index) == picture(name)
        assert dataset.picture(index).shape[:2] == sample.size[::-1]
    assert found == dict(zip(VAL, [(0, 2), (), (1,), (2, 999)], strict=True))
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples
    again = Catalog.load([write(tmp_path / "plain.yaml", "it: {root: root, format: imagenet}\n")])
    plain = again.open("it")["test"]
    assert [sample.id for sample in plain.samples] == [sample.id for sample in dataset.samples]
    assert plain.fingerprint() != dataset.fingerprint()


def test_real_without_a_file_is_the_released_list(tmp_path: Path) -> None:
    packed.folders(tmp_path / "root")
    dataset = opened(tmp_path, "format: imagenet-real")
    released = json.loads(timm_list("imagenet_real_labels.json").read_text())
    assert (len(released), sum(map(bool, released))) == (50_000, 46_837)
    by_number = sorted(dataset.samples, key=lambda sample: sample.id.rpartition("_")[2])
    for sample, labels in zip(by_number, released, strict=False):
        assert sample.target.labels is not None
        assert sample.target.labels.present == tuple(sorted(labels))


def _renamed(root: Path) -> None:
    next((root / "val" / WNIDS[0]).iterdir()).rename(root / "val" / WNIDS[0] / "cat.JPEG")


@pytest.mark.parametrize(
    ("labels", "spoil", "complaint"),
    [
        (REAL, _renamed, "cat.JPEG is not called by its number among the 4 validation"),
        (REAL[:3], None, "00000004.JPEG is not called by its number"),
        ([[1], [1000], [], []], None, r"picture 2: a list of classes from 0 to 999.*1000"),
        ([[1], 3, [], []], None, "picture 2: a list of classes"),
        ([[True], [], [], []], None, "picture 1: a list of classes"),
        ({"a": 1}, None, "not a list of labels"),
        ("{", None, "not a list of labels"),
    ],
)
def test_real_labels_that_do_not_fit_are_refused(
    labels: Any, spoil: Callable[[Path], None] | None, complaint: str, tmp_path: Path
) -> None:
    packed.folders(tmp_path / "root")
    text = labels if isinstance(labels, str) else json.dumps(labels)
    write(tmp_path / "root/real.json", text)
    if spoil is not None:
        spoil(tmp_path / "root")
    with pytest.raises(HarnessError, match=complaint):
        opened(tmp_path, "format: imagenet-real, labels: real.json")


def test_real_of_a_folder_without_validation_pictures_says_what_was_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(HarnessError, match="no validation pictures"):
        opened(tmp_path, "format: imagenet-real")
