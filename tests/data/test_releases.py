from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from releases import RELEASES, Release, write

from harness.data.catalog import Catalog
from harness.data.doctor import examine
from harness.data.entries import FORMATS, OfficialEntry
from harness.errors import BadPicture, HarnessError

LISTED = sorted(set(RELEASES) - {"caltech101"})


def catalog_of(folder: Path, name: str, more: str = "") -> Catalog:
    file = write(folder / "sets.yaml", f"mine: {{format: {name}, root: root{more}}}\n")
    return Catalog.load([file])


@pytest.fixture(params=sorted(RELEASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def release(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    return RELEASES[name](tmp_path / "root", monkeypatch)


def test_every_release_is_tried() -> None:
    assert sorted(RELEASES) == [each for each, entry in FORMATS.items() if entry is OfficialEntry]
    built_in = Catalog.load()
    assert [each for each in RELEASES if built_in.entry(each).format != each] == []


def test_a_release_opens_with_its_own_splits_labels_and_classes(
    name: str, release: Release, tmp_path: Path
) -> None:
    opened = catalog_of(tmp_path, name).open("mine")
    labels = {
        role: [(sample.id, sample.target.label) for sample in dataset.samples]
        for role, dataset in opened.items()
    }
    assert labels == release.roles
    width, height = release.size
    for dataset in opened.values():
        assert dataset.classes == release.classes
        assert dataset.missing() == []
        assert dataset.sizes() == {release.size}
        again = pickle.loads(pickle.dumps(dataset))
        assert again.fingerprint() == dataset.fingerprint()
        for index in range(min(2, len(dataset.samples))):
            assert dataset.picture(index).shape == (height, width, 3)
            assert (again.picture(index) == dataset.picture(index)).all()
            assert dataset.read(index) == again.read(index)


def test_the_doctor_finds_a_whole_release_healthy_and_checks_its_size(
    name: str, release: Release, tmp_path: Path
) -> None:
    train, test = (len(release.roles[role]) for role in ("train", "test"))
    whole = catalog_of(tmp_path, name, f", pictures: {{train: {train}, test: {test}}}")
    report = examine(whole, "mine", decode=True)
    assert [each.what for each in report.findings if each.level == "error"] == []
    assert {role: split.pictures for role, split in report.splits.items()} == {
        "train": train,
        "test": test,
    }
    more = catalog_of(tmp_path, name, f", pictures: {{train: {train}, test: {test + 1}}}")
    (error,) = (each.what for each in examine(more, "mine").findings if each.level == "error")
    assert f"{test} pictures for test where {test + 1} were expected" in error


def test_a_part_that_is_not_there_is_named(name: str, release: Release, tmp_path: Path) -> None:
    path = tmp_path / "root" / release.part
    path.rename(tmp_path / "elsewhere")
    catalog = catalog_of(tmp_path, name)
    with pytest.raises(HarnessError, match=r"harness doctor mine") as error:
        catalog.open("mine")
    assert str(path) in str(error.value)
    assert not examine(catalog, "mine").healthy


@pytest.mark.parametrize("name", LISTED, indirect=True)
def test_a_list_of_nonsense_is_an_error_that_names_the_data_set(
    name: str, release: Release, tmp_path: Path
) -> None:
    path = tmp_path / "root" / release.part
    write(path, b"\xff\x00 nonsense\n")
    with pytest.raises(HarnessError) as error:
        catalog_of(tmp_path, name).open("mine")
    assert str(tmp_path / "root") in str(error.value)


@pytest.mark.parametrize("name", LISTED, indirect=True)
def test_an_empty_list_is_an_error(name: str, release: Release, tmp_path: Path) -> None:
    path = tmp_path / "root" / release.part
    write(path, "")
    with pytest.raises(HarnessError) as error:
        catalog_of(tmp_path, name).open("mine")
    assert str(tmp_path / "root") in str(error.value)


@pytest.mark.parametrize("name", sorted(set(LISTED) - {"cifar10", "cifar100"}), indirect=True)
def test_a_picture_that_is_not_there_is_missing_and_does_not_keep_it_from_opening(
    name: str, release: Release, tmp_path: Path
) -> None:
    identity = release.roles["test"][0][0]
    (tmp_path / "root" / identity).unlink()
    dataset = catalog_of(tmp_path, name).open("mine")["test"]
    assert dataset.missing() == [identity]
    with pytest.raises(BadPicture, match="no such picture"):
        dataset.picture(0)


def build(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    RELEASES[name](tmp_path / "root", monkeypatch)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "file", "text", "what"),
    [
        ("cub", "image_class_labels.txt", "1 1\n2 1\n3 9\n4 2\n", "the class of picture 3, '9'"),
        ("cub", "image_class_labels.txt", "1 1\n2 1\n4 2\n", "no line for picture 3"),
        ("cub", "train_test_split.txt", "1 1\n2 0\n3 2\n4 0\n", "picture 3: '2' is not 0 or 1"),
        ("cub", "train_test_split.txt", "1 0\n2 0\n3 0\n4 0\n", "lists no picture"),
        ("cub", "images.txt", "1 a.jpg\n1 b.jpg\n", "images.txt:2: '1 b.jpg'"),
        ("cub", "images.txt", "1 ../../a.jpg\n2 b.jpg\n3 c.jpg\n4 d.jpg\n", "leaves the data set"),
        ("cub", "images.txt", "1 a.jpg\n2 b.jpg\n3 c.jpg\n4 a.jpg\n", "a.jpg' stands twice"),
        ("sun397", "Testing_01.txt", "/z/zoo/sun_x.jpg\n", "Testing_01.txt:1: '/z/zoo'"),
        ("places365", "places365_val.txt", "a.jpg 2\n", "2, is none of the 2 classes"),
        ("places365", "places365_val.txt", "/../a.jpg 1\n", "leaves the data set"),
        ("places365", "categories_places365.txt", "/a/x 0\n/b/y 2\n", "are not 0, 1, 2"),
        ("places205", "trainvalsplit_places205/val_places205.csv", "b/bar/g.jpg 0\n",
         "label 0 is of 'b/bar' here and of 'a/abbey' elsewhere"),
        ("places205", "trainvalsplit_places205/val_places205.csv", "c/cove/g.jpg 7\n",
         "labels other than 0, 1, 2"),
        ("inat2021", "val.json", '{"images": [], "annotations": []}', "lists no picture"),
        ("inat2021", "val.json", '{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ("inat2021", "val.json", "[" * 100_000, "not JSON"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000003 Zeppelin\n",
         "FGVCAircraft .test.: KeyError: 'Zeppelin'"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 1 1 1\nbeagle_9 9 2 1\n",
         "8, is none of the 2 classes"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 1 1 1\n",
         "not of the same classes"),
        ("food", "food-101/meta/test.json", '{"pho": ["../../../pho/9"], "gyoza": []}',
         "leaves the data set"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_refused_with_what_is_wrong(
    name: str, file: str, text: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(build(name, tmp_path, monkeypatch) / file, text)
    with pytest.raises(HarnessError, match=what):
        catalog_of(tmp_path, name).open("mine")


def test_a_cifar_file_of_other_bytes_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build("cifar10", tmp_path, monkeypatch)

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return write, (str(tmp_path / "sprung"), "x")

    write(root / "cifar-10-batches-py/data_batch_2", pickle.dumps(Trap()))
    with pytest.raises(HarnessError, match=r"data_batch_2: its md5 is not the official one"):
        catalog_of(tmp_path, "cifar10").open("mine")
    assert not (tmp_path / "sprung").exists()


def test_a_class_of_caltech_with_too_few_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build("caltech101", tmp_path, monkeypatch)
    (root / "101_ObjectCategories/crab").mkdir()
    with pytest.raises(HarnessError, match=r"crab: no picture in this class's folder"):
        catalog_of(tmp_path, "caltech101").open("mine")
    picture = next((root / "101_ObjectCategories/ant").iterdir())
    write(root / "101_ObjectCategories/crab/image_0001.jpg", picture.read_bytes())
    with pytest.raises(HarnessError, match=r"crab: 1 pictures; 30 of each class"):
        catalog_of(tmp_path, "caltech101").open("mine")


def test_opening_never_downloads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "root").mkdir()
    with pytest.raises(HarnessError):
        FORMATS[name].model_validate({"format": name, "root": "root"}).open("x", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
