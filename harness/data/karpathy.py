"""COCO and Flickr30k in the splits that Karpathy and Fei-Fei made ("Deep Visual-Semantic Alignments
for Generating Image Descriptions", CVPR 2015): dataset_coco.json, dataset_flickr30k.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.captions import Described, open_described, text_of
from harness.data.dataset import Dataset, Role
from harness.data.json_files import read_json
from harness.errors import HarnessError


def read_karpathy(
    name: str, root: Path, annotations: str, images: str, splits: Mapping[Role, str]
) -> dict[Role, Dataset]:
    """By role the pictures of one split, or of several (``train+restval``), in the file's order.

    ``images`` is the folder of ``root`` that ``filepath`` (COCO's: val2014) and ``filename`` are
    relative to. A sample's id is the picture's file name. Raises ``HarnessError``.
    """
    path = root / annotations
    # The words of the captions one by one, which are half of the file.
    rows = list(_rows(path, read_json(path, "tokens", "images")))
    known = dict.fromkeys(split for split, _ in rows)
    opened: dict[Role, Dataset] = {}
    for role, wanted in splits.items():
        parts = wanted.split("+")
        for part in parts:
            if part not in known:
                raise HarnessError(f"{path}: no split {part!r}; there are {', '.join(known)}")
        some = [row for split, row in rows if split in parts]
        opened[role] = open_described(name, wanted, root / images, some, path)
    return opened


def _rows(path: Path, data: Mapping[str, Any]) -> Iterator[tuple[str, Described]]:
    images = data.get("images")
    if not isinstance(images, list):
        raise HarnessError(f"{path}: images is not a list: not one of Karpathy's files")
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        if not isinstance(image, dict):
            raise HarnessError(f"{where} is not a mapping")
        file = text_of(image, "filename", where)
        folder = text_of(image, "filepath", where) + "/" if "filepath" in image else ""
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(each, dict) for each in sentences):
            raise HarnessError(f'{where} ({file}): sentences is no list of {{"raw": TEXT}}')
        captions = [sentence.get("raw") for sentence in sentences]
        row = Described(file, folder + file, captions, f"{where} ({file})")
        yield text_of(image, "split", where), row
