from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import packed
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import picture, tar
from releases import write

from harness.data import sizes
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, Role
from harness.data.doctor import examine
from harness.data.shards import named_files
from harness.data.tars import Member, members, nested
from harness.errors import BadPicture, HarnessError


def catalog_of(folder: Path, entry: str) -> Catalog:
    return Catalog.load([write(folder / "sets.yaml", f"mine: {{{entry}, root: root}}\n")])


def opened(folder: Path, entry: str) -> dict[Role, Dataset]:
    return catalog_of(folder, entry).open("mine")


def shard(root: Path, name: str, *pictures: tuple[str, str, int]) -> None:
    """A shard with pictures of these keys, names and labels."""
    files = []
    for key, file, label in pictures:
        files += [(f"{key}.jpg", picture(file)), (f"{key}.cls", str(label).encode())]
    write(root / name, tar(files))


def two_shards(root: Path) -> None:
    shard(root, "train-00.tar", ("000", "a", 1), ("sub/001", "b", 0))
    shard(root, "train-01.tar", ("000", "c", 2))
    shard(root, "test-0.tar", ("000", "d", 2), ("001", "e", 0))


WEBDATASET = "format: webdataset, splits: {train: 'train-{00..01}.tar', test: 'test-*.tar'}"


def test_webdataset_shards_are_read_in_order_and_labelled(tmp_path: Path) -> None:
    two_shards(tmp_path / "root")
    found = opened(tmp_path, WEBDATASET)
    labels = {
        role: [(sample.id, sample.target.label) for sample in dataset.samples]
        for role, dataset in found.items()
    }
    assert labels == {
        "train": [("train-00/000", 1), ("train-00/sub/001", 0), ("train-01/000", 2)],
        "test": [("test-0/000", 2), ("test-0/001", 0)],
    }
    assert found["train"].classes == found["test"].classes == ("0", "1", "2")
    names = {"train": "abc", "test": "de"}
    for role, dataset in found.items():
        assert [dataset.read(index) for index in range(len(names[role]))] == [
            picture(name) for name in names[role]
        ]
    report = examine(catalog_of(tmp_path, WEBDATASET), "mine", decode=True)
    assert [each.what for each in report.findings if each.level == "error"] == []


def test_classes_are_named_by_a_file(tmp_path: Path) -> None:
    two_shards(tmp_path / "root")
    write(tmp_path / "root/classes.txt", "cat\ndog\nfox\n")
    found = opened(tmp_path, f"{WEBDATASET}, classes: classes.txt")
    assert found["test"].classes == ("cat", "dog", "fox")
    write(tmp_path / "root/classes.txt", "cat\ndog\n")
    with pytest.raises(HarnessError, match=r"train-01\.tar: the label of 000, 2, is none of the 2"):
        opened(tmp_path, f"{WEBDATASET}, classes: classes.txt")


@pytest.mark.parametrize(
    "text", [b"-1", b"cat", b"1.5", b"", b"true", b"null", b"[" * 9999, b"\xff"]
)
def test_what_is_no_label_is_refused(text: bytes, tmp_path: Path) -> None:
    files = [("a.jpg", picture("a")), ("a.cls", text)]
    write(tmp_path / "root/test-0.tar", tar(files))
    with pytest.raises(HarnessError, match=r"test-0\.tar: a\.cls: .* is no label"):
        opened(tmp_path, "format: webdataset, splits: {test: test-0.tar}")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([("a.jpg", b"x")], "'a' has no label"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")], "'a' has 2 pictures"),
        ([("a.txt", b"x")], "no picture in it"),
        ([], "no picture in it"),
    ],
)
def test_a_shard_of_other_content_is_refused(
    files: list[tuple[str, bytes]], what: str, tmp_path: Path
) -> None:
    write(tmp_path / "root/test-0.tar", tar(files))
    with pytest.raises(HarnessError, match=what):
        opened(tmp_path, "format: webdataset, splits: {test: test-0.tar}")


def test_shards_that_are_named_must_all_be_there(tmp_path: Path) -> None:
    for number in (8, 9, 11):
        write(tmp_path / f"x-{number:03d}.tar", b"")
    assert [f.name for f in named_files(tmp_path, "x-*.tar")] == [
        "x-008.tar", "x-009.tar", "x-011.tar",
    ]  # fmt: skip
    assert len(named_files(tmp_path, "x-{008..009}.tar")) == 2
    with pytest.raises(HarnessError, match=r"x-010\.tar: no such shard \(1 of 4 are not there\)"):
        named_files(tmp_path, "x-{008..011}.tar")
    with pytest.raises(HarnessError, match=r"no file is called y-\*\.tar"):
        named_files(tmp_path, "y-*.tar")
    with pytest.raises(HarnessError, match=r"is no range"):
        named_files(tmp_path, "x-{9..1}.tar")


def hub(root: Path) -> None:
    root.mkdir()
    for name, part in (("train-0", "ab"), ("train-1", "c"), ("test-0", "de")):
        rows = [(picture(each), None, "abcde".index(each) % 3) for each in part]
        made = packed.table(rows, ["cat", "dog", "fox"])
        parquet.write_table(made, root / f"{name}.parquet", row_group_size=1)


PARQUET = "format: parquet, splits: {train: 'train-{0..1}.parquet', test: test-*.parquet}"


def test_parquet_shards_are_read_in_order_with_the_names_they_carry(tmp_path: Path) -> None:
    hub(tmp_path / "root")
    found = opened(tmp_path, PARQUET)
    labels = {
        role: [(sample.id, sample.target.label) for sample in dataset.samples]
        for role, dataset in found.items()
    }
    assert labels == {
        "train": [("train-0/000000", 0), ("train-0/000001", 1), ("train-1/000000", 2)],
        "test": [("test-0/000000", 0), ("test-0/000001", 1)],
    }
    assert found["test"].classes == ("cat", "dog", "fox")
    train = pickle.loads(pickle.dumps(found["train"]))
    assert [train.read(index) for index in (2, 0, 1)] == [picture(name) for name in "cab"]
    report = examine(catalog_of(tmp_path, PARQUET), "mine", decode=True)
    assert [each.what for each in report.findings if each.level == "error"] == []


def test_columns_can_have_other_names_and_pictures_be_plain_bytes(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    made = arrow.table({"jpg": [picture("a"), None], "kind": [1, 0]})
    parquet.write_table(made, tmp_path / "root/x.parquet")
    entry = "format: parquet, splits: {test: x.parquet}"
    dataset = opened(tmp_path, f"{entry}, image: jpg, label: kind")["test"]
    assert dataset.classes == ("0", "1")
    assert dataset.read(0) == picture("a")
    with pytest.raises(BadPicture, match=r"row group 0, row 1: the column 'jpg' is empty"):
        dataset.read(1)
    with pytest.raises(HarnessError, match=r"has no column 'label'; there are jpg, kind"):
        opened(tmp_path, entry)
    with pytest.raises(HarnessError, match=r"has no column 'image'; there are jpg, kind"):
        opened(tmp_path, f"{entry}, label: kind")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([(b"x", None, -1)], r"row 0 of row group 0, -1, is none of the 2 classes"),
        ([(b"x", None, 2)], r"row 0 of row group 0, 2, is none of the 2 classes"),
        ([(b"x", None, None), (b"x", None, 1)], r"row 0 of row group 0: None is no label"),
        ([(b"x", None, "cat")], r"'cat' is no label"),
        ([(b"x", None, True)], r"True is no label"),
        ([], r"no picture in it"),
    ],
)
def test_wrong_labels_in_parquet_are_refused(
    rows: list[tuple[bytes, None, Any]], what: str, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    parquet.write_table(packed.table(rows, ["cat", "dog"]), tmp_path / "root/x.parquet")
    with pytest.raises(HarnessError, match=what):
        opened(tmp_path, "format: parquet, splits: {test: x.parquet}")


@given(
    st.lists(
        st.tuples(st.text("ab/", min_size=1, max_size=120), st.binary(max_size=1500)), max_size=6
    ),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_lie_where_the_index_says_in_every_format_of_tar(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]], form: int
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    files = [(f"x{name}{number}"[-99:], data) for number, (name, data) in enumerate(files)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    path = write(folder / "x.tar", buffer.getvalue())
    whole = path.read_bytes()

    def content(found: Member) -> bytes:
        return whole[found.offset : found.offset + found.length]

    assert [(each.name, content(each)) for each in members(path)] == files
    whole = write(folder / "y.tar", tar([("in.tar", whole), ("readme", b"x")])).read_bytes()
    inner = list(nested(folder / "y.tar"))
    assert [(each.name, content(each)) for _, each in inner] == files
    assert {outer for outer, _ in inner} <= {"in.tar"}


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_an_archive_that_is_cut_anywhere_is_refused_or_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep: float
) -> None:
    data = np.random.default_rng(seed).bytes(seed % 3000)
    whole = tar([("a", data), ("b", data)])
    end = len(whole.rstrip(b"\0"))
    kept = whole[: int(keep * len(whole))]
    path = write(tmp_path_factory.mktemp("cut") / "x.tar", kept)
    found = None
    with contextlib.suppress(HarnessError):
        found = [each.name for each in members(path)]
    assert found is None or (found == ["a", "b"] and len(kept) >= end)
    assert found is not None or len(kept) < len(whole)


def test_sizes_are_remembered_until_the_archive_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sizes, "FEW", 1)
    archive = write(tmp_path / "x.tar", b"1")
    calls: list[int] = []

    def measure() -> list[tuple[int, int]]:
        calls.append(1)
        return [(3, 4), (5, 6)]

    assert sizes.remembered([archive], ["a", "b"], measure) == [(3, 4), (5, 6)]
    assert sizes.remembered([archive], ["a", "b"], measure) == [(3, 4), (5, 6)]
    assert len(calls) == 1
    sizes.remembered([archive], ["a", "c"], measure)
    assert len(calls) == 2
    write(archive, b"12")
    sizes.remembered([archive], ["a", "b"], measure)
    assert len(calls) == 3
    for kept in sizes.folder().iterdir():
        write(kept, kept.read_bytes()[:-3])
    assert sizes.remembered([archive], ["a", "b"], measure) == [(3, 4), (5, 6)]
    assert len(calls) == 4


def test_sizes_are_computed_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "file", "")))
    monkeypatch.setattr(sizes, "FEW", 1)
    archive = write(tmp_path / "x.tar", b"1")
    for _ in range(2):
        assert sizes.remembered([archive], ["a"], lambda: [(3, 4)]) == [(3, 4)]
