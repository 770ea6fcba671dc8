"""What an undisturbed run finds, and how what a disturbed one left differs from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness import records
from harness.atomic import writer
from harness.documents import canonical_json
from harness.features import upkeep
from harness.features.store import read_manifest, read_shard, shard_name

KEPT = ("metrics", "details", "counts", "dataset", "protocol", "model", "bad_pictures")


class Wrong(NamedTuple):
    """A finding. ``kind``: lost (a result that had been there, or that the rerun does not bring),
    wrong (a number or a file that is another), traceback, or untidy (litter, a process that stays,
    a status or a message that is not the promised one)."""

    kind: str
    what: str


def found(out: Path) -> dict[str, str]:
    """Of every record what it found: metrics, details, and each picture's values, as a digest. One
    that is damaged has the reason for it."""
    told = {}
    for path, record in records.look_at_all(out):
        name = str(path.relative_to(out))
        if not isinstance(record, records.Record):
            told[name] = f"damaged: {record}"
            continue
        facts = record.model_dump(mode="json")
        columns = records.read_columns(path, record)
        values = {column: repr(each.tolist()) for column, each in columns.items()}
        kept = {name: facts[name] for name in KEPT}
        told[name] = hashlib.sha256(canonical_json([kept, values])).hexdigest()
    return told


def results_differ(out: Path, truth: Mapping[str, str], complete: bool) -> list[Wrong]:
    """Results under ``out`` that are not those of ``truth``; those that lack, if all should be
    there."""
    here = found(out)
    wrong = [
        Wrong("wrong", f"{name}: {what if what.startswith('damaged') else 'other numbers'}")
        for name, what in here.items()
        if truth.get(name) != what
    ]
    if complete:
        wrong += [Wrong("lost", f"{name}: not there") for name in truth if name not in here]
    return wrong


def store_differs(
    folder: Path, truth: Mapping[str, Mapping[int, str]], complete: bool
) -> list[Wrong]:
    """Shards of a feature store that are not whole, or not those of an undisturbed run. A command
    that was killed may leave shards that nothing lists, one that has ended may not."""
    wrong = [Wrong("wrong", f"{each.path}: {each.what}") for each in upkeep.verify(folder, False)]
    if complete:
        unlisted = [each.folder.name for each in upkeep.kept(folder) if each.manifest is None]
        wrong += [Wrong("untidy", f"{key}: nothing lists its shards") for key in unlisted]
    for key, shards in stored(folder).items():
        for shard, digest in shards.items():
            if key in truth and truth[key].get(shard, digest) != digest:
                wrong.append(Wrong("wrong", f"{key} shard {shard}: other vectors"))
    return wrong


def stored(folder: Path) -> dict[str, dict[int, str]]:
    """The shards that every key's manifest names, with a digest of what is in each."""
    manifests = {each: read_manifest(each) for each in folder.iterdir() if each.is_dir()}
    return {
        key.name: {
            shard: content(key / shard_name(shard), key.name, shard) for shard in manifest.shards
        }
        for key, manifest in manifests.items()
        if manifest is not None
    }


def content(path: Path, key: str, shard: int) -> str:
    """A digest of a shard's rows. Not of the file's bytes: safetensors writes its header in any
    order."""
    rows = read_shard(path, key, shard)
    if rows is None:
        return "none"
    arrays = [each.contiguous().numpy().tobytes() for each in rows[:3]]
    return hashlib.sha256(b"".join([*arrays, repr(dict(rows.bad)).encode()])).hexdigest()


def files_differ(
    here: Mapping[str, bytes],
    truth: Mapping[str, bytes],
    before: Mapping[str, bytes],
    complete: bool,
) -> list[Wrong]:
    """Files that are neither as an undisturbed command leaves them nor as they were before. Where
    the command has ended all are the former."""
    wrong = []
    for name, data in here.items():
        if writer(Path(name).name) is not None:
            continue  # litter; whether it stays is looked at after the rerun
        allowed = {truth.get(name)} if complete else {truth.get(name), before.get(name)}
        if data not in allowed:
            wrong.append(Wrong("wrong", f"{name}: neither the old file nor the new one"))
    must = truth if complete else before.keys() & truth.keys()
    wrong += [Wrong("lost", f"{name}: not there") for name in must if name not in here]
    return wrong
