"""Small data sets to build on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Server, serve
from small_datasets import COCOTree, VOCTree


@pytest.fixture
def voc(tmp_path: Path) -> VOCTree:
    return VOCTree(tmp_path / "VOCdevkit" / "VOC2007")


@pytest.fixture
def coco(tmp_path: Path) -> COCOTree:
    """Two pictures of 40x30; the first has a cat and a crowd of dogs, the second nothing."""
    images = [
        {"id": 7, "file_name": "picture7.jpg", "width": 40, "height": 30},
        {"id": 3, "file_name": "picture3.jpg", "width": 40, "height": 30},
    ]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 17, "bbox": [1.5, 2.25, 10, 4.5], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 18, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return COCOTree(tmp_path / "coco", data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as running:
        yield running
