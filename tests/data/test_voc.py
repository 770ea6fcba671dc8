from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import VOCTree, encode, voc_object, voc_xml

from harness.data.dataset import Labels
from harness.data.voc import read_voc, read_voc_labels
from harness.errors import BadPicture, HarnessError

BILLION_LAUGHS = (
    '<!DOCTYPE annotation [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><annotation><object><name>&i;</name></object></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&a;</name></object></annotation>"
)


def boxes_of(voc: VOCTree) -> list[list[float]]:
    boxes = voc.open().samples[-1].target.boxes
    assert boxes is not None
    return boxes.xyxy.tolist()


def test_raccoon_has_200_pictures_and_217_boxes_in_the_image_sets_order(shared_data: Path) -> None:
    dataset = read_voc("raccoon", shared_data / "raccoon/VOCdevkit/VOC2007", "trainval")
    assert len(dataset.samples) == 200
    assert sum(len(s.target.boxes.classes) for s in dataset.samples if s.target.boxes) == 217
    assert [s.id for s in dataset.samples[:3]] == ["raccoon-1", "raccoon-2", "raccoon-3"]
    assert dataset.classes == ("raccoon",)
    assert dataset.missing() == []
    first = dataset.samples[0]
    assert first.size == (650, 417)
    assert first.target.boxes is not None
    assert first.target.boxes.xyxy.tolist() == [[80, 87, 522, 408]]
    assert all(
        dataset.picture(i).shape == (s.size[1], s.size[0], 3)
        for i, s in enumerate(dataset.samples[:20])
    )


def test_a_one_based_inclusive_box_over_the_whole_picture_is_0_0_width_height(voc: VOCTree) -> None:
    voc.add("a", voc_xml(voc_object((1, 1, 40, 30))), encode())
    assert boxes_of(voc) == [[0, 0, 40, 30]]


def test_a_box_of_one_pixel_and_a_box_of_fractions_are_kept(voc: VOCTree) -> None:
    objects = voc_object((5, 5, 5, 5)) + voc_object((1.5, 2.25, 10.75, 20.125))
    voc.add("a", voc_xml(objects), encode())
    assert boxes_of(voc) == [[4, 4, 5, 5], [0.5, 1.25, 10.75, 20.125]]


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [((0, 0, 10, 10), [-1, -1, 10, 10]), ((30, 20, 99, 88), [29, 19, 99, 88])],
)
def test_a_box_that_overhangs_the_edge_is_kept_as_annotated(
    voc: VOCTree, annotated: tuple[int, int, int, int], expected: list[float]
) -> None:
    voc.add("a", voc_xml(voc_object(annotated)), encode())
    assert boxes_of(voc) == [expected]


@pytest.mark.parametrize("box", [(41, 1, 50, 10), (1, 31, 9, 40), (-9, 1, 0, 9), (1, -9, 9, 0)])
def test_a_box_outside_the_picture_is_refused_with_file_and_object(
    voc: VOCTree, box: tuple[int, int, int, int]
) -> None:
    path = voc.add("a", voc_xml(voc_object() + voc_object(box, name="dog")), encode())
    with pytest.raises(HarnessError, match=r"object 2 \('dog'\): the box .* outside .* 40x30") as e:
        voc.open()
    assert str(path) in str(e.value)


def test_the_stored_picture_decides_where_a_box_is_outside_the_annotated_size(voc: VOCTree) -> None:
    voc.add("a", voc_xml(voc_object((60, 50, 70, 60))), encode((80, 64)))
    assert voc.open().samples[0].size == (80, 64)
    assert boxes_of(voc) == [[59, 49, 70, 60]]


def test_difficult_and_truncated_are_marked_and_absent_is_false(voc: VOCTree) -> None:
    marks = ("<difficult>1</difficult>", "<truncated>1</truncated><difficult/>", "")
    voc.add("a", voc_xml("".join(voc_object(extra=mark) for mark in marks)), encode())
    boxes = voc.open().samples[0].target.boxes
    assert boxes is not None
    assert boxes.difficult.tolist() == [True, False, False]
    assert boxes.truncated.tolist() == [False, True, False]
    assert not boxes.crowd.any()


DIFFICULT = "<difficult>1</difficult>"


def test_a_class_is_present_by_an_object_that_is_not_difficult_and_else_unclear(
    voc: VOCTree,
) -> None:
    objects = {
        "both": voc_object() + voc_object(name="dog"),
        "none": "",
        "unclear": voc_object(name="dog", extra=DIFFICULT) * 2,
        "clear": voc_object(name="dog", extra=DIFFICULT) + voc_object(name="dog"),
        "mixed": voc_object(name="ant") + voc_object(extra=DIFFICULT),
    }
    for identity, xml in objects.items():
        voc.add(identity, voc_xml(xml), encode())
    plain = voc.open()
    (dataset,) = read_voc_labels("tree", voc.root, {"test": "trainval"}).values()
    assert dataset.classes == plain.classes == ("ant", "cat", "dog")
    assert [sample.target.labels for sample in dataset.samples] == [
        Labels((1, 2)),
        Labels(()),
        Labels((), (2,)),
        Labels((2,)),
        Labels((0,), (1,)),
    ]
    assert all(sample.target.labels is None for sample in plain.samples)
    assert dataset.fingerprint() != plain.fingerprint()


def test_with_labels_every_split_has_the_classes_of_all(voc: VOCTree) -> None:
    voc.add("a", voc_xml(voc_object(name="dog")), encode())
    voc.write_image_set()
    voc.add("b", voc_xml(voc_object(name="cat", extra=DIFFICULT)), encode())
    (voc.root / "ImageSets/Main/test.txt").write_text("b\n")
    opened = read_voc_labels("tree", voc.root, {"train": "trainval", "test": "test"})
    assert {role: dataset.classes for role, dataset in opened.items()} == {
        "train": ("cat", "dog"),
        "test": ("cat", "dog"),
    }
    labels = [dataset.samples[0].target.labels for dataset in opened.values()]
    assert labels == [Labels((1,)), Labels((), (0,))]


def test_the_box_of_a_persons_part_is_not_an_object(voc: VOCTree) -> None:
    bounds = "<xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax>"
    part = f"<part><name>head</name><bndbox>{bounds}</bndbox></part>"
    voc.add("a", voc_xml(voc_object((3, 3, 9, 9), extra=part)), encode())
    assert boxes_of(voc) == [[2, 2, 9, 9]]


def test_no_object_is_a_valid_picture_with_zero_boxes(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), encode())
    boxes = voc.open().samples[0].target.boxes
    assert boxes is not None
    assert boxes.xyxy.shape == (0, 4)


@pytest.mark.parametrize("size", [None, "<width>0</width><height>0</height>"])
def test_without_a_size_the_header_of_the_picture_tells_it(voc: VOCTree, size: str | None) -> None:
    voc.add("a", voc_xml(size=size), encode((64, 48)))
    assert voc.open().samples[0].size == (64, 48)


def test_without_a_size_and_without_a_picture_the_size_is_unknown(voc: VOCTree) -> None:
    voc.add("a", voc_xml(voc_object(), size=None), None)
    dataset = voc.open()
    assert dataset.samples[0].size == (0, 0)
    assert dataset.missing() == ["a"]


def test_a_size_is_believed_without_opening_the_picture(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), encode((64, 48)))
    dataset = voc.open()
    assert dataset.samples[0].size == (40, 30)
    assert dataset.picture(0).shape == (48, 64, 3)


def test_a_missing_picture_is_listed_at_opening_and_raises_when_read(voc: VOCTree) -> None:
    voc.add("here", voc_xml(), encode())
    voc.add("gone", voc_xml(), None)
    dataset = voc.open()
    assert dataset.missing() == ["gone"]
    with pytest.raises(BadPicture, match=r"JPEGImages/gone\.jpg: no such picture"):
        dataset.read(1)


def test_a_link_to_nowhere_and_a_folder_are_missing_pictures(voc: VOCTree) -> None:
    for identity in "abc":
        voc.add(identity, voc_xml(), None)
    (voc.root / "JPEGImages/a.jpg").symlink_to(voc.root / "nowhere.jpg")
    (voc.root / "JPEGImages/b.jpg").mkdir()
    (voc.root / "real.jpg").write_bytes(encode())
    (voc.root / "JPEGImages/c.jpg").symlink_to(voc.root / "real.jpg")
    assert voc.open().missing() == ["a", "b"]


def test_other_extensions_are_found(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), None)
    voc.add("b", voc_xml(), None)
    (voc.root / "JPEGImages/a.png").write_bytes(encode(format="PNG"))
    (voc.root / "JPEGImages/b.jpeg").write_bytes(encode())
    dataset = voc.open()
    assert dataset.missing() == []
    assert dataset.picture(0).shape == dataset.picture(1).shape == (30, 40, 3)


def test_the_second_column_of_an_image_set_is_ignored(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), encode())
    voc.lines = ["a -1", ""]
    assert [s.id for s in voc.open().samples] == ["a"]


def test_duplicate_ids_are_refused_with_file_and_both_lines(voc: VOCTree) -> None:
    voc.add("a", voc_xml(), encode())
    voc.lines = ["a", "", "a 1"]
    with pytest.raises(
        HarnessError, match=r"trainval\.txt:3: 'a' stands twice \(first on line 1\)"
    ):
        voc.open()


@pytest.mark.parametrize(
    "line", ["../../../etc/passwd", "a" * 300, "/etc/passwd", "a/../../b", "..\\..\\b"]
)
def test_an_id_that_leaves_the_folder_is_refused(voc: VOCTree, line: str) -> None:
    voc.add("a", voc_xml(), encode())
    voc.lines = ["a", line]
    with pytest.raises(HarnessError, match=r"trainval\.txt:2: the path .* not followed"):
        voc.open()


def test_a_split_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not followed"):
        read_voc("x", tmp_path, "../../secret")


def test_an_image_set_that_is_absent_empty_or_binary_is_refused(voc: VOCTree) -> None:
    with pytest.raises(HarnessError, match=r"train\.txt: no such file"):
        read_voc("x", voc.root, "train")
    voc.add("a", voc_xml(), None)
    voc.lines = [" "]
    with pytest.raises(HarnessError, match="lists no picture"):
        voc.open()
    (voc.root / "ImageSets/Main/train.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(HarnessError, match="not UTF-8"):
        read_voc("x", voc.root, "train")


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        (None, "no such annotation"),
        ("", "not XML"),
        ("<annotation>", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        ("<html/>", "the outermost tag is <html>"),
        (BILLION_LAUGHS, "declares entities"),
        (EXTERNAL, "declares entities"),
        ("<annotation>" + " " * (5 << 20) + "</annotation>", "larger than 4 MiB"),
        (voc_xml(voc_object((9, 1, 8, 5))), r"object 1 \('cat'\): the box is empty"),
        (voc_xml(voc_object((1, 9, 5, 8))), "the box is empty"),
        (voc_xml(voc_object(("nan", 1, 5, 8))), "<xmin> is 'nan'"),
        (voc_xml(voc_object((1, 1, "inf", 8))), "<xmax> is 'inf'"),
        (voc_xml(voc_object((1, 1, "", 8))), "<xmax> is ''"),
        (voc_xml("<object><name>cat</name></object>"), "no <bndbox>"),
        (voc_xml(voc_object(name="")), "no <name>"),
        (voc_xml(voc_object(extra="<difficult>maybe</difficult>")), "<difficult> is 'maybe'"),
        (voc_xml(size="<width>x</width><height>3</height>"), "<width> is 'x'"),
        (voc_xml(size="<width>-4</width><height>3</height>"), "whole pixels"),
        (voc_xml(size="<width>4.5</width><height>3</height>"), "whole pixels"),
        (voc_xml(size="<width>1e300</width><height>3</height>"), "whole pixels"),
    ],
)
def test_a_bad_annotation_is_refused_with_its_file(
    voc: VOCTree, xml: str | bytes | None, what: str
) -> None:
    path = voc.add("a", xml, encode())
    started = time.perf_counter()
    with pytest.raises(HarnessError, match=what) as e:
        voc.open()
    assert str(path) in str(e.value)
    assert time.perf_counter() - started < 5


def test_a_data_set_survives_pickling(voc: VOCTree) -> None:
    voc.add("a", voc_xml(voc_object()), encode())
    dataset = voc.open()
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint() == dataset.fingerprint()
    assert np.array_equal(copy.picture(0), dataset.picture(0))


def test_the_fingerprint_moves_with_a_flag_a_size_and_a_class(voc: VOCTree) -> None:
    prints = set()
    for xml in (
        voc_xml(voc_object()),
        voc_xml(voc_object(extra="<difficult>1</difficult>")),
        voc_xml(voc_object(name="dog")),
        voc_xml(voc_object(), size="<width>41</width><height>30</height>"),
    ):
        voc.lines = []
        voc.add("a", xml, encode())
        prints.add(voc.open().fingerprint())
    assert len(prints) == 4


coordinate = st.floats(1, 40, allow_nan=False)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=coordinate, b=st.floats(1, 30), c=coordinate, d=st.floats(1, 30))
def test_reading_a_box_inverts_writing_it(
    voc: VOCTree, a: float, b: float, c: float, d: float
) -> None:
    x0, x1, y0, y1 = min(a, c), max(a, c), min(b, d), max(b, d)
    voc.lines = []
    voc.add("a", voc_xml(voc_object((x0, y0, x1, y1))), None)
    assert boxes_of(voc) == [[x0 - 1, y0 - 1, x1, y1]]


def test_deeply_nested_xml_is_read_or_refused_without_a_crash(voc: VOCTree) -> None:
    depth = 200_000
    voc.add("a", "<annotation>" + "<a>" * depth + "</a>" * depth + "</annotation>", encode())
    assert boxes_of(voc) == []
