from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from releases import RELEASES
from small_datasets import COCOTree, VOCTree, encode, voc_object, voc_xml

from harness.data.catalog import Catalog
from harness.data.doctor import Report, examine
from harness.errors import HarnessError


def catalog_of(folder: Path, entry: str) -> Catalog:
    path = folder / "sets.yaml"
    path.write_text(f"mine: {{{entry}}}\n")
    return Catalog.load([path])


def said(report: Report, level: str) -> list[str]:
    return [finding.what for finding in report.findings if finding.level == level]


VOC = "format: voc, root: VOCdevkit/VOC2007, split: trainval"


def test_a_whole_data_set_is_healthy_and_counted(voc: VOCTree, tmp_path: Path) -> None:
    voc.add("a", voc_xml(voc_object() + voc_object(name="dog")), encode())
    voc.add("b", voc_xml(), encode())
    voc.open()
    catalog = catalog_of(tmp_path, f"{VOC}, pictures: 2")
    calls: list[tuple[int, int]] = []
    report = examine(catalog, "mine", decode=True, progress=lambda *call: calls.append(call))
    assert report.healthy
    assert calls == [(1, 2), (2, 2)]
    split = report.splits["test"]
    counts = (split.pictures, split.missing, split.boxes, split.without_boxes, split.classes)
    assert counts == (2, 0, 2, 1, 2)
    assert split.fingerprint == catalog.open("mine")["test"].fingerprint()
    assert any("1 pictures have no box" in what for what in said(report, "ok"))
    json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))


def test_of_a_data_set_with_several_classes_a_picture_labels_are_counted(
    voc: VOCTree, tmp_path: Path
) -> None:
    difficult = voc_object(name="fox", extra="<difficult>1</difficult>")
    voc.add("a", voc_xml(voc_object() + voc_object(name="dog")), encode())
    voc.add("b", voc_xml(voc_object() + difficult), encode())
    voc.add("c", voc_xml(), encode())
    voc.open()
    report = examine(catalog_of(tmp_path, f"{VOC}, labels: true"), "mine")
    assert report.healthy and report.splits["test"].classes == 3
    told = "1 pictures show several classes, 1 none; in 1 a class is unclear"
    assert any(told in what for what in said(report, "ok"))
    (warning,) = said(report, "warning")
    assert "1 of 3 classes have no picture here: fox" in warning
    plain = examine(catalog_of(tmp_path, VOC), "mine")
    assert said(plain, "warning") == [] and "classes" not in " ".join(said(plain, "ok"))


def test_raccoon_is_healthy(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "raccoon/VOCdevkit/VOC2007"
    catalog = catalog_of(tmp_path, f"format: voc, root: {root}, split: trainval, pictures: 200")
    report = examine(catalog, "mine")
    assert report.healthy
    assert (report.splits["test"].pictures, report.splits["test"].boxes) == (200, 217)


def test_an_absent_root_says_which_command_brings_it(tmp_path: Path) -> None:
    report = examine(Catalog.load(data_root=tmp_path), "voc07")
    (finding,) = report.findings
    assert finding.level == "error"
    assert str(tmp_path / "VOCdevkit/VOC2007") in finding.what
    assert finding.fix == f"harness datasets fetch voc07 --data-root {tmp_path}"
    assert not report.healthy


def test_what_cannot_be_fetched_says_how_it_is_come_by(tmp_path: Path) -> None:
    (finding,) = examine(Catalog.load(data_root=tmp_path), "imagenet").findings
    assert "https://image-net.org" in (finding.fix or "")


def test_every_absent_part_is_listed(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages").mkdir(parents=True)
    errors = said(examine(Catalog.load(data_root=tmp_path), "voc07"), "error")
    assert len(errors) == 2
    assert "Annotations" in errors[0]
    assert "trainval.txt" in errors[1]


def test_missing_pictures_are_counted_and_three_are_named(voc: VOCTree, tmp_path: Path) -> None:
    for identity in "abcde":
        voc.add(identity, voc_xml(), encode() if identity == "a" else None)
    voc.open()
    report = examine(catalog_of(tmp_path, VOC), "mine", decode=True)
    (error,) = said(report, "error")
    assert "4 pictures are missing: b, c, d and 1 more" in error
    assert report.splits["test"].missing == 4


def test_another_count_than_expected_is_an_error(voc: VOCTree, tmp_path: Path) -> None:
    voc.add("a", voc_xml(), encode())
    voc.open()
    (error,) = said(examine(catalog_of(tmp_path, f"{VOC}, pictures: 9"), "mine"), "error")
    assert "1 pictures for test where 9 were expected" in error


def test_a_broken_annotation_is_a_finding_not_a_crash(voc: VOCTree, tmp_path: Path) -> None:
    voc.add("a", "<annotation>", encode())
    voc.write_image_set()
    (error,) = said(examine(catalog_of(tmp_path, VOC), "mine"), "error")
    assert "a.xml: not XML" in error


def test_another_list_than_the_data_set_is_defined_by_is_an_error(
    coco: COCOTree, tmp_path: Path
) -> None:
    coco.write()
    names = coco.root / "names.txt"
    names.write_text("picture3.jpg\n")
    digest = hashlib.sha256(names.read_bytes()).hexdigest()
    catalog = catalog_of(
        tmp_path,
        "format: coco, root: coco, images: pictures, annotations: instances.json, "
        f"list: names.txt, list_sha256: {digest}",
    )
    assert examine(catalog, "mine").healthy
    names.write_text("picture7.jpg\n")
    (error,) = said(examine(catalog, "mine"), "error")
    assert "another list" in error


def test_decoding_finds_damaged_and_resized_pictures(voc: VOCTree, tmp_path: Path) -> None:
    voc.add("good", voc_xml(), encode())
    voc.add("cut", voc_xml(), encode()[:-300])
    voc.add("wide", voc_xml(), encode((64, 30)))
    voc.open()
    catalog = catalog_of(tmp_path, VOC)
    assert examine(catalog, "mine").healthy
    report = examine(catalog, "mine", decode=True)
    (error,) = said(report, "error")
    (warning,) = said(report, "warning")
    assert "cut.jpg: damaged picture" in error
    assert "wide (annotated 40x30, stored 64x30)" in warning


def test_ignored_files_and_files_that_are_no_pictures_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "pictures/val/a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(encode())
    (folder / "2.jpg").write_text("text")
    (folder / "notes.txt").write_text("text")
    report = examine(catalog_of(tmp_path, "format: folder, root: pictures"), "mine")
    (error,) = said(report, "error")
    ignored, lonely = said(report, "warning")
    assert "1 files are no pictures: val/a/2.jpg" in error
    assert "1 files are ignored" in ignored
    assert "val/a/notes.txt" in ignored
    assert "no train/" in lonely


def test_classes_without_a_picture_in_a_split_are_told(tmp_path: Path) -> None:
    release = RELEASES["places365"](tmp_path / "root", pytest.MonkeyPatch())
    report = examine(catalog_of(tmp_path, "format: places365, root: root"), "mine")
    assert said(report, "warning") == [
        f"test (val): 1 of 2 classes have no picture here: {release.classes[0]}"
    ]
    assert report.healthy


def test_what_a_killed_fetch_left_is_told(tmp_path: Path) -> None:
    (tmp_path / ".fetch-abc").mkdir()
    report = examine(Catalog.load(data_root=tmp_path), "voc07")
    (warning,) = (finding for finding in report.findings if finding.level == "warning")
    assert ".fetch-abc" in warning.what
    assert warning.fix == f"rm -r '{tmp_path / '.fetch-abc'}'"


def test_an_unknown_name_raises() -> None:
    with pytest.raises(HarnessError, match="no data set"):
        examine(Catalog.load(), "nonsense")
