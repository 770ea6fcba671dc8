"""What is fuzzed: each target makes one case's files in a folder and reads them as the harness
does. It may raise ``HarnessError`` (``BadPicture`` and ``DamagedResult`` are some), nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from fuzz.caption_targets import captions
from fuzz.mutations import altered, damaged
from fuzz.weight_targets import checkpoint, text_tower
from harness import records, registry
from harness import suites as suite_files
from harness.data import catalog
from harness.data.catalog import BUILT_IN, Catalog
from harness.data.coco import read_coco
from harness.data.dataset import decode, header_size
from harness.data.views import Geometry
from harness.data.voc import read_voc
from harness.documents import Document, canonical_json, read_yaml
from harness.errors import HarnessError
from harness.features.keys import Key
from harness.features.store import (
    MANIFEST,
    Filling,
    Store,
    manifest_bytes,
    read_manifest,
    shard_name,
)
from harness.gate import gate_file
from harness.gate.gate_file import SHIPPED as GATE
from harness.gate.gate_file import Gate
from harness.language.class_texts import class_texts, read_prompts
from harness.language.texts import check_texts
from harness.registry import SHIPPED as MODELS
from harness.registry import Registry
from harness.suites import SHIPPED as SUITES
from harness.suites import Suites

_OURS = {GATE, MODELS, SUITES, BUILT_IN}
Target = Callable[[random.Random, Path], None]

_GEOMETRY = Geometry((60, 40), (48, 32), (8, 0, 32, 32), (0, 0, 0, 0), False)
_KEY = Key({"shard": 4, "what": "x"}, {"name": "y"})
_XML = b"""<annotation><folder>VOC2007</folder><filename>a.jpg</filename>
<size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>person</name><truncated>0</truncated><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object></annotation>
"""
_COCO: dict[str, Any] = {
    "info": {"year": 2014},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40},
        {"id": 2, "file_name": "sub/b.jpg", "width": 6, "height": 4},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 6, 4], "segmentation": [[1, 2]]},
    ],
}
_DATASETS = {
    "mine": {"format": "voc", "root": "VOC2007", "split": "trainval"},
    "coco": {"format": "coco", "root": "coco", "images": "train2014", "annotations": "a.json"},
    "painted": {"format": "generated"},
    "folder": {"format": "imagefolder", "root": "x", "splits": {"train": "a", "test": "b"}},
}
_OWN_MODELS = {
    "mine": {
        "timm": "vit_tiny_patch16_224",
        "checkpoint": "mine.safetensors",
        "arguments": {"img_size": 64, "depth": 4},
        "position_embedding": {"antialias": True, "offset": 0.0},
        "input": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic"},
        "license": "MIT",
    },
    "mine-reg4": {"like": "mine", "registers": 4, "replace_registers": {"by": "zero"}},
    "changed": {"like": "mine", "test_time_registers": {"neurons": "n.json"}},
    "read": {"like": "mine", "text": {"openclip": "ViT-B-16", "checkpoint": "t.safetensors"}},
    "folder": {"timm": "vit_tiny_patch16_224", "text": {"openclip": "local-dir:towers/a"}},
    "built": {"factory": "a.b:c", "arguments": {"x": [1, {"y": None}]}, "baseline": "mine"},
}
_PROMPTS = {
    "templates": ["a photo of a {}.", "{}"],
    "classes": {"a": "cat", "b": ["dog", "\u72ac"]},
    "same_names": False,
}
_OWN_GATE = {
    "level": 0.05,
    "tolerance": [{"task": "lost", "absolute": 0.5}, {"model": ["a", "b"], "relative": 0.1}],
    "states": {"missing": "fail", "new": "warn"},
    "ignore": [{"dataset": "voc07", "reason": "noisy"}],
    "speed": {"ratio": 0.8},
}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def voc(draw: random.Random, folder: Path) -> None:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    names = b"a\n" if draw.random() < 0.9 else damaged(draw, b"a\nb 1\n")
    (folder / "ImageSets/Main/test.txt").write_bytes(names)
    (folder / "Annotations/a.xml").write_bytes(damaged(draw, _XML))
    read_voc("x", folder, "test").fingerprint()


def coco(draw: random.Random, folder: Path) -> None:
    data = _json(altered(draw, _COCO)) if draw.random() < 0.6 else damaged(draw, _json(_COCO))
    (folder / "a.json").write_bytes(data)
    (folder / "pictures").mkdir()
    read_coco("x", folder, "pictures", "a.json").fingerprint()


@cache
def _shipped(path: Path) -> Document:
    """A file of ours, which takes longer to parse than a case: once a process."""
    return read_yaml(path)


def _read(path: Path) -> Document:
    return _shipped(path) if path in _OURS else read_yaml(path)


def parse_ours_once() -> None:
    """For a process that does nothing but run cases."""
    for module in (registry, catalog, suite_files, gate_file):
        module.read_yaml = _read  # type: ignore[attr-defined]


def _yaml(draw: random.Random, folder: Path, *seeds: Any) -> Path:
    """A YAML file: a whole seed or a few of its entries, altered or damaged."""
    seed = draw.choice(seeds)
    if isinstance(seed, Path):
        seed = _shipped(seed).data
        kept = draw.sample(sorted(seed), min(4, len(seed)))
        seed = {name: seed[name] for name in kept}
    path = folder / "own.yaml"
    if draw.random() < 0.6:
        text = yaml.safe_dump(altered(draw, seed), allow_unicode=True)
        data = text.encode("utf-8", "surrogatepass")
    else:
        data = damaged(draw, yaml.safe_dump(seed).encode())
    path.write_bytes(data)
    return path


def models(draw: random.Random, folder: Path) -> None:
    found = Registry.load([_yaml(draw, folder, MODELS, _OWN_MODELS, _OWN_MODELS)])
    for entry in map(found.entry, found.names()):
        assert entry.digest() and entry.running_registers >= 0
        entry.model_dump_json()
        assert isinstance(entry.interventions, list)
        assert entry.text is None or entry.text.name


def datasets(draw: random.Random, folder: Path) -> None:
    path = _yaml(draw, folder, BUILT_IN, _DATASETS)
    found = Catalog.load([path], folder)
    for name in found.names():
        found.absent(name)
        assert found.advice(name)


def suites(draw: random.Random, folder: Path) -> None:
    path = _yaml(draw, folder, SUITES)
    found = Suites.load([path])
    for name in read_yaml(path).data:
        found.check(name, *_known())
        found.suite(name).model_dump_json()


def prompts(draw: random.Random, folder: Path) -> None:
    found = read_prompts(_yaml(draw, folder, _PROMPTS, _PROMPTS))
    words = [*found.classes, *draw.sample(["a_b", "/c/d", "7", "", "n01440764"], 2)]
    for texts in class_texts("mine", words, found):
        check_texts(texts)
        assert all(texts)


@cache
def _known() -> tuple[Registry, Catalog]:
    return Registry.load(), Catalog.load()


def gate(draw: random.Random, folder: Path) -> None:
    found = Gate.load(_yaml(draw, folder, GATE, _OWN_GATE, _OWN_GATE))
    assert 0 < found.level < 1


@cache
def _record() -> dict[str, bytes]:
    """The files of a whole result. Writing one waits for the disk, which no case should."""
    from result_examples import cell, columns, make

    with tempfile.TemporaryDirectory() as folder:
        path = cell(Path(folder))
        records.write(path, make(), columns())
        return records.files(path)


def record(draw: random.Random, folder: Path) -> None:
    """JSON and table; a damaged table gets a JSON that names its digest, to be read at all."""
    from result_examples import cell

    out = folder / "results"
    path = cell(out)
    path.parent.mkdir(parents=True)
    for name, data in _record().items():
        (path.parent / name).write_bytes(data)
    table, facts = path.with_suffix(".parquet"), json.loads(path.read_text())
    kind = draw.randrange(3)
    if kind == 0:
        path.write_bytes(_json(altered(draw, facts)))
    elif kind == 1:
        path.write_bytes(damaged(draw, path.read_bytes()))
    else:
        data = damaged(draw, table.read_bytes())
        table.write_bytes(data)
        facts["per_picture"]["sha256"] = hashlib.sha256(data).hexdigest()
        path.write_bytes(_json(facts))
    for _, found in records.look_at_all(out):
        if isinstance(found, HarnessError):
            raise found
        assert records.read_columns(path, found)
        found.model_dump_json()


@cache
def _stored() -> tuple[bytes, bytes]:
    """A shard and its manifest."""
    filling = Filling(4)
    filling.add([0, 1, 2, 3], torch.arange(12.0).reshape(4, 3), torch.ones(4) > 0, [_GEOMETRY] * 4)
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder)).feature(_KEY, 4).write(0, filling.rows({}))
        place = Path(folder) / _KEY.digest
        return (place / shard_name(0)).read_bytes(), (place / MANIFEST).read_bytes()


def store(draw: random.Random, folder: Path) -> None:
    """A store never raises: what is damaged is not there. Seals are made true again."""
    key = _KEY
    place = folder / key.digest
    place.mkdir()
    file, manifest = place / shard_name(0), place / MANIFEST
    whole, sealed = _stored()
    file.write_bytes(whole)
    manifest.write_bytes(sealed)
    kind = draw.randrange(3)
    if kind == 0:
        data = damaged(draw, whole)
        file.write_bytes(data)
        shards = {0: hashlib.sha256(data).hexdigest()}
        manifest.write_bytes(manifest_bytes(key, 4, shards))
    elif kind == 1:
        manifest.write_bytes(damaged(draw, manifest.read_bytes()))
    else:
        body = altered(draw, json.loads(manifest.read_bytes())["body"])
        try:
            seal = hashlib.sha256(canonical_json(body)).hexdigest()
        except ValueError:  # NaN
            seal = ""
        manifest.write_bytes(_json({"sha256": seal, "body": body}))
    found = read_manifest(place)
    if found is not None:
        assert found.complete in (True, False)
    rows = Store(folder).feature(key, 4).read(0)
    if rows is not None:
        assert len(rows.values) == len(rows.geometry) == len(rows.there) == 4
        assert rows.values.float().sum() is not None and rows.there.dtype == torch.bool


@cache
def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    found = []
    for kind, mode in (
        *(("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P")),
        *(("PNG", "1"), ("WEBP", "RGB"), ("BMP", "RGB"), ("GIF", "P"), ("PPM", "RGB")),
    ):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, kind)
        found.append(file.getvalue())
    return found


def picture(draw: random.Random, folder: Path) -> None:
    data = damaged(draw, draw.choice(_pictures()))
    (folder / "a").write_bytes(data)
    header_size(folder / "a")
    found = decode(data, "a")
    assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8


TARGETS: dict[str, Target] = {
    "voc": voc,
    "coco": coco,
    "captions": captions,
    "models": models,
    "datasets": datasets,
    "suites": suites,
    "prompts": prompts,
    "gate": gate,
    "record": record,
    "store": store,
    "checkpoint": checkpoint,
    "text-tower": text_tower,
    "picture": picture,
}


def _raises(draw: random.Random, folder: Path) -> None:
    if draw.random() < 0.1:
        raise KeyError("planted")


def _hangs(draw: random.Random, folder: Path) -> None:
    time.sleep(3600 if draw.random() < 0.1 else 0)


def _dies(draw: random.Random, folder: Path) -> None:
    if draw.random() < 0.1:
        os.kill(os.getpid(), signal.SIGSEGV)


def _swells(draw: random.Random, folder: Path) -> None:
    if draw.random() < 0.1:
        bytearray(2**33)


PLANTED: dict[str, Target] = {
    "planted-error": _raises,
    "planted-hang": _hangs,
    "planted-death": _dies,
    "planted-memory": _swells,
}
"""Each must be found (tests/test_fuzz.py), or a clean run of the others would mean nothing."""


def run_case(target: str, seed: int, folder: Path) -> None:
    """One case, in ``folder``, which is emptied. Raises what is a finding."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        (TARGETS | PLANTED)[target](random.Random(f"{target} {seed}"), folder)
    except HarnessError:
        return
