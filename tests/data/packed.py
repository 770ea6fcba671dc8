"""ImageNet in every layout, and shards, built on the spot from the same few pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image
from releases import write
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n01484850")
"""The first three of the thousand."""
TRAIN = {f"{wnid}_{number}.JPEG": wnid for wnid in WNIDS for number in (10, 2)}
VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": WNIDS[label] for n, label in enumerate((2, 0, 1, 2), 1)}


def picture(name: str) -> bytes:
    """A picture of its own for each name, of one of a few sizes."""
    seed = sum(name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 7, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def tar(files: Iterable[tuple[str, bytes]], mode: Any = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def table(rows: Iterable[tuple[bytes | None, str | None, Any]], names: list[str] | None) -> Any:
    """A table as Hugging Face's ``datasets`` writes it."""
    listed = list(rows)
    images = [{"bytes": data, "path": path} for data, path, _ in listed]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    made = arrow.table(
        {"image": arrow.array(images, kind), "label": arrow.array([each[2] for each in listed])}
    )
    if names is None:
        return made
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return made.replace_schema_metadata({"huggingface": json.dumps(info)})


def folders(root: Path) -> None:
    for split, files in (("train", TRAIN), ("val", VAL)):
        for file, wnid in files.items():
            write(root / split / wnid / file, picture(file))


def _flat(root: Path) -> None:
    for file in VAL:
        write(root / "val" / file, picture(file))


def solution(root: Path) -> None:
    """Kaggle's list, in another order than the pictures'."""
    rows = [f"{Path(file).stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for file, wnid in VAL.items()]
    text = "\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n"
    write(root / "LOC_val_solution.csv", text)


def devkit_files() -> dict[str, bytes]:
    """Its numbers are not the order of the WordNet ids, and one is of a group of classes."""
    numbers = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}
    rows = [(number, wnid, "words", "gloss", 0) for wnid, number in numbers.items()]
    rows.append((4, "n00000001", "all of them", "gloss", 3))
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=kinds)})
    truth = "".join(f"{numbers[wnid]}\n" for wnid in VAL.values())
    return {
        "meta.mat": buffer.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def devkit(root: Path) -> None:
    for name, data in devkit_files().items():
        write(root / "ILSVRC2012_devkit_t12/data" / name, data)


def devkit_archive(root: Path) -> None:
    files = [(f"ILSVRC2012_devkit_t12/data/{n}", data) for n, data in devkit_files().items()]
    write(root / "ILSVRC2012_devkit_t12.tar.gz", tar(files, "w:gz"))


def class_tar(wnid: str) -> bytes:
    return tar((file, picture(file)) for file, each in TRAIN.items() if each == wnid)


def _train_folders(root: Path) -> None:
    for file, wnid in TRAIN.items():
        write(root / "train" / wnid / file, picture(file))


def flat_with_solution(root: Path) -> None:
    _train_folders(root)
    _flat(root)
    solution(root)


def flat_with_devkit(root: Path) -> None:
    _train_folders(root)
    _flat(root)
    devkit(root)


def kaggle(root: Path) -> None:
    _train_folders(root / "ILSVRC/Data/CLS-LOC")
    _flat(root / "ILSVRC/Data/CLS-LOC")
    solution(root)


def official_tars(root: Path) -> None:
    inner = [(f"{wnid}.tar", class_tar(wnid)) for wnid in WNIDS]
    write(root / "ILSVRC2012_img_train.tar", tar(inner))
    write(root / "ILSVRC2012_img_val.tar", tar((file, picture(file)) for file in reversed(VAL)))
    devkit_archive(root)


def class_tars(root: Path) -> None:
    for wnid in WNIDS:
        write(root / f"train/{wnid}.tar", class_tar(wnid))
    _flat(root)
    devkit_archive(root)


def webdataset(root: Path) -> None:
    """Two shards of train; one of val with the labels in JSON."""
    for number, part in enumerate((list(TRAIN)[::2], list(TRAIN)[1::2])):
        files = []
        for file in part:
            stem = Path(file).stem
            files += [(f"{stem}.jpg", picture(file))]
            files += [(f"{stem}.cls", str(WNIDS.index(TRAIN[file])).encode())]
        write(root / f"imagenet1k-train-{number:04d}.tar", tar(files))
    files = []
    for file in VAL:
        label = {"label": WNIDS.index(VAL[file]), "width": 30}
        files += [(f"{Path(file).stem}.json", json.dumps(label).encode())]
        files += [(f"{Path(file).stem}.jpg", picture(file))]
    write(root / "imagenet1k-validation-00.tar", tar(files))


def hugging_face(root: Path) -> None:
    """Row groups of two pictures; the class stands behind the name, as in the real ones."""
    (root / "data").mkdir(parents=True)
    shards = {
        "train-00000-of-00002": list(TRAIN)[:3],
        "train-00001-of-00002": list(TRAIN)[3:],
        "validation-00000-of-00001": list(VAL),
    }
    for name, files in shards.items():
        rows = []
        for file in files:
            wnid = (TRAIN | VAL)[file]
            rows.append((picture(file), f"{Path(file).stem}_{wnid}.JPEG", WNIDS.index(wnid)))
        made = table(rows, ["tench", "goldfish", "great white shark"])
        parquet.write_table(made, root / f"data/{name}.parquet", row_group_size=2)


LAYOUTS: Mapping[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        folders, flat_with_solution, flat_with_devkit, kaggle, official_tars, class_tars,
        webdataset, hugging_face,
    )
}  # fmt: skip
