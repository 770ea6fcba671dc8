"""NYU Depth v2's labelled pictures: an HDF5 file as MATLAB wrote it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from harness.data.catalog import Catalog
from harness.data.dataset import decode
from harness.data.doctor import examine
from harness.data.nyu_labelled import FILE, SPLITS, read_nyu_labelled
from harness.errors import BadPicture, HarnessError

h5py = pytest.importorskip("h5py", reason="needs h5py (vit-harness[nyu])")

COUNT, WIDTH, HEIGHT = 5, 8, 6
SCENES = ["kitchen_0001", "kitchen_0001", "office_0002", "den", "den"]


def pictures() -> np.ndarray:
    """``[n, H, W, 3]``"""
    return np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8)


def depths() -> np.ndarray:
    """``[n, H, W]`` in metres, rising from left to right and from picture to picture."""
    columns = np.arange(1, WIDTH + 1, dtype=np.float32)
    pictures = np.arange(COUNT, dtype=np.float32)[:, None, None]
    return np.broadcast_to(columns, (COUNT, HEIGHT, WIDTH)) / 10 + pictures


def write(root: Path, **changes: Any) -> Path:
    """The data set; the first row of raw depth is not known."""
    root.mkdir(exist_ok=True)
    raw = depths()
    raw[:, 0] = 0
    arrays = {
        "images": pictures().transpose(0, 3, 2, 1),
        "depths": depths().transpose(0, 2, 1),
        "rawDepths": raw.transpose(0, 2, 1),
        **changes,
    }
    with h5py.File(root / FILE, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
        references = []
        for place, scene in enumerate(SCENES):
            letters = file.create_dataset(f"#refs#/{place}", data=[[ord(c)] for c in scene])
            references.append(letters.ref)
        file.create_dataset("scenes", data=[references], dtype=h5py.ref_dtype)
    splits(root, [1, 4], [2, 3, 5])
    return root


def splits(root: Path, train: list[int], test: list[int]) -> None:
    found = {"trainNdxs": [[n] for n in train], "testNdxs": [[n] for n in test]}
    scipy.io.savemat(root / SPLITS, found)


def test_pictures_depth_and_scenes_are_those_of_the_official_splits(tmp_path: Path) -> None:
    roles = read_nyu_labelled("mine", write(tmp_path / "root"), "filled")
    assert [sample.id for sample in roles["train"].samples] == ["0001", "0004"]
    test = roles["test"]
    assert [sample.id for sample in test.samples] == ["0002", "0003", "0005"]
    assert [sample.scene for sample in test.samples] == ["kitchen_0001", "office_0002", "den"]
    assert {sample.size for sample in test.samples} == {(WIDTH, HEIGHT)}
    for index, number in enumerate((1, 2, 4)):
        np.testing.assert_array_equal(test.picture(index), pictures()[number])
        np.testing.assert_array_equal(decode(test.read(index), "x"), pictures()[number])
        depth = test.dense(index).depth
        assert depth is not None and depth.dtype == np.float32 and depth.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(depth, depths()[number])
    again = pickle.loads(pickle.dumps(test))
    np.testing.assert_array_equal(again.picture(2), pictures()[4])


def test_raw_depth_is_zero_where_the_sensor_saw_nothing_and_has_another_fingerprint(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "root")
    raw = read_nyu_labelled("mine", root, "raw")["test"]
    depth = raw.dense(0).depth
    assert depth is not None and not depth[0].any() and depth[1:].all()
    assert raw.fingerprint() != read_nyu_labelled("mine", root, "filled")["test"].fingerprint()


def test_the_doctor_reads_one_of_each_split(tmp_path: Path) -> None:
    write(tmp_path / "root")
    path = tmp_path / "sets.yaml"
    path.write_text("mine: {format: nyu-labelled, root: root, pictures: {train: 2, test: 3}}\n")
    report = examine(Catalog.load([path]), "mine", decode=True)
    assert report.healthy
    said = [finding.what for finding in report.findings]
    assert "test (test): 3 depth maps read: 1.10 to 4.80 m, 83% of the pixels known" in said
    (tmp_path / "root" / SPLITS).unlink()
    (finding,) = examine(Catalog.load([path]), "mine").findings
    assert finding.level == "error" and SPLITS in finding.what


def test_without_h5py_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "root")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(HarnessError, match=r"needs h5py .*pip install 'vit-harness\[nyu\]'"):
        read_nyu_labelled("mine", root, "raw")


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"images": np.zeros((COUNT, WIDTH, HEIGHT), np.uint8)},
        {"depths": np.zeros((COUNT, HEIGHT, WIDTH), np.float32)},
        {"rawDepths": np.zeros((COUNT - 1, WIDTH, HEIGHT), np.float32)},
        {"images": np.zeros((COUNT, 1, WIDTH, HEIGHT), np.uint8)},
        {"images": np.zeros((4, 3, WIDTH, HEIGHT), np.uint8)},
    ],
    ids=["none", "grey", "turned", "fewer", "one channel", "too few"],
)
def test_another_file_than_the_data_set_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=r"labeled\.mat: not NYU Depth v2's labelled data set"):
        read_nyu_labelled("mine", write(tmp_path / "root", **change), "raw")


def test_a_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "root")
    data = (root / FILE).read_bytes()
    for length in (0, 9, 600, len(data) // 2):
        (root / FILE).write_bytes(data[:length])
        with pytest.raises(HarnessError, match=r"labeled\.mat: not NYU"):
            read_nyu_labelled("mine", root, "raw")


@pytest.mark.parametrize(("train", "test"), [([0], [1]), ([1], [6]), ([1, 1], [2]), ([], [2])])
def test_splits_that_cannot_be_are_told(tmp_path: Path, train: list[int], test: list[int]) -> None:
    root = write(tmp_path / "root")
    splits(root, train, test)
    with pytest.raises(HarnessError, match=r"splits\.mat: \w+Ndxs is not a list of different"):
        read_nyu_labelled("mine", root, "raw")
    (root / SPLITS).write_text("text")
    with pytest.raises(HarnessError, match=r"splits\.mat: cannot be read"):
        read_nyu_labelled("mine", root, "raw")


def test_a_picture_that_cannot_be_read_or_knows_no_depth_is_told_by_its_number(
    tmp_path: Path,
) -> None:
    blind = depths().transpose(0, 2, 1).copy()
    blind[1], blind[2, 0] = 0, np.nan
    test = read_nyu_labelled("mine", write(tmp_path / "root", rawDepths=blind), "raw")["test"]
    with pytest.raises(BadPicture, match=r"picture 2: no pixel has a known depth"):
        test.dense(0)
    with pytest.raises(BadPicture, match=r"picture 3: the depth of 6 pixels is NaN"):
        test.dense(1)
    (tmp_path / "root" / FILE).unlink()
    with pytest.raises(BadPicture, match=r"picture 5: .*labeled\.mat"):
        test.picture(2)
