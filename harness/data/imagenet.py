"""ImageNet-1k (ILSVRC2012) in whatever layout it lies on the disk, each split for itself:

* class folders, ``train/<wnid>/`` and ``val/<wnid>/``, also in Kaggle's ``ILSVRC/Data/CLS-LOC``
* a flat ``val/`` with Kaggle's ``LOC_val_solution.csv`` or ImageNet's devkit
* the official ``ILSVRC2012_img_train.tar`` and ``ILSVRC2012_img_val.tar``, not unpacked, or the
  class archives ``train/<wnid>.tar``
* Hugging Face's parquet, ``data/train-00000-of-00294.parquet`` and ``data/validation-…``
* webdataset's shards, ``…train-0000.tar`` and ``…validation-00.tar``

Ids are ``train/<wnid>/<file>`` and ``val/<wnid>/<file>`` in every layout, in sorted order, and so
the same pictures have one fingerprint, and results from any two layouts are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.data.dataset import SUFFIXES, Dataset, Role
from harness.data.devkit import WNID, validation_classes
from harness.data.folder import find, open_folder, refuse_empty
from harness.data.listed import Listed, Row, open_split
from harness.data.parquet import Listed as Listing
from harness.data.parquet import ParquetDataset, rows
from harness.data.shards import labelled
from harness.data.tars import Filed, Member, TarDataset, members, nested
from harness.errors import HarnessError

KAGGLE = "ILSVRC/Data/CLS-LOC"
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_OF = re.compile(r"(train|val|validation)-([0-9]+)-of-([0-9]+)\.parquet")
_SHARD = re.compile(r"(?:.*[-_])?(train|val|validation)[-_]([0-9]+)\.tar")
_NAMES: Mapping[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation")}

Labels = dict[str, int]


@dataclass(frozen=True)
class _Found:
    """One split: the WordNet id of each picture by its id, where they lie, and what opens those of
    given ids with labels, called by a name, of given classes."""

    source: Path
    wnids: Mapping[str, str]
    open: Callable[[str, Labels, tuple[str, ...]], Dataset]


def read_imagenet(name: str, root: Path) -> dict[Role, Dataset]:
    """Open ImageNet in ``root``, called ``name``: train is the role train (where it is there), val
    is test. Labels are places among the sorted WordNet ids. Raises ``HarnessError``."""
    parts: dict[Role, tuple[str, _Found]] = {}
    if (train := _find(root, "train")) is not None:
        parts["train"] = ("train", train)
    if (val := _find(root, "val")) is not None:
        parts["test"] = ("val", val)
    if "test" not in parts:
        raise _no_validation(root)
    classes = tuple(sorted({wnid for _, found in parts.values() for wnid in found.wnids.values()}))
    places = {wnid: label for label, wnid in enumerate(classes)}
    for split, found in parts.values():
        lacking = sorted(set(classes) - set(found.wnids.values()))
        if lacking:
            raise HarnessError(
                f"{found.source}: the class {lacking[0]!r} has pictures in another split and none "
                f"in {split} ({len(lacking)} of {len(classes)} classes)"
            )
    opened = {}
    for role, (_, found) in parts.items():
        labels = {each: places[found.wnids[each]] for each in sorted(found.wnids)}
        opened[role] = found.open(name, labels, classes)
    return opened


def read_validation(name: str, root: Path) -> Dataset:
    """The validation pictures alone, in any layout; labels are places among the sorted WordNet ids
    that they have. Raises ``HarnessError``."""
    found = _find(root, "val")
    if found is None:
        raise _no_validation(root)
    classes = tuple(sorted(set(found.wnids.values())))
    places = {wnid: label for label, wnid in enumerate(classes)}
    return found.open(
        name, {each: places[found.wnids[each]] for each in sorted(found.wnids)}, classes
    )


def _no_validation(root: Path) -> HarnessError:
    return HarnessError(
        f"{root}: no validation pictures: val/<wnid>/, val/ with labels, {VAL_TAR}, "
        "data/validation-*.parquet and *validation-*.tar were looked for"
    )


def _find(root: Path, split: str) -> _Found | None:
    """The split in the first layout that is there, or None."""
    base = root / KAGGLE if (root / KAGGLE / split).is_dir() else root
    folder = base / split
    if folder.is_dir():
        names = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
        if any(WNID.fullmatch(name) for name in names):
            return _class_folders(base, split)
        if split == "train" and any(WNID.fullmatch(name.removesuffix(".tar")) for name in names):
            archives = [folder / name for name in sorted(names) if name.endswith(".tar")]
            return _class_tars(folder, ((a.name, m) for a in archives for m in members(a)))
        if split == "val" and any(Path(name).suffix.lower() in SUFFIXES for name in names):
            return _flat(root, base, names)
    if split == "train" and (root / TRAIN_TAR).is_file():
        return _class_tars(root / TRAIN_TAR, nested(root / TRAIN_TAR))
    if split == "val" and (root / VAL_TAR).is_file():
        return _val_tar(root)
    for within in (root, root / "data", folder):
        if within.is_dir():
            names = sorted(each.name for each in within.iterdir() if each.is_file())
            if found := _parquet(within, split, names) or _shards(within, split, names):
                return found
    return None


def _class_folders(base: Path, split: str) -> _Found:
    found = find(base, split)
    wnids = {id_: wnid for wnid, ids in found.classes.items() for id_ in ids}
    refuse_empty(base, found)

    def open_found(name: str, _: Labels, classes: tuple[str, ...]) -> Dataset:
        return open_folder(name, base, split, found, classes)

    return _Found(base / split, wnids, open_found)


def _flat(root: Path, base: Path, names: Iterable[str]) -> _Found:
    source, classes = validation_classes(root)
    there = {Path(name).stem: name for name in names}
    files = {
        f"val/{wnid}/{there.get(stem, f'{stem}.JPEG')}": f"val/{there.get(stem, f'{stem}.JPEG')}"
        for stem, wnid in classes.items()
    }

    def open_flat(name: str, labels: Labels, classes: tuple[str, ...]) -> Dataset:
        listed = [Row(files[each], label, None, each) for each, label in labels.items()]
        return open_split(name, base, Listed("val", source, listed), classes)

    return _Found(source, {each: each.split("/")[1] for each in files}, open_flat)


def _class_tars(source: Path, found: Iterable[tuple[str, Member]]) -> _Found:
    """``found``: an archive's name, which is its class's, and a picture in it."""
    lying: dict[str, Member | None] = {}
    for archive, member in found:
        wnid = archive.rpartition("/")[2].removesuffix(".tar")
        if not WNID.fullmatch(wnid):
            raise HarnessError(f"{source}: {archive} is not called by a class (n01440764.tar)")
        if Path(member.name).suffix.lower() in SUFFIXES:
            lying[f"train/{wnid}/{member.name.rpartition('/')[2]}"] = member
    return _tar_found(source, "train", lying)


def _val_tar(root: Path) -> _Found:
    archive = root / VAL_TAR
    _, classes = validation_classes(root)
    there = {Path(member.name).stem: member for member in members(archive)}
    lying = {
        f"val/{wnid}/{there[stem].name.rpartition('/')[2] if stem in there else f'{stem}.JPEG'}": (
            there.get(stem)
        )
        for stem, wnid in classes.items()
    }
    return _tar_found(archive, "val", lying)


def _tar_found(source: Path, split: str, lying: Mapping[str, Member | None]) -> _Found:
    if not lying:
        raise HarnessError(f"{source}: no picture in it; download it again")

    def open_tar(name: str, labels: Labels, classes: tuple[str, ...]) -> Dataset:
        filed = [Filed(each, label, lying[each]) for each, label in labels.items()]
        return TarDataset(name, split, filed, classes)

    return _Found(source, {each: each.split("/")[1] for each in lying}, open_tar)


def _shards(folder: Path, split: str, names: Iterable[str]) -> _Found | None:
    matched = [each for each in map(_SHARD.fullmatch, names) if each and each[1] in _NAMES[split]]
    if not matched:
        return None
    _check_all_there(folder, {int(each[2]): each[0] for each in matched}, None)
    lying: dict[str, Member | None] = {}
    for each in matched:
        shard = folder / each[0]
        for picture in labelled(shard):
            stem = picture.key.rpartition("/")[2]
            wnid = _wnid(shard, picture.label, stem)
            identity = f"{split}/{wnid}/{_file_name(stem, wnid)}"
            if identity in lying:
                raise HarnessError(f"{shard}: {picture.key} stands in another shard too")
            lying[identity] = picture.member
    return _tar_found(folder, split, lying)


def _parquet(folder: Path, split: str, names: Iterable[str]) -> _Found | None:
    matched = [each for each in map(_OF.fullmatch, names) if each and each[1] in _NAMES[split]]
    if not matched:
        return None
    _check_all_there(folder, {int(each[2]): each[0] for each in matched}, int(matched[0][3]))
    lying: dict[str, Listing] = {}
    for each in matched:
        file = folder / each[0]
        for place, row in enumerate(rows(file, "image", "label")):
            stem = Path(row.path or f"{file.stem}_{place:06d}").stem
            wnid = _wnid(file, row.label, stem)
            identity = f"{split}/{wnid}/{_file_name(stem, wnid)}"
            if identity in lying:
                raise HarnessError(f"{file}: {row.path} stands twice")
            lying[identity] = row

    def open_parquet(name: str, labels: Labels, classes: tuple[str, ...]) -> Dataset:
        # A label in the file is of the thousand classes; here it is of those that are there.
        listed = [lying[each]._replace(label=label) for each, label in labels.items()]
        return ParquetDataset(name, split, listed, list(labels), classes)

    return _Found(folder, {each: each.split("/")[1] for each in lying}, open_parquet)


def _check_all_there(folder: Path, shards: Mapping[int, str], count: int | None) -> None:
    lacking = set(range(count if count is not None else max(shards) + 1)) - set(shards)
    if lacking:
        raise HarnessError(
            f"{folder}: shard {min(lacking)} of those like {next(iter(shards.values()))} is not "
            f"there ({len(lacking)} are missing): download what is missing"
        )


def _file_name(stem: str, wnid: str) -> str:
    """The official name of a picture, which Hugging Face writes with the class behind it."""
    return f"{stem.removesuffix(f'_{wnid}')}.JPEG"


def _wnid(source: Path, label: int, stem: str) -> str:
    """The class of a label; a class that the picture's name says must be the same."""
    wnids = thousand()
    if not 0 <= label < len(wnids):
        raise HarnessError(
            f"{source}: the label of {stem}, {label}, is none of the {len(wnids)} classes "
            f"(0 to {len(wnids) - 1})"
        )
    said = WNID.findall(stem)
    if said and said[-1] != wnids[label]:
        raise HarnessError(
            f"{source}: {stem} is of {said[-1]} by its name, and of {wnids[label]} by its label "
            f"{label}: its labels do not count the sorted WordNet ids"
        )
    return wnids[label]


@cache
def thousand() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, in sorted order."""
    return tuple(sorted(timm_list("imagenet_synsets.txt").read_text(encoding="ascii").split()))


def timm_list(name: str) -> Path:
    """A list of ImageNet's that timm carries (which is found, not imported: that would take
    torch). Raises ``HarnessError`` where timm has it not."""
    spec = find_spec("timm")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "data/_info" / name
        if path.is_file():
            return path
    raise HarnessError(f"timm, whose {name} is needed, is not installed, or lacks it")
