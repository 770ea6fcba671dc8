"""Pascal VOC's layout: JPEGImages, Annotations, ImageSets/Main (VOC2007 development kit).

Boxes are written 1-based and inclusive; here x0 and y0 lose 1 and x1 and y1 stay, which makes them
0-based and exclusive. LOST's code does the same. Coordinates are not rounded or clipped.

An annotation without a usable ``<size>`` (absent, or 0x0 as some tools write it) takes the size
from the picture's own header. One with a size is believed, because opening every picture of a data
set takes minutes; only when a box lies outside that size is the header asked who is right.
``harness doctor --decode`` finds the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree as SafeXML
from defusedxml.common import DefusedXmlException

from harness.data.dataset import (
    MOST_PIXELS,
    Boxes,
    Labels,
    Role,
    Sample,
    Target,
    header_size,
    safe_relative,
)
from harness.data.files import FileDataset, Listing, read_lines
from harness.errors import HarnessError

MAX_XML_BYTES = 4 * 1024 * 1024
EXTENSIONS = (".jpg", ".jpeg", ".png")
_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}
_UNKNOWN = (0, 0)


def image_set(root: Path, split: str) -> Path:
    """The file that lists the pictures of ``split``."""
    return root / "ImageSets" / "Main" / safe_relative(f"{split}.txt", f"split {split!r}")


def read_voc(name: str, root: Path, split: str) -> FileDataset:
    """Open ``split`` of the VOC folder ``root`` (``…/VOCdevkit/VOC2007``), called ``name``.

    Every picture of the image set is a sample, also one without objects. Difficult and truncated
    objects are kept and marked: a task chooses. Raises ``HarnessError``.
    """
    listing = Listing(root)
    samples: list[Sample] = []
    files: list[str] = []
    absent: list[str] = []
    for identity in _read_image_set(image_set(root, split)):
        found = [file for ext in EXTENSIONS if (file := f"JPEGImages/{identity}{ext}") in listing]
        if not found:
            absent.append(identity)
        files.append(found[0] if found else f"JPEGImages/{identity}.jpg")
        annotation = root / "Annotations" / f"{identity}.xml"
        samples.append(_read_annotation(annotation, identity, root / files[-1]))
    classes = {c for sample in samples if sample.target.boxes for c in sample.target.boxes.classes}
    return FileDataset(name, split, samples, tuple(sorted(classes)), root, files, absent)


def read_voc_labels(name: str, root: Path, splits: Mapping[Role, str]) -> dict[Role, FileDataset]:
    """Open ``splits`` for classification: each picture's target has ``labels`` beside its boxes.

    A class is present where the picture has an object of it that is not difficult, and unclear
    where all of them are. The development kit's own ``<class>_<split>.txt`` say the same as 1 and
    0, by its documentation; a folder of one's own seldom has them, so that the boxes alone decide.
    Classes are those of all ``splits``: one that a split lacks does not move the others' places.
    Raises ``HarnessError``.
    """
    opened = {role: read_voc(name, root, split) for role, split in splits.items()}
    classes = tuple(sorted({each for dataset in opened.values() for each in dataset.classes}))
    for dataset in opened.values():
        dataset.classes = classes
        dataset.samples = [
            replace(sample, target=replace(sample.target, labels=_labels(sample.target, classes)))
            for sample in dataset.samples
        ]
    return opened


def _labels(target: Target, classes: tuple[str, ...]) -> Labels:
    assert target.boxes is not None
    named = list(zip(target.boxes.classes, target.boxes.difficult, strict=True))
    present = {each for each, difficult in named if not difficult}
    unclear = {each for each, _ in named} - present
    places = {each: place for place, each in enumerate(classes)}
    return Labels(
        tuple(sorted(places[each] for each in present)),
        tuple(sorted(places[each] for each in unclear)),
    )


def _read_image_set(path: Path) -> list[str]:
    """The ids of an image set. The second column of a class's own set (-1, 0, 1) is not read."""
    first: dict[str, int] = {}
    for number, line in read_lines(path):
        identity = safe_relative(line.split()[0], f"{path}:{number}").as_posix()
        if identity in first:
            raise HarnessError(
                f"{path}:{number}: {identity!r} stands twice (first on line {first[identity]})"
            )
        first[identity] = number
    if not first:
        raise HarnessError(f"{path}: lists no picture")
    return list(first)


def _read_annotation(path: Path, identity: str, picture: Path) -> Sample:
    root = _parse(path)
    objects = root.findall("object")
    places = [f"{path}: object {n} ({_text(o, 'name')!r})" for n, o in enumerate(objects, 1)]
    rows = [_box(where, found) for where, found in zip(places, objects, strict=True)]
    xyxy = np.array(rows, dtype=np.float64).reshape(-1, 4)
    size = _size(path, root.find("size"))
    if size == _UNKNOWN or any(_outside(box, size) for box in xyxy):
        stored = header_size(picture)
        size = size if stored == _UNKNOWN else stored
    for where, box in zip(places, xyxy, strict=True):
        if _outside(box, size):
            raise HarnessError(
                f"{where}: the box {_say(box)} lies outside the picture"
                f"{'' if size == _UNKNOWN else f' of {size[0]}x{size[1]} pixels'}"
            )
    boxes = Boxes(
        xyxy=xyxy,
        classes=tuple(_class(where, found) for where, found in zip(places, objects, strict=True)),
        crowd=np.zeros(len(objects), dtype=np.bool_),
        difficult=_flags(places, objects, "difficult"),
        truncated=_flags(places, objects, "truncated"),
    )
    return Sample(identity, size, Target(boxes=boxes))


def _parse(path: Path) -> Element:
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise HarnessError(f"{path}: larger than {MAX_XML_BYTES // 2**20} MiB; not read")
        data = path.read_bytes()
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such annotation") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        root: Element = SafeXML.fromstring(data)
    except DefusedXmlException:
        raise HarnessError(
            f"{path}: declares entities, which can expand without end; not read"
        ) from None
    except ParseError as error:
        raise HarnessError(f"{path}: not XML: {error}") from None
    except (ValueError, LookupError) as error:  # a declared encoding that there is not
        raise HarnessError(f"{path}: not XML: {error}") from None
    if root.tag != "annotation":
        raise HarnessError(f"{path}: the outermost tag is <{root.tag}>, not VOC's <annotation>")
    return root


def _size(path: Path, size: Element | None) -> tuple[int, int]:
    """What ``<size>`` says, or (0, 0) where it says nothing."""
    if size is None:
        return _UNKNOWN
    width, height = (_number(f"{path}: <size>", size, tag) for tag in ("width", "height"))
    if not (0 <= width < MOST_PIXELS and 0 <= height < MOST_PIXELS) or width % 1 or height % 1:
        raise HarnessError(f"{path}: <size> is {width:g}x{height:g}; whole pixels were expected")
    return (int(width), int(height)) if width and height else _UNKNOWN


def _box(where: str, found: Element) -> list[float]:
    bounds = found.find("bndbox")  # the object's own, not those of a person's parts (VOC2012)
    if bounds is None:
        raise HarnessError(f"{where}: has no <bndbox>")
    x0, y0, x1, y1 = (_number(where, bounds, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x1 < x0 or y1 < y0:
        raise HarnessError(
            f"{where}: the box is empty: xmin {x0:g}, ymin {y0:g}, xmax {x1:g}, ymax {y1:g}"
        )
    return [x0 - 1, y0 - 1, x1, y1]


def _outside(box: np.ndarray[Any, Any], size: tuple[int, int]) -> bool:
    """No pixel in common. Of a picture whose size nobody knows, only left and top are known."""
    width, height = size if size != _UNKNOWN else (math.inf, math.inf)
    return bool(box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height)


def _flags(places: list[str], objects: list[Element], tag: str) -> np.ndarray[Any, Any]:
    flags = []
    for where, found in zip(places, objects, strict=True):
        text = _text(found, tag).lower()
        if text not in _FLAGS:
            raise HarnessError(f"{where}: <{tag}> is {text!r}; 0 or 1 was expected")
        flags.append(_FLAGS[text])
    return np.array(flags, dtype=np.bool_)


def _class(where: str, found: Element) -> str:
    name = _text(found, "name")
    if not name:
        raise HarnessError(f"{where}: has no <name>")
    return name


def _number(where: str, parent: Element, tag: str) -> float:
    text = _text(parent, tag)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HarnessError(f"{where}: <{tag}> is {text!r}; a number was expected")
    return value


def _text(parent: Element, tag: str) -> str:
    return (parent.findtext(tag) or "").strip()


def _say(box: np.ndarray[Any, Any]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
