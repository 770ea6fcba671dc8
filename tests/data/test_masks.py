"""Pictures and masks of one's own: how they pair, what is missing, what the fingerprint notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from label_files import catalog_of, first_row, ids, opened, png, put, put_picture

from harness.data.dataset import First
from harness.data.imagenet_tests import Relabelled
from harness.errors import BadPicture, HarnessError

MASKS: dict[str, Any] = {
    "format": "masks",
    "splits": {"train": "train", "test": "val"},
    "classes": ["a", "b", "c"],
}


def masks(root: Path, *names: str) -> Path:
    for split in ("train", "val"):
        for name in names:
            put_picture(root / f"images/{split}/{name}")
            stem = name.rpartition(".")[0]
            put(root / f"masks/{split}/{stem}.png", png(ids(0, 1, 2)))
    return root


def test_masks_pair_by_their_stem_in_folders_below_too(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "b.jpg", "a.png", "sub/c.d.jpg")
    put(root / "images/train/notes.txt", "text")
    roles = opened(root, **MASKS)
    assert [sample.id for sample in roles["train"].samples] == ["a", "b", "sub/c.d"]
    assert roles["train"].semantic_classes == ("a", "b", "c")
    assert not roles["train"].missing()
    assert first_row(roles["test"], 2) == [0, 1, 2]


def test_a_list_chooses_and_orders_with_or_without_suffixes(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "b.jpg", "a.png", "sub/c.jpg")
    put(root / "lists/train.txt", "sub/c\na.png\n\n")
    put(root / "lists/val.txt", "b\nnowhere\n")
    roles = opened(root, **MASKS, list="lists/{split}.txt")
    assert [sample.id for sample in roles["train"].samples] == ["sub/c", "a"]
    assert roles["test"].missing() == ["nowhere"]


def test_classes_may_come_with_ids_or_from_a_file(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg")
    ignore = {"ignore": [1]}
    roles = opened(root, **{**MASKS, "classes": {"sky": 2, "road": 0}, **ignore})
    assert roles["test"].semantic_classes == ("sky", "road")
    assert first_row(roles["test"]) == [1, 255, 0]
    put(root / "names.txt", "low\nhigh\n")
    reduced = {**MASKS, "classes": "names.txt", "reduce_zero_label": True}
    assert first_row(opened(root, **reduced)["test"]) == [255, 0, 1]
    (root / "names.txt").write_text("\n")
    with pytest.raises(HarnessError, match="mine: classes: 0 classes of pixels"):
        opened(root, **reduced)


def test_what_lacks_its_other_half_is_missing_and_is_told_when_read(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg", "b.jpg", "c.jpg")
    (root / "masks/val/a.png").unlink()
    (root / "images/val/c.jpg").unlink()
    dataset = opened(root, **MASKS)["test"]
    assert [sample.id for sample in dataset.samples] == ["a", "b", "c"]
    assert dataset.missing() == ["a", "c"]
    assert First(dataset, 1).missing() == ["a"]
    with pytest.raises(BadPicture, match=r"masks/val/a\.png: no such label of a picture"):
        dataset.dense(0)
    with pytest.raises(BadPicture, match=r"images/val/c\.jpg: no such picture"):
        dataset.picture(2)


def test_opening_reads_no_mask(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg")
    put(root / "masks/val/a.png", "not a mask at all")
    dataset = opened(root, **MASKS)["test"]
    assert dataset.fingerprint() and not dataset.missing()
    with pytest.raises(BadPicture, match=r"masks/val/a\.png: not a mask"):
        dataset.dense(0)


def test_the_fingerprint_notices_other_labels_and_other_readings_of_them(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg", "b.jpg")
    dataset = opened(root, **MASKS)["test"]
    seen = {dataset.fingerprint(), First(dataset, 1).fingerprint()}
    assert First(dataset, 2).fingerprint() == dataset.fingerprint()
    assert Relabelled(dataset, dataset.samples, ()).fingerprint() == dataset.fingerprint()
    for change in ({"classes": ["a", "c", "b"]}, {"ignore": []}, {"reduce_zero_label": True}):
        seen.add(opened(root, **{**MASKS, **change})["test"].fingerprint())
    put(root / "masks/val/b.png", png(ids(0, 1, 2, 1, 0, 0, 1)))
    seen.add(opened(root, **MASKS)["test"].fingerprint())
    (root / "masks/val/b.png").unlink()
    seen.add(opened(root, **MASKS)["test"].fingerprint())
    assert len(seen) == 7


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg", "b.jpg")
    put_picture(root / "images/val/a.png")
    with pytest.raises(HarnessError, match=r"images/val: a\.jpg and a\.png: two pictures"):
        opened(root, **MASKS)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg")
    (root / "images/val/a.jpg").unlink()
    (root / "masks/val/a.png").unlink()
    with pytest.raises(HarnessError, match=r"images/val: no picture of the split 'val'"):
        opened(root, **MASKS)
    put(root / "train.txt", "a\n")
    put(root / "val.txt", "\n")
    with pytest.raises(HarnessError, match=r"val\.txt: no picture of the split 'val'"):
        opened(root, **MASKS, list="{split}.txt")
    put(root / "val.txt", "a\na\n")
    with pytest.raises(HarnessError, match=r"val\.txt: 'a' stands twice"):
        opened(root, **MASKS, list="{split}.txt")
    put(root / "val.txt", "../a\n")
    with pytest.raises(HarnessError, match=r"val\.txt:1: the path '\.\./a' leaves"):
        opened(root, **MASKS, list="{split}.txt")


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    root = masks(tmp_path / "root", "a.jpg")
    with pytest.raises(HarnessError, match=r"mine: there is no .*root/labels/train:"):
        opened(root, **MASKS, masks="labels/{split}")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({**MASKS, "images": "images"}, r"splits: would all be the same pictures"),
        ({**MASKS, "images": "x/{split}", "masks": "x/{split}"}, r"need an image_suffix"),
        ({**MASKS, "classes": ["a", "b"], "ignore": [1]}, r"id 1 of the class 'b' is also ignored"),
        ({**MASKS, "classes": {"a": 1}, "reduce_zero_label": True}, r"give one of them"),
        ({**MASKS, "classes": []}, r"0 classes"),
        ({**MASKS, "ignore": [-1]}, r"mine\.ignore"),
        ({**MASKS, "mask_suffix": "_mask"}, r"mine\.mask_suffix"),
        ({"format": "ade20k", "splits": {}}, r"mine\.splits"),
        ({"format": "ade20k", "mask": "x"}, r"mine\.mask: unknown key"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(
    tmp_path: Path, entry: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(HarnessError, match=complaint):
        catalog_of(tmp_path / "root", **entry)


def test_panoptic_ids_of_coco_are_read_through_a_list(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for folder in ("val2017", "semantic"):
        (root / folder).symlink_to(shared_data / "coco256" / folder)
    stems = sorted(path.stem for path in (root / "semantic/val2017").iterdir())
    put(root / "val2017.txt", "\n".join(stems))
    dataset = opened(
        root,
        format="masks",
        splits={"test": "val2017"},
        images="{split}",
        masks="semantic/{split}",
        list="{split}.txt",
        classes=[str(each) for each in range(1, 201)],
        reduce_zero_label=True,
    )["test"]
    assert len(dataset.samples) == 100 and not dataset.missing()
    for index in range(5):
        mask, (width, height) = dataset.dense(index).semantic, dataset.samples[index].size
        assert mask is not None and mask.shape == (height, width)
