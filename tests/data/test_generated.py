from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from harness.data.generated import GeneratedDataset, paint

PIXELS = "4ba24d0847808bec9d8fa609a8dfd17683506dbf7b9374f39ba7e046691d5910"
FINGERPRINT = "eaa7b4cd9f892dadb7f7f50e93642f632eceb299f971f0c489ccd295de69ef59"


def test_the_pixels_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for index in range(12):
        digest.update(paint(index).tobytes())
    assert digest.hexdigest() == PIXELS


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert GeneratedDataset("generated").fingerprint() == FINGERPRINT


def test_read_gives_a_png_of_the_painted_pixels() -> None:
    dataset = GeneratedDataset("generated", count=2)
    with Image.open(io.BytesIO(dataset.read(1))) as image:
        assert image.format == "PNG"
    assert np.array_equal(dataset.picture(1), paint(1))


def test_sizes_are_those_of_the_samples_and_not_all_multiples_of_a_patch() -> None:
    dataset = GeneratedDataset("generated")
    sizes = [sample.size for sample in dataset.samples]
    assert [dataset.picture(i).shape for i in range(12)] == [(h, w, 3) for w, h in sizes]
    for patch in (14, 16):
        assert sum(width % patch != 0 and height % patch != 0 for width, height in sizes) >= 6
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)
    assert all(180 <= side <= 300 for size in sizes for side in size)


def test_boxes_are_exact() -> None:
    """Where the picture leaves its background, by more than the noise, is where a box is."""
    dataset = GeneratedDataset("generated", count=30)
    for index, sample in enumerate(dataset.samples):
        picture = dataset.picture(index).astype(int)
        background = picture[0, 0]
        differs = (np.abs(picture - background) > 20).any(axis=2)
        assert sample.target.boxes is not None
        assert 1 <= len(sample.target.boxes.xyxy) <= 3
        covered = np.zeros_like(differs)
        for x0, y0, x1, y1 in sample.target.boxes.xyxy.astype(int):
            inside = differs[y0:y1, x0:x1]
            assert not covered[y0:y1, x0:x1].any()
            covered[y0:y1, x0:x1] = True
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any(), f"picture {index}: the box is larger than its shape"
        assert not (differs & ~covered).any(), f"picture {index}: a box is smaller than its shape"


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    few, many = GeneratedDataset("g", count=3), GeneratedDataset("g", count=30)
    assert [s.id for s in many.samples[:3]] == [s.id for s in few.samples]
    assert np.array_equal(few.picture(2), many.picture(2))
    assert len({paint(index).tobytes() for index in range(30)}) == 30
