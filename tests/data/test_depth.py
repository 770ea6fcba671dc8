"""Pictures with depth: folders of pairs, and the lists of NYU and KITTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import catalog_of, ids, npy, opened, png, put, put_picture

from harness.errors import BadPicture, HarnessError

RGBD: dict[str, Any] = {
    "format": "rgbd",
    "splits": {"train": "train", "test": "test"},
    "images": "{split}",
    "depth": "{split}",
    "image_suffix": ".color.jpg",
    "depth_suffix": ".depth.png",
    "invalid": [0, 65535],
}


def rgbd(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("room_1/f1", "room_1/f2", "room_2/f1", "f0"):
            put_picture(root / f"{split}/{name}.color.jpg")
            put(root / f"{split}/{name}.depth.png", png(ids(0, 65535, 1500, dtype=np.uint16)))
    return root


def test_depth_beside_its_pictures_is_told_apart_by_suffixes(tmp_path: Path) -> None:
    dataset = opened(rgbd(tmp_path / "root"), **RGBD)["test"]
    ids_of = ["f0", "room_1/f1", "room_1/f2", "room_2/f1"]
    assert [sample.id for sample in dataset.samples] == ids_of
    assert {sample.scene for sample in dataset.samples} == {None}
    depth = dataset.dense(0).depth
    assert depth is not None and depth[0, :3].tolist() == [0, 0, 1.5]
    assert dataset.semantic_classes == () and dataset.dense(0).semantic is None


def test_with_scenes_pictures_of_one_folder_are_of_one_scene(tmp_path: Path) -> None:
    dataset = opened(rgbd(tmp_path / "root"), **RGBD, scenes=True)["test"]
    assert [s.scene for s in dataset.samples] == ["test", "room_1", "room_1", "room_2"]


def test_the_scale_moves_depth_and_fingerprint_and_the_range_bounds_it(tmp_path: Path) -> None:
    root = rgbd(tmp_path / "root")
    plain, scaled = opened(root, **RGBD)["test"], opened(root, **RGBD, scale=500)["test"]
    depth = scaled.dense(0).depth
    assert depth is not None and depth[0, :3].tolist() == [0, 0, 3.0]
    assert plain.fingerprint() != scaled.fingerprint()
    with pytest.raises(BadPicture, match="no pixel has a known depth"):
        opened(root, **RGBD, range=[2.0, 9.0])["test"].dense(0)


def test_depth_may_be_arrays_in_which_nan_is_unknown(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put_picture(root / "images/test/a.png")
    put(root / "depth/test/a.npy", npy(ids(float("nan"), 2.5, dtype=np.float32)))
    entry = {"format": "rgbd", "splits": {"test": "test"}, "depth_suffix": ".npy", "scale": 1}
    with pytest.raises(BadPicture, match=r"a\.npy: the depth of 600 pixels is NaN"):
        opened(root, **entry)["test"].dense(0)
    depth = opened(root, **entry, invalid=[float("nan")])["test"].dense(0).depth
    assert depth is not None and depth[0, :2].tolist() == [0, 2.5]


def test_nyu_lists_begin_with_slashes_and_kitti_pictures_without_depth_are_left_out(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    put_picture(root / "sync/kitchen_1/rgb_1.jpg")
    put(root / "sync/kitchen_1/sync_depth_1.png", png(ids(0, 2560, dtype=np.uint16)))
    put_picture(root / "raw/drive/image_02/1.png")
    put(root / "truth/drive/1.png", png(ids(0, 2560, dtype=np.uint16)))
    put(root / "nyu.txt", "/kitchen_1/rgb_1.jpg /kitchen_1/sync_depth_1.png 518.8579\n")
    put(
        root / "kitti.txt",
        "drive/image_02/0.png None 7.5\ndrive/image_02/1.png drive/1.png 7.5 x\n",
    )
    splits = {
        "train": {"list": "nyu.txt", "images": "sync", "depth": "sync", "scenes": True},
        "test": {"list": "kitti.txt", "images": "raw", "depth": "truth"},
    }
    roles = opened(root, format="depth-list", splits=splits, scale=256)
    (nyu,), (kitti,) = roles["train"].samples, roles["test"].samples
    assert (nyu.id, nyu.scene) == ("kitchen_1/rgb_1.jpg", "kitchen_1")
    assert (kitti.id, kitti.scene) == ("drive/image_02/1.png", None)
    for dataset in roles.values():
        depth = dataset.dense(0).depth
        assert not dataset.missing()
        assert depth is not None and depth[0, :2].tolist() == [0, 10.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.jpg\n", r"list\.txt:1: 'a\.jpg': a picture and its depth map were expected"),
        ("a.jpg None 7\n", r"list\.txt: no picture of the split 'list'"),
        ("a.jpg b.png 7\na.jpg c.png 7\n", r"list\.txt: 'a\.jpg' stands twice"),
        ("a.jpg ../../b.png 7\n", r"list\.txt:1: the path '\.\./\.\./b\.png' leaves"),
    ],
)
def test_a_list_that_is_wrong_is_told_with_its_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    put(tmp_path / "root/list.txt", text)
    splits = {"test": {"list": "list.txt"}}
    with pytest.raises(HarnessError, match=complaint):
        opened(tmp_path / "root", format="depth-list", splits=splits)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({**RGBD, "depth_suffix": "color.jpg"}, r"need an image_suffix"),
        ({**RGBD, "scale": 0}, r"mine\.scale"),
        ({**RGBD, "range": [3, 1]}, r"range: two distances"),
        ({"format": "depth-list", "splits": {"test": {}}}, r"mine\.splits\.test\.list"),
    ],
)
def test_a_depth_entry_that_cannot_be_meant_is_refused(
    tmp_path: Path, entry: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(HarnessError, match=complaint):
        catalog_of(tmp_path / "root", **entry)


def test_seven_scenes_are_rooms_of_a_few_metres(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.symlink_to(shared_data / "sevenscenes")
    roles = opened(root, **RGBD)
    assert [len(roles[role].samples) for role in ("train", "test")] == [90, 35]
    depth = roles["test"].dense(0).depth
    assert depth is not None and depth.shape == (480, 640)
    assert depth[depth > 0].min() > 0.5 and depth.max() < 6
    assert 0.5 < np.count_nonzero(depth) / depth.size < 1
