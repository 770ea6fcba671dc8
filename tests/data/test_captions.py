from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.data.caption_lists import read_caption_list
from harness.data.captions import read_json_lines
from harness.data.catalog import Catalog
from harness.data.coco import read_coco_captions
from harness.data.dataset import Dataset, Sample, Target
from harness.data.doctor import examine
from harness.data.karpathy import read_karpathy
from harness.errors import HarnessError


class Described(Dataset):
    """One picture, of which these things are said."""

    def __init__(self, captions: tuple[str, ...] | None) -> None:
        self.name, self.split = "described", "test"
        self.samples = [Sample("a", (4, 4), Target(label=1, captions=captions))]


def test_the_fingerprint_covers_captions_and_their_order_and_is_as_ever_without_them() -> None:
    found = {
        Described(captions).fingerprint()
        for captions in (None, ("a dog",), ("a cat",), ("a dog", "a cat"), ("a cat", "a dog"))
    }
    assert len(found) == 5
    before = "47a9656dd3f06284ff1eaf60cc176b8dec1559787528f8b944047a508a3570c1"
    assert Described(None).fingerprint() == before


def picture(path: Path, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def written(folder: Path, *lines: object) -> Path:
    """A JSON-lines file beside two pictures."""
    for name in ("a.png", "sub/b.png"):
        picture(folder / name)
    file = folder / "said.jsonl"
    file.write_text(
        "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines)
    )
    return file


def opened(folder: Path) -> Dataset:
    return read_json_lines("said", folder, {"test": "said.jsonl"}, ".")["test"]


def captions(dataset: Dataset) -> list[tuple[str, ...] | None]:
    return [sample.target.captions for sample in dataset.samples]


A = {"image": "a.png", "captions": ["a dog", "ein Hund"]}
B = {"image": "sub/b.png", "captions": ["猫が座っている", "кот " * 750], "id": "b", "extra": 1}


def test_json_lines_give_pictures_with_captions_in_any_script_and_of_any_length(
    tmp_path: Path,
) -> None:
    written(tmp_path, A, "", B)
    dataset = opened(tmp_path)
    assert [sample.id for sample in dataset.samples] == ["a.png", "b"]
    assert [sample.size for sample in dataset.samples] == [(6, 4), (6, 4)]
    assert captions(dataset) == [tuple(A["captions"]), tuple(B["captions"])]
    assert dataset.missing() == []
    assert dataset.picture(1).shape == (4, 6, 3)


def test_a_picture_that_is_not_there_is_missing_and_the_data_set_opens(tmp_path: Path) -> None:
    written(tmp_path, A, {"image": "gone.png", "captions": ["nothing"]})
    assert opened(tmp_path).missing() == ["gone.png"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"image": "a.png", "captions": []}, "'a.png' has no caption"),
        ({"image": "a.png"}, "has no captions"),
        ({"image": "a.png", "captions": "a dog"}, "captions is 'a dog'; a list"),
        ({"image": "a.png", "captions": ["a", 3]}, "captions[1] is 3; text"),
        ({"image": "a.png", "captions": ["a", " \n"]}, "captions[1] is empty"),
        ('{"image": "a.png", "captions": ["\\ud83d"]}', "holds what is no character"),
        ('{"image": "a.png", "id": "\\udc00", "captions": ["a"]}', "id holds what is no character"),
        ({"captions": ["a"]}, "image is None; text"),
        ({"image": 7, "captions": ["a"]}, "image is 7; text"),
        ({"image": "../a.png", "captions": ["a"]}, "leaves the data set's folder"),
        ({"image": "/etc/a.png", "captions": ["a"]}, "leaves the data set's folder"),
        ({"image": "sub/b.png", "captions": ["a"]}, "'sub/b.png' stands twice"),
        ({"image": "a.png", "id": "sub/b.png", "captions": ["a"]}, "'sub/b.png' stands twice"),
        ({"image": "a.png", "id": 7, "captions": ["a"]}, "id is 7; text"),
        ('{"image": "a.png", "captions": ["a"', "not JSON"),
        ('{"image": "a.png", "captions": NaN}', "NaN is not a number"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a mapping was expected, not list"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(line: object, what: str, tmp_path: Path) -> None:
    file = written(tmp_path, {"image": "sub/b.png", "captions": ["first"]}, line)
    with pytest.raises(HarnessError, match=re.escape(what)) as refused:
        opened(tmp_path)
    assert str(refused.value).startswith(f"{file}:2: ")


def test_a_file_without_a_line_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(HarnessError, match="lists no picture"):
        opened(tmp_path)
    with pytest.raises(HarnessError, match="no such file"):
        read_json_lines("said", tmp_path, {"test": "gone.jsonl"}, ".")


def karpathy(folder: Path, *images: dict[str, Any]) -> Path:
    file = folder / "dataset_coco.json"
    file.write_text(json.dumps({"dataset": "coco", "images": list(images)}))
    return file


def image(name: str, split: str, *raw: str, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": each, "tokens": each.split(), "sentid": 1} for each in raw]
    return {"filename": name, "split": split, "sentences": sentences, **more}


def test_karpathys_splits_are_chosen_by_role_and_may_be_put_together(tmp_path: Path) -> None:
    karpathy(
        tmp_path,
        image("a.png", "test", "one", "two", filepath="val2014"),
        image("b.png", "train", "three", filepath="train2014"),
        image("c.png", "restval", "four", filepath="val2014"),
    )
    picture(tmp_path / "val2014/a.png")
    roles = read_karpathy(
        "coco", tmp_path, "dataset_coco.json", ".", {"test": "test", "train": "train+restval"}
    )
    assert [sample.id for sample in roles["train"].samples] == ["b.png", "c.png"]
    assert captions(roles["test"]) == [("one", "two")]
    assert roles["test"].missing() == []
    assert roles["train"].missing() == ["b.png", "c.png"]
    assert roles["test"].picture(0).shape == (4, 6, 3)
    with pytest.raises(HarnessError, match="no split 'tset'; there are test, train, restval"):
        read_karpathy("coco", tmp_path, "dataset_coco.json", ".", {"test": "tset"})


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"sentences": []}, "'a.jpg' has no caption"),
        ({"sentences": None}, "sentences is no list"),
        ({"sentences": [{"tokens": ["a"]}]}, "captions[0] is None; text"),
        ({"filename": None}, "filename is None; text"),
        ({"filename": "../a.jpg"}, "leaves the data set's folder"),
        ({"filepath": 3}, "filepath is 3; text"),
        ({"split": None}, "split is None; text"),
    ],
)
def test_a_bad_image_of_karpathys_file_is_refused_by_its_number(
    changed: dict[str, Any], what: str, tmp_path: Path
) -> None:
    bad = {**image("a.jpg", "test", "one"), **changed}
    karpathy(tmp_path, image("z.jpg", "test", "first"), bad)
    with pytest.raises(HarnessError, match=re.escape(what)) as refused:
        read_karpathy("coco", tmp_path, "dataset_coco.json", ".", {"test": "test"})
    assert "images[1]" in str(refused.value)


def coco(folder: Path, captions: list[dict[str, Any]]) -> None:
    images = [{"id": each, "file_name": f"{each}.png", "width": 6, "height": 4} for each in (7, 3)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


def test_cocos_own_captions_are_those_of_each_image_in_the_files_order(tmp_path: Path) -> None:
    said = [(3, "one"), (7, "two"), (3, "three")]
    coco(tmp_path, [{"id": 1, "image_id": each, "caption": text} for each, text in said])
    picture(tmp_path / "val2014/7.png")
    dataset = read_coco_captions("coco", tmp_path, "val2014", "captions.json")
    assert [sample.id for sample in dataset.samples] == ["7", "3"]
    assert captions(dataset) == [("two",), ("one", "three")]
    assert (dataset.split, dataset.missing()) == ("val2014", ["3"])


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"image_id": 7, "caption": "a"}], "image 3: '3' has no caption"),
        ([{"image_id": 9, "caption": "a"}], "image_id 9 is no image of this file"),
        ([{"image_id": 7, "bbox": [1, 2, 3, 4]}], "has no caption: not a file of COCO captions"),
        ([{"image_id": 7, "caption": 5}, {"image_id": 3, "caption": "a"}], "captions[0] is 5"),
    ],
)
def test_bad_captions_of_coco_are_refused(
    rows: list[dict[str, Any]], what: str, tmp_path: Path
) -> None:
    coco(tmp_path, rows)
    with pytest.raises(HarnessError, match=re.escape(what)):
        read_coco_captions("coco", tmp_path, "val2014", "captions.json")


TOKEN = "b.jpg#0\tA dog .\nb.jpg#1\tOne, two | three .\na.jpg#0\tA cat .\n"
PIPES = (
    "image_name| comment_number| comment\nb.jpg| 0| A dog .\n"
    'b.jpg| 1   One, "two .\na.jpg| 0| A cat .\n'
)
COMMAS = 'image,caption\nb.jpg,A dog .\nb.jpg,"One, two ."\na.jpg,A cat .\n'


@pytest.mark.parametrize(
    ("file", "text", "second"),
    [
        ("results.token", TOKEN, "One, two | three ."),
        ("results.csv", PIPES, 'One, "two .'),
        ("captions.CSV", COMMAS, "One, two ."),
    ],
)
def test_flickr30ks_release_and_its_csv_files_are_read(
    file: str, text: str, second: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text)
    dataset = read_caption_list("flickr", tmp_path, file, "pictures")
    assert [sample.id for sample in dataset.samples] == ["b.jpg", "a.jpg"]
    assert captions(dataset) == [("A dog .", second), ("A cat .",)]
    (tmp_path / "test.txt").write_text("a\n")
    some = read_caption_list("flickr", tmp_path, file, "pictures", "test.txt")
    assert ([sample.id for sample in some.samples], some.split) == (["a.jpg"], "test")


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("x.token", "a.jpg#0\tone\nno tab here", "x.token:2: 'no tab here': NAME.jpg#0, a tab"),
        ("x.token", "a.jpg#0\t   \n", "x.token:1: "),
        ("x.token", "", "lists no picture"),
        ("x.csv", "", "is empty; a heading"),
        ("x.csv", "one,two\na.jpg,b", "names no picture and caption"),
        ("x.csv", "image,caption\na.jpg,b,c", "x.csv:2: 3 fields where the heading has 2"),
        ("x.csv", "image,caption\na.jpg,", "captions[0] is empty"),
        ("x.csv", 'image,caption\na.jpg,"b', "x.csv:2: not a line of CSV"),
        ("x.csv", "image,caption\n../a.jpg,b", "leaves the data set's folder"),
    ],
)
def test_a_bad_list_of_captions_is_refused(file: str, text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(HarnessError, match=re.escape(what)):
        read_caption_list("flickr", tmp_path, file, "pictures")


def test_a_list_that_names_what_has_no_caption_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.token").write_text(TOKEN)
    (tmp_path / "test.txt").write_text("a\nz\n")
    with pytest.raises(HarnessError, match=r"test.txt:2: 'z' has no caption"):
        read_caption_list("flickr", tmp_path, "x.token", "pictures", "test.txt")


def test_an_entry_of_a_data_set_file_opens_captions_and_the_doctor_counts_them(
    tmp_path: Path,
) -> None:
    written(tmp_path, A, B)
    file = tmp_path / "datasets.yaml"
    file.write_text("said: {format: captions, file: said.jsonl}\n")
    catalog = Catalog.load([file])
    assert captions(catalog.open("said")["test"]) == [tuple(A["captions"]), tuple(B["captions"])]
    report = examine(catalog, "said")
    assert report.healthy
    told = "test (said): 4 captions, 2 to 2 a picture; the longest has 3,000 characters"
    assert told in [finding.what for finding in report.findings]
    file.write_text("said: {format: captions}\n")
    with pytest.raises(HarnessError, match=r"datasets.yaml:1: said: give one of file: NAME.jsonl"):
        Catalog.load([file])
