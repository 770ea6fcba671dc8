from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from harness.data.dataset import Dataset, Role
from harness.data.pictures import PicturesDataset
from harness.errors import BadPicture, HarnessError
from harness.look.given import Given, file_names, fitted, from_dataset, from_paths


def picture(path: Path, size: tuple[int, int] = (20, 12)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_files_come_as_named_and_folders_sorted_each_picture_once(tmp_path: Path) -> None:
    last, b, a = (picture(tmp_path / name) for name in ("z.png", "in/b.png", "in/deep/a.png"))
    (tmp_path / "in/notes.txt").write_text("no picture")
    found = from_paths([str(last), str(tmp_path / "in"), str(b)])
    assert [each.name for each in found] == [str(last), str(b), str(a)]
    assert found[0].read().shape == (12, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    image = Image.open(picture(tmp_path / "plain.png"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as stored:
        upright = np.array(ImageOps.exif_transpose(stored))
    (photo,) = from_paths([str(tmp_path / "photo.png")])
    np.testing.assert_array_equal(photo.read(), upright)


def test_what_is_no_picture_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"lost\.jpg: no such picture or folder"):
        from_paths([str(tmp_path / "lost.jpg")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="empty: no picture in it"):
        from_paths([str(tmp_path / "empty")])
    (tmp_path / "text.jpg").write_text("no picture")
    (text,) = from_paths([str(tmp_path / "text.jpg")])
    with pytest.raises(BadPicture, match=r"text\.jpg: not a picture"):
        text.read()


def test_pictures_of_a_data_set_are_found_by_id_in_any_role(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        picture(tmp_path / name, (len(name), 8 + len(name)))
    roles: dict[Role, Dataset] = {
        "train": PicturesDataset("made", tmp_path / "train"),
        "test": PicturesDataset("made", tmp_path / "test"),
    }
    assert [each.name for each in from_dataset("made", roles, [])] == ["c.png"]
    (found,) = from_dataset("made", roles, ["b.png", "b.png"])
    np.testing.assert_array_equal(found.read(), roles["train"].picture(1))
    with pytest.raises(HarnessError, match=r"no picture with the id 'bb.png'; did you mean b.png"):
        from_dataset("made", roles, ["bb.png"])


@given(st.lists(st.text(min_size=1), max_size=12))
def test_file_names_are_safe_and_no_two_fall_together(names: list[str]) -> None:
    def never() -> np.ndarray:
        raise AssertionError

    made = file_names([Given(name, never) for name in names])
    assert len({name.lower() for name in made}) == len(names)
    for name in made:
        assert re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\.look\.png", name)
        assert len(name) < 120


def test_a_file_is_named_after_its_picture() -> None:
    names = ["a/photo.jpg", "b/photo.JPG", "b/v1.2", "../..", "ein Bär.png"]
    pictures = [Given(name, lambda: np.zeros((1, 1, 3), np.uint8)) for name in names]
    assert file_names(pictures) == [
        *("photo.look.png", "photo-2.look.png", "v1.2.look.png", "_.look.png"),
        "ein_B_r.look.png",
    ]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120))
def test_a_picture_is_reduced_to_its_longest_side_and_never_enlarged(
    height: int, width: int, longest: int
) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    found = fitted(pixels, longest)
    if max(height, width) <= longest:
        assert found is pixels
    else:
        assert max(found.shape[:2]) == longest
        assert found.shape[0] == max(1, round(height * longest / max(height, width)))
