from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import COCOTree

from harness.data.coco import read_coco
from harness.data.files import FileDataset
from harness.errors import BadPicture, HarnessError


def read(coco: COCOTree, **options: Any) -> FileDataset:
    return read_coco("tree", coco.root, "pictures", "instances.json", **options)


def test_coco256_holds_the_pictures_of_the_reference_results(
    shared_data: Path, shared_reference: Path
) -> None:
    dataset = read_coco(
        "coco256", shared_data / "coco256", "val2017", "annotations/instances_val2017.json"
    )
    reference = json.loads((shared_reference / "lost_e2e_reg0_key_coco256.json").read_text())
    assert [s.id for s in dataset.samples] == list(reference["per_image"])
    assert sum(len(s.target.boxes.classes) for s in dataset.samples if s.target.boxes) == 898
    assert len(dataset.classes) == 80
    assert dataset.split == "val2017"
    assert dataset.missing() == []
    first = dataset.samples[0]
    assert (first.id, first.size) == ("139", (640, 426))
    assert first.target.boxes is not None
    assert first.target.boxes.xyxy[0].tolist() == [236.98, 142.51, 236.98 + 24.7, 142.51 + 69.5]
    assert dataset.picture(0).shape == (426, 640, 3)


def test_pictures_without_annotations_are_kept(shared_data: Path) -> None:
    dataset = read_coco(
        "coco256", shared_data / "coco256", "train2017", "annotations/instances_train2017.json"
    )
    empty = [s for s in dataset.samples if s.target.boxes and not s.target.boxes.classes]
    assert len(dataset.samples) == 128
    assert len(empty) == 2


def test_boxes_are_floats_and_crowds_are_marked_in_the_order_of_the_json(coco: COCOTree) -> None:
    coco.write()
    dataset = read(coco)
    assert [s.id for s in dataset.samples] == ["7", "3"]
    assert dataset.classes == ("cat", "dog")
    boxes, empty = (s.target.boxes for s in dataset.samples)
    assert boxes is not None
    assert empty is not None
    assert boxes.xyxy.tolist() == [[1.5, 2.25, 11.5, 6.75], [0, 0, 40, 30]]
    assert boxes.classes == ("cat", "dog")
    assert boxes.crowd.tolist() == [False, True]
    assert empty.xyxy.shape == (0, 4)


@pytest.mark.parametrize("box", [[5, 5, 0, 9], [5, 5, 9, 0], [40, 30, 0, 0]])
def test_a_box_without_area_is_kept(coco: COCOTree, box: list[float]) -> None:
    coco.data["annotations"][0]["bbox"] = box
    coco.write()
    boxes = read(coco).samples[0].target.boxes
    assert boxes is not None
    assert boxes.xyxy[0].tolist() == [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def test_a_list_chooses_and_orders_the_pictures_with_or_without_a_folder_before_the_name(
    coco: COCOTree,
) -> None:
    coco.write()
    content = "train2014/picture3.jpg\n\npicture7.jpg\r\n"
    (coco.root / "names.txt").write_bytes(content.encode())
    digest = hashlib.sha256(content.encode()).hexdigest()
    dataset = read(coco, list_file="names.txt", list_sha256=digest)
    assert [s.id for s in dataset.samples] == ["3", "7"]
    assert dataset.split == "names"
    assert dataset.missing() == []
    (coco.root / "names.txt").write_text("picture3.jpg")
    assert [s.id for s in read(coco, list_file="names.txt").samples] == ["3"]
    with pytest.raises(HarnessError, match=r"names\.txt: sha256 .*, not " + digest):
        read(coco, list_file="names.txt", list_sha256=digest)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("picture3.jpg\nother.jpg", r"names\.txt:2: 'other\.jpg' is no image of"),
        ("picture3.jpg\n\nx/picture3.jpg", r"names\.txt:3: 'x/picture3\.jpg' stands twice"),
        ("../pictures/picture3.jpg", r"names\.txt:1: the path .* not followed"),
        ("", "lists no picture"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(coco: COCOTree, content: str, what: str) -> None:
    coco.write()
    (coco.root / "names.txt").write_text(content)
    with pytest.raises(HarnessError, match=what):
        read(coco, list_file="names.txt")


def test_a_listed_name_that_two_images_bear_is_refused(coco: COCOTree) -> None:
    coco.data["images"][0]["file_name"] = "a/same.jpg"
    coco.data["images"][1]["file_name"] = "b/same.jpg"
    coco.write()
    (coco.root / "names.txt").write_text("same.jpg")
    with pytest.raises(HarnessError, match="the name of two images"):
        read(coco, list_file="names.txt")


def test_a_missing_picture_is_listed_at_opening_and_raises_when_read(coco: COCOTree) -> None:
    coco.write()
    (coco.root / "pictures/picture3.jpg").unlink()
    dataset = read(coco)
    assert dataset.missing() == ["3"]
    with pytest.raises(BadPicture, match=r"picture3\.jpg: no such picture"):
        dataset.picture(1)


def test_a_folder_without_any_picture_misses_all(coco: COCOTree) -> None:
    coco.write()
    dataset = read_coco("tree", coco.root, "elsewhere", "instances.json")
    assert dataset.missing() == ["7", "3"]


def change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return apply


ANNOTATION = ("annotations", 1)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (change("images", to={}), "images is not a list"),
        (change("images", to=[]), "lists no image"),
        (change("annotations", to=None), "annotations is not a list"),
        (change("categories", to="cat"), "categories is not a list"),
        (change("images", 1, to=5), r"images\[1\] is not a mapping"),
        (change("images", 1, "id", to=7), r"images\[1\] \(id 7\): this id stands twice"),
        (change("images", 1, "id", to="7"), r"images\[1\] \(id '7'\): this id stands twice"),
        (change("images", 1, "id", to=3.0), "id is 3.0; a whole number"),
        (change("images", 1, "id", to=True), "id is True; a whole number"),
        (change("images", 1, "id", to=None), "id is None; a whole number"),
        (change("images", 1, "file_name", to="../../x.jpg"), "not followed"),
        (change("images", 1, "file_name", to="/etc/passwd"), "not followed"),
        (change("images", 1, "file_name", to="a\0b"), "not followed"),
        (change("images", 1, "file_name", to="\ud800.jpg"), "not followed"),
        (change("images", 1, "file_name", to=4), "file_name is 4; text"),
        (change("images", 1, "width", to="40"), "width is '40'; a whole number"),
        (change("images", 1, "width", to=10**400), "a whole number of pixels"),  # by `make fuzz`
        (change("images", 1, "height", to=0), "height is 0; a whole number"),
        (change("categories", 1, "id", to=17), r"categories\[1\] \(id 17\): this id stands twice"),
        (change("categories", 1, "name", to=None), "name is None; text"),
        (change(*ANNOTATION, "image_id", to=99), r"annotations\[1\] \(id 2\): image_id 99 is no"),
        (change(*ANNOTATION, "image_id", to=[7]), r"image_id is \[7\]"),
        (change(*ANNOTATION, "category_id", to=99), "category_id 99 is no category"),
        (change(*ANNOTATION, "iscrowd", to=2), "iscrowd is 2; 0 or 1"),
        (change(*ANNOTATION, "iscrowd", to=[]), r"iscrowd is \[\]; 0 or 1"),
        (change(*ANNOTATION, "bbox", to=None), "bbox is None; four numbers"),
        (change(*ANNOTATION, "bbox", to=[1, 2, 3]), "four numbers"),
        (change(*ANNOTATION, "bbox", to=[1, 2, 3, "4"]), "four numbers"),
        (change(*ANNOTATION, "bbox", to=[1, 2, 3, True]), "four numbers"),
        (change(*ANNOTATION, "bbox", to=[1, 2, 3, 10**400]), "four numbers"),
        (change(*ANNOTATION, "bbox", to=[1, 2, -1, 4]), "negative"),
        (change(*ANNOTATION, "bbox", to=[1, 2, 4, -0.5]), "negative"),
        (change(*ANNOTATION, "bbox", to=[50, 2, 4, 4]), "outside the picture of 40x30"),
        (change(*ANNOTATION, "bbox", to=[2, -9, 4, 4]), "outside the picture of 40x30"),
    ],
)
def test_a_bad_item_is_refused_with_its_file(
    coco: COCOTree, damage: Callable[[dict[str, Any]], None], what: str
) -> None:
    damage(coco.data)
    path = coco.write()
    with pytest.raises(HarnessError, match=what) as e:
        read(coco)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("<html>not found</html>", "not JSON"),
        (b"\xff\xd8\xff\xe0", "not JSON"),
        ("[1, 2]", "a mapping with images"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ('{"images": [{"id": NaN}]}', "NaN is not a number"),
        ('{"images": [{"id": -Infinity}]}', "-Infinity is not a number"),
    ],
)
def test_a_file_that_is_not_json_is_refused(coco: COCOTree, text: str | bytes, what: str) -> None:
    path = coco.write(text)
    with pytest.raises(HarnessError, match=what) as e:
        read(coco)
    assert str(path) in str(e.value)


def test_a_number_that_overflows_is_refused(coco: COCOTree) -> None:
    coco.write(json.dumps(coco.data).replace("2.25", "1e999"))
    with pytest.raises(HarnessError, match="four numbers"):
        read(coco)


def test_an_absent_file_is_named(coco: COCOTree) -> None:
    with pytest.raises(HarnessError, match=r"instances\.json: no such file"):
        read(coco)


@pytest.mark.parametrize("option", ["images", "annotations", "list_file"])
def test_an_option_that_leaves_the_folder_is_refused(coco: COCOTree, option: str) -> None:
    coco.write()
    options: dict[str, Any] = {"images": "pictures", "annotations": "instances.json"}
    with pytest.raises(HarnessError, match="not followed"):
        read_coco("tree", coco.root, **{**options, option: "../x"})


def test_ten_thousand_pictures_open_in_linear_time(coco: COCOTree) -> None:
    count = 10_000
    coco.data["images"] = [
        {"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(count)
    ]
    coco.data["annotations"] = [
        {"id": i, "image_id": i % count, "category_id": 17, "bbox": [1, 1, 5, 5]}
        for i in range(5 * count)
    ]
    coco.write()
    dataset = read(coco)
    assert len(dataset.missing()) == count
    assert all(s.target.boxes and len(s.target.boxes.classes) == 5 for s in dataset.samples)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
places = st.sampled_from(
    [
        (kind, *rest)
        for kind, keys in {
            "images": ("id", "file_name", "width", "height"),
            "annotations": ("image_id", "category_id", "bbox", "iscrowd", "segmentation"),
            "categories": ("id", "name"),
        }.items()
        for rest in ((), (0,), *((0, key) for key in keys))
    ]
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=places, value=values)
def test_any_value_anywhere_raises_nothing_but_harness_errors(
    coco: COCOTree, place: tuple[Any, ...], value: Any
) -> None:
    damaged = COCOTree(coco.root, copy.deepcopy(coco.data))
    change(*place, to=value)(damaged.data)
    path = coco.write(json.dumps(damaged.data))
    try:
        dataset = read(coco)
    except HarnessError as error:
        said = str(error)
    else:
        said = f"{path} is read"
        for sample in dataset.samples:
            assert sample.target.boxes is not None
            assert np.isfinite(sample.target.boxes.xyxy).all()
        dataset.fingerprint()
    assert str(path) in said
