"""COCO's JSON files (cocodataset.org, "Data format"): of instances, which is images, boxes and
categories, and of captions.

Boxes are ``[x, y, width, height]`` in 0-based float pixels, and become x0, y0, x1, y1 without
rounding or clipping. Crowd boxes and boxes without an area (COCO has some) are kept: a task
chooses. The size of a picture is what the JSON says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.captions import Described, open_described
from harness.data.dataset import MOST_PIXELS, Boxes, Sample, Target, safe_relative
from harness.data.files import FileDataset, Listing, check_sha256, read_lines
from harness.data.json_files import read_json
from harness.errors import HarnessError

SLACK = 1.0
"""Pixels: COCO's polygons, from which its boxes are made, may cross the edge by a fraction."""


@dataclass(frozen=True)
class _Image:
    id: str
    file: str
    size: tuple[int, int]


@dataclass(frozen=True)
class _Object:
    xyxy: tuple[float, float, float, float]
    category: str
    crowd: bool


def read_coco(
    name: str,
    root: Path,
    images: str,
    annotations: str,
    list_file: str | None = None,
    list_sha256: str | None = None,
) -> FileDataset:
    """Open the COCO data set ``name``; the paths are relative to ``root``.

    Without ``list_file`` every image of ``annotations`` is a sample, in the JSON's order; with it,
    those that it names, in its order (one a line, ``COCO_train2014_000000000009.jpg``, with or
    without folders before it). A sample's id is its COCO image id. Raises ``HarnessError``.
    """
    folder = safe_relative(images, "images")
    path = root / safe_relative(annotations, "annotations")
    # Polygons and masks are nine tenths of the file.
    data = read_json(path, "segmentation", "images, annotations, categories")
    found = _images(path, data)
    categories = _categories(path, data)
    objects = _objects(path, data, {image.id: image for image in found}, categories)
    del data
    split = folder.name
    if list_file is not None:
        chosen = root / safe_relative(list_file, "list")
        if list_sha256 is not None:
            check_sha256(
                chosen,
                list_sha256,
                "another list than the data set is defined by; remove it and fetch it again",
            )
        found = _choose(chosen, path, found)
        split = chosen.stem
    samples = [
        Sample(image.id, image.size, Target(boxes=_boxes(objects.get(image.id, []))))
        for image in found
    ]
    pictures = root / folder
    listing = Listing(pictures)
    return FileDataset(
        name,
        split,
        samples,
        tuple(categories.values()),
        pictures,
        [image.file for image in found],
        [image.id for image in found if image.file not in listing],
    )


def read_coco_captions(name: str, root: Path, images: str, annotations: str) -> FileDataset:
    """Open the captions of the COCO data set ``name``, such as captions_val2014.json; the paths are
    relative to ``root``.

    Every image is a sample, in the JSON's order, and has its captions in that order. Raises
    ``HarnessError``, also for an image without a caption.
    """
    folder = safe_relative(images, "images")
    path = root / safe_relative(annotations, "annotations")
    data = read_json(path, "segmentation", "images and annotations")
    found = _images(path, data)
    said: dict[str, list[object]] = {image.id: [] for image in found}
    for where, row in _rows(path, data, "annotations"):
        identity = _identity(where, row, "image_id")
        if identity not in said:
            raise HarnessError(f"{where}: image_id {row['image_id']!r} is no image of this file")
        if "caption" not in row:
            raise HarnessError(f"{where}: has no caption: not a file of COCO captions")
        said[identity].append(row["caption"])
    rows = [
        Described(image.id, image.file, said[image.id], f"{path}: image {image.id}", image.size)
        for image in found
    ]
    return open_described(name, folder.name, root / folder, rows, path)


class _Place:
    """Where an item stands. It becomes text only in an error: there are a million items."""

    __slots__ = ("_key", "_number", "_path", "_row")

    def __init__(self, path: Path, key: str, number: int, row: dict[str, Any]) -> None:
        self._path, self._key, self._number, self._row = path, key, number, row

    def __str__(self) -> str:
        identity = f" (id {self._row['id']!r})" if "id" in self._row else ""
        return f"{self._path}: {self._key}[{self._number}]{identity}"


def _rows(path: Path, data: dict[str, Any], key: str) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """The items of ``data[key]``, each with its place for an error message."""
    rows = data.get(key)
    if not isinstance(rows, list):
        raise HarnessError(f"{path}: {key} is not a list: not a file of COCO annotations")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise HarnessError(f"{path}: {key}[{number}] is not a mapping")
        yield _Place(path, key, number, row), row


def _images(path: Path, data: dict[str, Any]) -> list[_Image]:
    found: dict[str, _Image] = {}
    for where, row in _rows(path, data, "images"):
        identity = _identity(where, row, "id")
        if identity in found:
            raise HarnessError(f"{where}: this id stands twice")
        file = safe_relative(_text(where, row, "file_name"), str(where)).as_posix()
        size = (_length(where, row, "width"), _length(where, row, "height"))
        found[identity] = _Image(identity, file, size)
    if not found:
        raise HarnessError(f"{path}: lists no image")
    return list(found.values())


def _categories(path: Path, data: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in _rows(path, data, "categories"):
        identity = _identity(where, row, "id")
        if identity in found:
            raise HarnessError(f"{where}: this id stands twice")
        found[identity] = _text(where, row, "name")
    return found


def _objects(
    path: Path, data: dict[str, Any], images: dict[str, _Image], categories: dict[str, str]
) -> dict[str, list[_Object]]:
    found: dict[str, list[_Object]] = {}
    for where, row in _rows(path, data, "annotations"):
        image = images.get(_identity(where, row, "image_id"))
        if image is None:
            raise HarnessError(f"{where}: image_id {row['image_id']!r} is no image of this file")
        category = categories.get(_identity(where, row, "category_id"))
        if category is None:
            raise HarnessError(
                f"{where}: category_id {row['category_id']!r} is no category of this file"
            )
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise HarnessError(f"{where}: iscrowd is {crowd!r}; 0 or 1 was expected")
        box = _box(where, row.get("bbox"), image.size)
        found.setdefault(image.id, []).append(_Object(box, category, bool(crowd)))
    return found


def _box(where: _Place, bbox: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
        raise HarnessError(f"{where}: bbox is {bbox!r}; four numbers were expected")
    x, y, width, height = map(float, bbox)
    if width < 0 or height < 0:
        raise HarnessError(f"{where}: bbox is {bbox!r}; its width or height is negative")
    box = (x, y, x + width, y + height)
    if box[2] < -SLACK or box[3] < -SLACK or x > size[0] + SLACK or y > size[1] + SLACK:
        raise HarnessError(
            f"{where}: bbox {bbox!r} lies outside the picture of {size[0]}x{size[1]} pixels"
        )
    return box


def _boxes(objects: list[_Object]) -> Boxes:
    count = len(objects)
    return Boxes(
        xyxy=np.array([found.xyxy for found in objects], dtype=np.float64).reshape(-1, 4),
        classes=tuple(found.category for found in objects),
        crowd=np.array([found.crowd for found in objects], dtype=np.bool_),
        difficult=np.zeros(count, dtype=np.bool_),
        truncated=np.zeros(count, dtype=np.bool_),
    )


def _choose(chosen: Path, path: Path, images: list[_Image]) -> list[_Image]:
    """The images that the list names, in its order. Names are compared without their folders."""
    by_name: dict[str, _Image | None] = {}
    for image in images:
        name = image.file.rpartition("/")[2]
        by_name[name] = None if name in by_name else image
    found: dict[str, _Image] = {}
    for number, line in read_lines(chosen):
        where = f"{chosen}:{number}"
        name = safe_relative(line, where).name
        if name not in by_name:
            raise HarnessError(f"{where}: {line!r} is no image of {path}")
        image_or_none = by_name[name]
        if image_or_none is None:
            raise HarnessError(f"{where}: {name!r} is the name of two images of {path}")
        if image_or_none.id in found:
            raise HarnessError(f"{where}: {line!r} stands twice")
        found[image_or_none.id] = image_or_none
    if not found:
        raise HarnessError(f"{chosen}: lists no picture")
    return list(found.values())


def _identity(where: _Place, row: dict[str, Any], key: str) -> str:
    """COCO's ids are whole numbers; text is taken too. Both as text."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise HarnessError(f"{where}: {key} is {value!r}; a whole number was expected")
    return str(value)


def _length(where: _Place, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < MOST_PIXELS:
        raise HarnessError(f"{where}: {key} is {value!r}; a whole number of pixels was expected")
    return value


def _text(where: _Place, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise HarnessError(f"{where}: {key} is {value!r}; text was expected")
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False
