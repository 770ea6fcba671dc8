"""What the doctor says of masks and depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_files import ids, png, put, put_picture

from harness.data.catalog import Catalog
from harness.data.doctor import Report, examine

MASKS = "format: masks, root: root, splits: {test: val}, classes: [sky, road, car], pictures: 3"
RGBD = "format: rgbd, root: root, splits: {test: val}, invalid: [0, 65535]"


def report(folder: Path, entry: str, *, decode: bool = False) -> Report:
    path = folder / "sets.yaml"
    path.write_text(f"mine: {{{entry}}}\n")
    return examine(Catalog.load([path]), "mine", decode=decode)


def said(found: Report, level: str) -> list[str]:
    return [finding.what for finding in found.findings if finding.level == level]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures, each with a mask and a depth map."""
    for name in "abc":
        put_picture(tmp_path / f"root/images/val/{name}.jpg")
        put(tmp_path / f"root/masks/val/{name}.png", png(ids(0, 1, 255)))
        put(tmp_path / f"root/depth/val/{name}.png", png(ids(0, 700, 9100, dtype=np.uint16)))
    return tmp_path


def test_masks_are_counted_and_the_first_one_is_read(root: Path) -> None:
    put(root / "root/masks/val/b.png", png(ids(7)))
    found = report(root, MASKS)
    assert found.healthy and found.splits["test"].classes == 3
    assert said(found, "ok") == [
        "test (val): all of 3 pictures are there",
        "test (val): 1 masks read: 2 of 3 classes occur",
    ]
    assert said(found, "warning") == []


def test_with_decode_all_are_read_and_a_class_without_a_pixel_is_told(root: Path) -> None:
    found = report(root, MASKS, decode=True)
    assert found.healthy
    assert "test (val): 3 masks read: 2 of 3 classes occur" in said(found, "ok")
    assert said(found, "warning") == ["test (val): 1 classes have no pixel here: car"]
    put(root / "root/masks/val/b.png", png(ids(7)))
    (error,) = said(report(root, MASKS, decode=True), "error")
    assert "b.png: the id 7 is of no class" in error


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (png(ids(0, size=(40, 31))), "40x31 pixels, but its picture has 40x30"),
        (png(np.zeros((30, 40, 3), np.uint8)), "RGB colours where class ids were expected"),
        (png(ids(3)), "the id 3 is of no class"),
        (png(ids(255)), "every pixel of the mask is ignored"),
    ],
)
def test_a_bad_first_mask_is_an_error(root: Path, mask: bytes, complaint: str) -> None:
    put(root / "root/masks/val/a.png", mask)
    found = report(root, MASKS)
    (error,) = said(found, "error")
    assert "masks/val/a.png" in error and complaint in error
    assert not found.healthy


def test_a_missing_label_is_missing_and_the_first_that_is_there_is_read(root: Path) -> None:
    (root / "root/masks/val/a.png").unlink()
    found = report(root, MASKS)
    assert said(found, "error") == ["test (val): 1 pictures or their labels are missing: a"]
    assert "test (val): 1 masks read: 2 of 3 classes occur" in said(found, "ok")
    for name in "bc":
        (root / f"root/masks/val/{name}.png").unlink()
    assert "3 pictures or their labels" in said(report(root, MASKS), "error")[0]


def test_another_count_than_the_official_one_is_an_error(root: Path) -> None:
    (root / "root/images/val/c.jpg").unlink()
    (root / "root/masks/val/c.png").unlink()
    (error,) = said(report(root, MASKS), "error")
    assert "2 pictures for test where 3 were expected" in error


def test_depth_is_told_in_metres(root: Path) -> None:
    found = report(root, RGBD)
    assert found.healthy
    assert "test (val): 1 depth maps read: 0.70 to 9.10 m, 67% of the pixels known" in said(
        found, "ok"
    )
    assert said(found, "warning") == []


@pytest.mark.parametrize(("scale", "told"), [(1, "9100"), (1_000_000, "0.0091")])
def test_depth_that_nothing_has_puts_its_scale_in_doubt(root: Path, scale: int, told: str) -> None:
    found = report(root, f"{RGBD}, scale: {scale}")
    (warning,) = [finding for finding in found.findings if finding.level == "warning"]
    assert warning.what == f"test (val): depth up to {told} m"
    assert warning.fix is not None and "scale" in warning.fix


def test_what_is_wrong_with_all_labels_is_not_told_of_each(root: Path) -> None:
    for place in range(30):
        put_picture(root / f"root/images/val/{place}.jpg")
        put(root / f"root/masks/val/{place}.png", png(ids(9)))
    errors = said(report(root, MASKS.replace("3", "33"), decode=True), "error")
    assert len(errors) == 11
    assert errors[-1] == "test (val): 20 more labels are bad"


def test_labels_of_painted_scenes_are_read_too(tmp_path: Path) -> None:
    found = report(tmp_path, "format: scenes, count: {train: 2, test: 2}, size: 32")
    assert found.healthy
    texts = said(found, "ok")
    assert any("train (train): 1 masks read" in text for text in texts)
    assert any("test (test): 1 depth maps read" in text for text in texts)


def test_without_labels_nothing_is_told_of_them() -> None:
    texts = said(examine(Catalog.load(), "generated", decode=True), "ok")
    assert texts and not any("masks" in text or "depth" in text for text in texts)
