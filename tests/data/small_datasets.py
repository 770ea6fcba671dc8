"""Small data sets in each format, built on the spot."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.files import FileDataset
from harness.data.voc import read_voc


def encode(size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    """A picture of noise, ``(width, height)``, as JPEG unless ``format`` says otherwise."""
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=mode)
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", **options})
    return buffer.getvalue()


def voc_xml(
    objects: str = "", size: str | None = "<width>40</width><height>30</height><depth>3</depth>"
) -> str:
    block = "" if size is None else f"<size>{size}</size>"
    return f"<annotation>{block}{objects}</annotation>"


def voc_object(
    box: tuple[Any, Any, Any, Any] = (1, 1, 40, 30), name: str = "cat", extra: str = ""
) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bounds = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{extra}<bndbox>{bounds}</bndbox></object>"


@dataclass
class VOCTree:
    """A VOC folder under construction."""

    root: Path
    lines: list[str] = field(default_factory=list)

    def add(self, identity: str, xml: str | bytes | None, picture: bytes | None) -> Path:
        """One picture with its annotation. Returns the annotation's path."""
        self.lines.append(identity)
        annotation = self.root / "Annotations" / f"{identity}.xml"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        if xml is not None:
            annotation.write_bytes(xml.encode() if isinstance(xml, str) else xml)
        if picture is not None:
            (self.root / "JPEGImages" / f"{identity}.jpg").write_bytes(picture)
        return annotation

    def open(self) -> FileDataset:
        self.write_image_set()
        return read_voc("tree", self.root, "trainval")

    def write_image_set(self) -> None:
        """Write the image set."""
        image_set = self.root / "ImageSets" / "Main" / "trainval.txt"
        image_set.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


@dataclass
class COCOTree:
    """A COCO folder under construction: change ``data``, then ``write``."""

    root: Path
    data: dict[str, Any]

    def write(self, text: str | bytes | None = None) -> Path:
        (self.root / "pictures").mkdir(parents=True, exist_ok=True)
        for image in self.data["images"]:
            name = image.get("file_name") if isinstance(image, dict) else None
            if isinstance(name, str) and name.startswith("picture"):
                (self.root / "pictures" / name).write_bytes(encode())
        path = self.root / "instances.json"
        content = json.dumps(self.data) if text is None else text
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
