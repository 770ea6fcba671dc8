"""Damaged and hostile files of captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fuzz.mutations import altered, damaged
from harness.data.caption_lists import read_caption_list
from harness.data.captions import read_json_lines
from harness.data.coco import read_coco_captions
from harness.data.karpathy import read_karpathy

_CAPTIONS: dict[str, Any] = {"image": "sub/a.jpg", "captions": ["a dog", "собака"], "id": "x"}
_KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {
            "filename": "a.jpg",
            "filepath": "val2014",
            "split": "test",
            "sentences": [{"raw": "a dog", "tokens": ["a", "dog"], "sentid": 1}],
        }
    ],
}
_COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "sub/a.jpg", "width": 60, "height": 40}],
    "annotations": [{"id": 5, "image_id": 1, "caption": "a dog"}],
}
_TOKEN = b'a.jpg#0\ta dog\na.jpg#1\tsaid "so", again\n'
_CSV = b"image_name| comment_number| comment\na.jpg| 0| a dog\na.jpg| 4   a cat\n"


def captions(draw: random.Random, folder: Path) -> None:
    """Of every reader of captions."""
    (folder / "pictures").mkdir()
    kind = draw.randrange(5)
    if kind < 3:
        seed = (_CAPTIONS, _KARPATHY, _COCO)[kind]
        data = damaged(draw, json.dumps(seed).encode())
        if draw.random() < 0.6:
            data = json.dumps(altered(draw, seed)).encode("utf-8", "surrogatepass")
    else:
        data = damaged(draw, (_TOKEN, _CSV)[kind - 3])
    name = ("a.jsonl", "a.json", "a.json", "a.token", "a.csv")[kind]
    (folder / name).write_bytes(data)
    if kind == 0:
        found = read_json_lines("x", folder, {"test": name}, "pictures")["test"]
    elif kind == 1:
        found = read_karpathy("x", folder, name, "pictures", {"test": "test"})["test"]
    elif kind == 2:
        found = read_coco_captions("x", folder, "pictures", name)
    else:
        found = read_caption_list("x", folder, name, "pictures")
    assert found.fingerprint() and found.missing() is not None
    assert all(sample.target.captions for sample in found.samples)
