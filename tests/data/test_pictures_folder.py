"""A folder of pictures without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_datasets import encode

from harness.data.catalog import Catalog
from harness.data.pictures import PicturesDataset
from harness.errors import BadPicture, HarnessError


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode((40, 30)))
    return root


def test_every_picture_below_the_folder_is_one_sorted_by_its_path(tmp_path: Path) -> None:
    put(tmp_path, "b/x.jpg", "b.JPG", "a/deep/er/y.jpeg", "c.png", "b/1.webp")
    dataset = PicturesDataset("mine", tmp_path)
    ids = [sample.id for sample in dataset.samples]
    assert ids == ["a/deep/er/y.jpeg", "b.JPG", "b/1.webp", "b/x.jpg", "c.png"]
    assert all(sample.size == (40, 30) for sample in dataset.samples)
    assert all(sample.target.label is None for sample in dataset.samples)
    assert dataset.picture(0).shape == (30, 40, 3)
    assert (dataset.name, dataset.split, dataset.classes) == ("mine", "train", ())


def test_hidden_files_folders_and_other_suffixes_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", ".hidden.jpg", ".folder/b.jpg", "notes.txt", "noending")
    assert [sample.id for sample in PicturesDataset("x", tmp_path).samples] == ["a.jpg"]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no picture in it"):
        PicturesDataset("x", put(tmp_path, "notes.txt"))
    with pytest.raises(HarnessError, match=r"there: no such folder"):
        PicturesDataset("x", tmp_path / "there")


def test_a_linked_folder_is_followed_and_a_circle_is_an_error(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "a.jpg")
    root = put(tmp_path / "root", "b.jpg")
    (root / "link").symlink_to(elsewhere)
    ids = [sample.id for sample in PicturesDataset("x", root).samples]
    assert ids == ["b.jpg", "link/a.jpg"]
    (root / "back").symlink_to(root)
    with pytest.raises(HarnessError, match="leads back to a folder above it"):
        PicturesDataset("x", root)


def test_a_broken_picture_opens_and_is_named_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"text")
    dataset = PicturesDataset("x", tmp_path)
    assert dataset.samples[1].size == (0, 0)
    with pytest.raises(BadPicture, match=r"bad\.jpg: not a picture"):
        dataset.picture(1)


def test_as_an_entry_it_is_a_data_set_to_test_on(tmp_path: Path) -> None:
    put(tmp_path, "holiday/a.jpg", "holiday/b/c.png")
    file = tmp_path / "data.yaml"
    file.write_text("mine: {format: pictures, root: holiday}")
    opened = Catalog.load([file]).open("mine")
    assert list(opened) == ["test"] and opened["test"].split == "test"
    assert [sample.id for sample in opened["test"].samples] == ["a.jpg", "b/c.png"]
