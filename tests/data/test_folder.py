from __future__ import annotations

from pathlib import Path

import pytest
from small_datasets import encode

from harness.data.folder import read_folder
from harness.errors import BadPicture, HarnessError


def build(root: Path, *names: str) -> Path:
    """A folder with a picture of 40x30 under every name that ends as a picture does."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode())
    return root


def test_imagenette_has_1000_and_300_pictures_of_ten_classes(shared_data: Path) -> None:
    opened = read_folder("imagenette", shared_data / "imagenette")
    assert {role: len(dataset.samples) for role, dataset in opened.items()} == {
        "train": 1000,
        "test": 300,
    }
    assert opened["train"].classes == opened["test"].classes
    assert opened["train"].classes[:2] == ("n01440764", "n02102040")
    for dataset in opened.values():
        assert all(s.size == (224, 224) for s in dataset.samples)
        assert [s.id for s in dataset.samples] == sorted(s.id for s in dataset.samples)
        for sample in dataset.samples:
            assert sample.target.label is not None
            assert f"/{dataset.classes[sample.target.label]}/" in sample.id
            assert sample.target.boxes is None


def test_ids_are_relative_sorted_and_labelled_alike_in_both_splits(tmp_path: Path) -> None:
    root = build(
        tmp_path, "train/b/1.jpg", "train/a/2.JPG", "train/a/deep/er/0.png", "val/b/x.jpeg",
        "val/a/y.jpg",
    )  # fmt: skip
    opened = read_folder("x", root)
    train, test = opened["train"], opened["test"]
    assert [(s.id, s.target.label) for s in train.samples] == [
        ("train/a/2.JPG", 0),
        ("train/a/deep/er/0.png", 0),
        ("train/b/1.jpg", 1),
    ]
    assert [(s.id, s.target.label) for s in test.samples] == [
        ("val/a/y.jpg", 0),
        ("val/b/x.jpeg", 1),
    ]
    assert train.classes == test.classes == ("a", "b")
    assert (train.split, test.split) == ("train", "val")
    assert train.picture(1).shape == (30, 40, 3)
    assert train.missing() == []


def test_test_stands_in_for_val_and_val_comes_before_test(tmp_path: Path) -> None:
    build(tmp_path, "test/a/1.jpg")
    assert read_folder("x", tmp_path)["test"].split == "test"
    build(tmp_path, "val/a/1.jpg")
    assert read_folder("x", tmp_path)["test"].split == "val"


def test_a_folder_without_train_is_a_test_split_alone(tmp_path: Path) -> None:
    assert list(read_folder("x", build(tmp_path, "val/a/1.jpg"))) == ["test"]


def test_a_folder_without_a_test_split_is_refused(tmp_path: Path) -> None:
    build(tmp_path, "train/a/1.jpg")
    with pytest.raises(HarnessError, match="has no folder val/"):
        read_folder("x", tmp_path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"), "val: the class 'b'"),
        (("train/a/1.jpg", "val/a/1.jpg", "val/b/1.jpg"), "train: the class 'b'"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.txt"), "val: the class 'b'"),
    ],
)
def test_a_class_without_pictures_in_one_split_is_refused(
    tmp_path: Path, names: tuple[str, ...], what: str
) -> None:
    with pytest.raises(HarnessError, match=what):
        read_folder("x", build(tmp_path, *names))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no picture in a class's folder"):
        read_folder("x", build(tmp_path, "val/1.jpg"))


def test_hidden_files_and_what_is_no_picture_are_ignored_and_listed(tmp_path: Path) -> None:
    ignored = (
        "val/.DS_Store",
        "val/a/._1.jpg",
        "val/a/notes.txt",
        "val/loose.jpg",
        "val/.git/1.jpg",
    )
    dataset = read_folder("x", build(tmp_path, "val/a/1.jpg", *ignored))["test"]
    assert [s.id for s in dataset.samples] == ["val/a/1.jpg"]
    assert dataset.ignored == ("val/.DS_Store", "val/.git", "val/a/._1.jpg", "val/a/notes.txt",
                               "val/loose.jpg")  # fmt: skip


def test_a_damaged_picture_does_not_keep_the_folder_from_opening(tmp_path: Path) -> None:
    root = build(tmp_path, "val/a/1.jpg", "val/a/2.jpg")
    (root / "val/a/2.jpg").write_text("text")
    dataset = read_folder("x", root)["test"]
    assert [s.size for s in dataset.samples] == [(40, 30), (0, 0)]
    with pytest.raises(BadPicture, match=r"val/a/2\.jpg: not a picture"):
        dataset.picture(1)


def test_linked_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    elsewhere = build(tmp_path / "elsewhere", "1.jpg")
    root = tmp_path / "root"
    (root / "val").mkdir(parents=True)
    (root / "val" / "a").symlink_to(elsewhere)
    assert [s.id for s in read_folder("x", root)["test"].samples] == ["val/a/1.jpg"]
    (elsewhere / "again").symlink_to(elsewhere)
    with pytest.raises(HarnessError, match="leads back"):
        read_folder("x", root)
