"""Masks, depth maps and pictures, written on the spot, and data sets of them, opened."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from small_datasets import encode

from harness.data.catalog import Catalog
from harness.data.dataset import Dataset

SIZE = (40, 30)
COLOURS = bytes(255 - each // 3 for each in range(768))
"""A palette in which no colour is its own index."""


def png(array: NDArray[Any], *, palette: bool = False) -> bytes:
    """uint8 or uint16 ``[H, W]`` (or colours ``[H, W, 3]``) as PNG."""
    image = Image.fromarray(array)
    if palette:
        image.putpalette(COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def few_bits(ids: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, which PIL cannot write."""
    height, width = ids.shape
    rows = b""
    for row in ids:
        text = "".join(f"{each:0{bits}b}" for each in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ids(*values: int, size: tuple[int, int] = SIZE, dtype: Any = np.uint8) -> NDArray[Any]:
    """A mask or a depth map of ``size`` in which ``values`` occur, and nothing else."""
    return np.resize(np.array(values, dtype), (size[1], size[0]))


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def put_picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    put(path, encode(size, format="PNG" if path.suffix == ".png" else "JPEG"))


def catalog_of(root: Path, **entry: Any) -> Catalog:
    path = root.parent / "sets.yaml"
    path.write_text(yaml.safe_dump({"mine": {"root": str(root), **entry}}, sort_keys=False))
    return Catalog.load([path])


def opened(root: Path, **entry: Any) -> dict[str, Dataset]:
    return {**catalog_of(root, **entry).open("mine")}


def first_row(dataset: Dataset, index: int = 0) -> list[int]:
    """The mask's first pixels, as many as the fabricated ones have different values."""
    semantic = dataset.dense(index).semantic
    assert semantic is not None
    return semantic[0, :3].tolist()
