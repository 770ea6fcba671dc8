from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import packed
import pyarrow.parquet as parquet
import pytest
from packed import LAYOUTS, TRAIN, VAL, WNIDS, picture, tar
from releases import write

from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, Role, decode
from harness.data.devkit import validation_classes
from harness.data.doctor import examine
from harness.data.imagenet import read_imagenet
from harness.data.shards import labelled
from harness.errors import BadPicture, HarnessError

IDS = {
    "train": sorted(f"train/{wnid}/{file}" for file, wnid in TRAIN.items()),
    "test": sorted(f"val/{wnid}/{file}" for file, wnid in VAL.items()),
}


def catalog_of(folder: Path, more: str = "") -> Catalog:
    file = write(folder / "sets.yaml", f"mine: {{format: imagenet, root: root{more}}}\n")
    return Catalog.load([file])


def opened(folder: Path) -> dict[Role, Dataset]:
    return catalog_of(folder).open("mine")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_one_data_set(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "root")
    packed.folders(tmp_path / "plain")
    plain = read_imagenet("mine", tmp_path / "plain")
    found = opened(tmp_path)
    for role, dataset in found.items():
        assert [sample.id for sample in dataset.samples] == IDS[role]
        assert dataset.classes == WNIDS
        assert dataset.missing() == []
        assert dataset.fingerprint() == plain[role].fingerprint()
        for index, sample in enumerate(dataset.samples):
            assert sample.target.label == WNIDS.index(sample.id.split("/")[1])
            name = sample.id.rpartition("/")[2]
            assert dataset.read(index) == picture(name)
            assert sample.size == decode(picture(name), name).shape[1::-1]
    assert set(found) == {"train", "test"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_pickled_and_examined(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "root")
    for dataset in opened(tmp_path).values():
        dataset.picture(0)
        again = pickle.loads(pickle.dumps(dataset))
        assert (again.picture(1) == dataset.picture(1)).all()
        carried = pickle.dumps(dataset)
        assert not any(
            picture(sample.id.rpartition("/")[2]) in carried for sample in dataset.samples
        )
    report = examine(catalog_of(tmp_path, ", pictures: {train: 6, test: 4}"), "mine", decode=True)
    assert [each.what for each in report.findings if each.level != "ok"] == []
    report = examine(catalog_of(tmp_path, ", pictures: {train: 6, test: 5}"), "mine")
    (error,) = (each.what for each in report.findings if each.level == "error")
    assert "4 pictures for test where 5 were expected" in error


def test_validation_alone_is_a_test_split_alone(tmp_path: Path) -> None:
    packed.official_tars(tmp_path / "root")
    (tmp_path / "root/ILSVRC2012_img_train.tar").unlink()
    assert list(opened(tmp_path)) == ["test"]


def test_the_devkit_and_kaggle_say_the_same(tmp_path: Path) -> None:
    packed.solution(tmp_path / "kaggle")
    packed.devkit(tmp_path / "devkit")
    packed.devkit_archive(tmp_path / "archive")
    expected = {Path(file).stem: wnid for file, wnid in VAL.items()}
    for folder in ("kaggle", "devkit", "archive"):
        _, classes = validation_classes(tmp_path / folder)
        assert classes == expected


@pytest.mark.parametrize("layout", ["flat_with_devkit", "kaggle", "official_tars"])
def test_a_validation_picture_that_is_not_there_is_missing(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / "root")
    gone = "ILSVRC2012_val_00000003"
    for path in (tmp_path / "root").rglob(f"{gone}.JPEG"):
        path.unlink()
    archive = tmp_path / "root/ILSVRC2012_img_val.tar"
    if archive.exists():
        write(archive, tar((file, picture(file)) for file in VAL if gone not in file))
    dataset = opened(tmp_path)["test"]
    (missing,) = dataset.missing()
    assert missing == f"val/{WNIDS[1]}/{gone}.JPEG"
    index = [sample.id for sample in dataset.samples].index(missing)
    with pytest.raises(BadPicture, match=gone):
        dataset.picture(index)


def _without_labels(root: Path) -> None:
    packed.flat_with_solution(root)
    (root / "LOC_val_solution.csv").unlink()


def _without_meta(root: Path) -> None:
    packed.flat_with_devkit(root)
    (root / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()


def _damaged_meta(root: Path) -> None:
    packed.flat_with_devkit(root)
    write(root / "ILSVRC2012_devkit_t12/data/meta.mat", b"MATLAB 5.0 MAT-file" + bytes(200))


def _strange_number(root: Path) -> None:
    packed.flat_with_devkit(root)
    truth = root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    write(truth, "1\n2\n9\n1\n")


def _two_classes(root: Path) -> None:
    packed.kaggle(root)
    write(root / "LOC_val_solution.csv", f"a,{WNIDS[0]} 1 2 3 4 {WNIDS[1]} 1 2 3 4\n")


def _cut(file: str, keep: float) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        packed.official_tars(root)
        data = (root / file).read_bytes()
        write(root / file, data[: int(len(data) * keep)])

    return build


def _cut_between_members(root: Path) -> None:
    """An end that tarfile takes for a sound one."""
    packed.official_tars(root)
    one = tar([(next(iter(VAL)), picture(next(iter(VAL))))])
    length = 512 + -(-len(picture(next(iter(VAL)))) // 512) * 512
    write(root / "ILSVRC2012_img_val.tar", one[:length])


def _garbage_inside(root: Path) -> None:
    packed.official_tars(root)
    path = root / "ILSVRC2012_img_val.tar"
    data = bytearray(path.read_bytes())
    second = data.index(b"ILSVRC2012_val_00000003.JPEG")
    data[second : second + 512] = b"x" * 512
    write(path, bytes(data))


def _compressed(root: Path) -> None:
    packed.official_tars(root)
    write(root / "ILSVRC2012_img_val.tar", tar([("a.JPEG", picture("a"))], "w:gz"))


def _strange_class_tar(root: Path) -> None:
    packed.official_tars(root)
    write(root / "ILSVRC2012_img_train.tar", tar([("cats.tar", packed.class_tar(WNIDS[0]))]))


def _class_only_in_train(root: Path) -> None:
    packed.folders(root)
    write(root / "train/n02102040/n02102040_1.JPEG", picture("x"))


def _empty_class(root: Path) -> None:
    packed.folders(root)
    (root / "train/n02102040").mkdir()


def _label_of_another_class(root: Path) -> None:
    packed.webdataset(root)
    shard = tar([("n01440764_10.jpg", picture("x")), ("n01440764_10.cls", b"1")])
    write(root / "imagenet1k-train-0000.tar", shard)


def _label_out_of_range(root: Path) -> None:
    packed.hugging_face(root)
    made = packed.table([(picture("x"), "x.JPEG", 1000)], None)
    parquet.write_table(made, root / "data/validation-00000-of-00001.parquet")


def _shard_missing(root: Path) -> None:
    packed.webdataset(root)
    (root / "imagenet1k-train-0000.tar").unlink()


def _parquet_missing(root: Path) -> None:
    packed.hugging_face(root)
    (root / "data/train-00000-of-00002.parquet").unlink()


def _parquet_damaged(root: Path) -> None:
    packed.hugging_face(root)
    path = root / "data/train-00001-of-00002.parquet"
    write(path, path.read_bytes()[:-20])


def _nothing(root: Path) -> None:
    (root / "val").mkdir(parents=True)


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (_without_labels, r"root: nothing says of which class.*LOC_val_solution\.csv"),
        (_without_meta, r"meta\.mat: no such file"),
        (_damaged_meta, r"its meta\.mat is damaged"),
        (_strange_number, r"ground_truth\.txt: picture 3: '9' is the number of none of the 3"),
        (_two_classes, r"LOC_val_solution\.csv:1: .*boxes of one class"),
        (_cut("ILSVRC2012_img_val.tar", 0.6), r"img_val\.tar.*(cut short|not a sound)"),
        (_cut("ILSVRC2012_img_train.tar", 0.7), r"img_train\.tar.*(cut short|not a sound)"),
        (_cut("ILSVRC2012_img_val.tar", 0), r"img_val\.tar: not a sound tar archive"),
        (_cut("ILSVRC2012_devkit_t12.tar.gz", 0.5), r"devkit_t12\.tar\.gz: not a sound archive"),
        (_cut_between_members, r"img_val\.tar: damaged or cut short after"),
        (_garbage_inside, r"img_val\.tar: damaged or cut short after"),
        (_compressed, r"img_val\.tar: not a sound tar archive .*unpack it"),
        (_strange_class_tar, r"cats\.tar is not called by a class"),
        (_class_only_in_train, r"'n02102040' has pictures in another split and none in val"),
        (_empty_class, r"train/n02102040: no picture in this class's folder"),
        (_label_of_another_class, r"n01440764 by its name, and of n01443537 by its label 1"),
        (_label_out_of_range, r"the label of x, 1000, is none of the 1000 classes"),
        (_shard_missing, r"shard 0 of those like .* is not there \(1 are missing\)"),
        (_parquet_missing, r"shard 0 of those like .* is not there \(1 are missing\)"),
        (_parquet_damaged, r"train-00001-of-00002\.parquet: not a sound parquet file"),
        (_nothing, r"root: no validation pictures"),
    ],
)
def test_what_is_broken_is_an_error_that_names_the_file(
    build: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    build(tmp_path / "root")
    with pytest.raises(HarnessError, match=what):
        opened(tmp_path)
    assert not examine(catalog_of(tmp_path), "mine").healthy


def test_a_damaged_picture_in_an_archive_keeps_neither_it_nor_the_others_from_opening(
    tmp_path: Path,
) -> None:
    packed.official_tars(tmp_path / "root")
    files = [(f, b"no picture" if "0002" in f else picture(f)) for f in VAL]
    write(tmp_path / "root/ILSVRC2012_img_val.tar", tar(files))
    dataset = opened(tmp_path)["test"]
    (bad,) = [index for index, sample in enumerate(dataset.samples) if sample.size == (0, 0)]
    with pytest.raises(BadPicture, match=r"img_val\.tar: ILSVRC2012_val_00000002"):
        dataset.picture(bad)
    assert not examine(catalog_of(tmp_path), "mine").healthy


def test_an_archive_that_changes_under_a_run_is_a_bad_picture(tmp_path: Path) -> None:
    packed.official_tars(tmp_path / "root")
    dataset = opened(tmp_path)["test"]
    archive = tmp_path / "root/ILSVRC2012_img_val.tar"
    write(archive, archive.read_bytes()[:600])
    last = next(n for n, sample in enumerate(dataset.samples) if "00000001" in sample.id)
    with pytest.raises(BadPicture, match="the archive ends inside it"):
        dataset.read(last)
    archive.unlink()
    with pytest.raises(BadPicture, match="cannot be read"):
        dataset.read(0)


def test_files_of_one_stem_must_stand_side_by_side(tmp_path: Path) -> None:
    files = [("a.jpg", picture("a")), ("b.jpg", picture("b")), ("b.cls", b"0"), ("a.cls", b"0")]
    shard = write(tmp_path / "x.tar", tar(files))
    with pytest.raises(HarnessError, match=r"'a' has no label"):
        list(labelled(shard))
    files[0:1] = [("a.jpg", picture("a")), ("a.cls", b"0")]
    shard = write(tmp_path / "y.tar", tar(files))
    with pytest.raises(HarnessError, match=r"'a' do not stand side by side"):
        list(labelled(shard))
