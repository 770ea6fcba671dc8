from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from harness.data.catalog import Catalog
from harness.data.written import read_written
from harness.errors import HarnessError


def photographs(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / name)
    return folder


def test_what_is_shown_and_what_is_written_stand_in_the_names(tmp_path: Path) -> None:
    names = "label=dog_text=cat.png", "label=fire truck_text=ice_cream.jpg", ".label=a_text=b.png"
    root = photographs(tmp_path / "rta" / "deep", *names).parent
    (root / "README.txt").write_text("ignored")
    file = tmp_path / "mine.yaml"
    file.write_text("notes: {format: written, root: rta}\n")
    (dataset,) = Catalog.load([file]).open("notes").values()
    assert dataset.classes == ("cat", "dog", "fire truck", "ice_cream")
    found = [(s.id, s.size, s.target.label, s.target.written) for s in dataset.samples]
    assert found == [
        ("deep/label=dog_text=cat.png", (8, 6), 1, 0),
        ("deep/label=fire truck_text=ice_cream.jpg", (8, 6), 2, 3),
    ]
    assert dataset.picture(0).shape == (6, 8, 3)
    before = dataset.fingerprint()
    (root / "deep" / names[0]).rename(root / "deep" / "label=dog_text=fire truck.png")
    assert read_written("notes", root)["test"].fingerprint() != before


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dog.png", "is called label=SHOWN_text=WRITTEN"),
        ("label=dog.png", "is called label=SHOWN_text=WRITTEN"),
        ("label=_text=cat.png", "is called label=SHOWN_text=WRITTEN"),
        ("label=a_text=b_text=c.png", "is called label=SHOWN_text=WRITTEN"),
        ("label=dog_text=dog.png", "'dog', is what it shows"),
    ],
)
def test_a_picture_of_another_name_is_refused(name: str, what: str, tmp_path: Path) -> None:
    photographs(tmp_path, "label=dog_text=cat.png", name)
    with pytest.raises(HarnessError, match=what) as refused:
        read_written("notes", tmp_path)
    assert name in str(refused.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no picture in it"):
        read_written("notes", tmp_path)
