"""Looking after the feature store: what is in it, whether it is whole, and making room.

Only what has the form of the store's own is touched: folders named by a key, and cut-offs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.atomic import explained, locked, replace
from harness.errors import HarnessError
from harness.features.cutoffs import FOLDER as CUTOFFS
from harness.features.keys import Key
from harness.features.store import (
    MANIFEST,
    Manifest,
    manifest_bytes,
    read_manifest,
    read_shard,
    sha256_of,
    shard_name,
)

_KEY = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Kept:
    """One key of the store. ``manifest`` is None where it is damaged; ``used`` is seconds since
    1970 at its last use."""

    folder: Path
    manifest: Manifest | None
    bytes: int
    used: float

    def facts(self) -> dict[str, Any]:
        """As JSON, for a table."""
        manifest = self.manifest
        about = {} if manifest is None else manifest.about
        shard = 0 if manifest is None else int(manifest.facts["shard"])
        there = 0 if manifest is None else len(manifest.shards) * shard
        total = 0 if manifest is None else manifest.pictures
        used = datetime.fromtimestamp(self.used, UTC).isoformat(timespec="seconds")
        return {
            "key": self.folder.name,
            "model": about.get("model"),
            "dataset": about.get("dataset"),
            "split": about.get("split"),
            "token": about.get("token"),
            "pictures": min(there, total),
            "of": total,
            "complete": manifest is not None and manifest.complete,
            "bytes": self.bytes,
            "last_used": used.replace("+00:00", "Z"),
        }


@dataclass(frozen=True)
class Damage:
    """A file that is not what it should be."""

    path: Path | str
    what: str


def kept(folder: Path) -> list[Kept]:
    """Every key in the store, the last used first. Raises ``HarnessError``."""
    return sorted((_kept(each) for each in _keys(folder)), key=lambda one: -one.used)


def verify(folder: Path, repair: bool = False) -> list[Damage]:
    """Hash every shard again; with ``repair``, remove what is damaged, or listed by no manifest: it
    is made again when it is wanted. Raises ``HarnessError`` where the folder cannot be read or
    written."""
    found: list[Damage] = []
    for each in _keys(folder):
        with explained(each):
            manifest = read_manifest(each)
        if manifest is None:
            if (each / MANIFEST).exists():
                found.append(Damage(each / MANIFEST, "damaged, or of another key"))
            # Else a run was killed before it had listed its first shard, and nothing here counts.
            if repair:
                _remove(each)
            continue
        damaged = {
            shard: why for shard in manifest.shards if (why := _wrong(each, manifest, shard))
        }
        found += [Damage(each / shard_name(shard), why) for shard, why in damaged.items()]
        if repair and damaged:
            _repair(each, set(damaged))
    return found


def prune(folder: Path, most: int) -> list[Kept]:
    """Remove the keys that were not used for longest until at most ``most`` bytes are left; give
    those that were removed. Raises ``HarnessError``."""
    every = kept(folder)
    total = sum(one.bytes for one in every)
    removed = []
    while every and total > most:
        one = every.pop()
        _remove(one.folder)
        total -= one.bytes
        removed.append(one)
    return removed


def clear(folder: Path) -> list[Kept]:
    """Remove every key and every cut-off; give the keys. Raises ``HarnessError``."""
    removed = prune(folder, -1)
    with explained(folder):
        for path in (folder / CUTOFFS).glob("*"):
            if _KEY.fullmatch(path.stem) or path.name.startswith("."):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or with somebody else's files in it
            (folder / CUTOFFS).rmdir()
    return removed


def parse_size(text: str, option: str = "--max-size") -> int:
    """``50GB``, ``1.5 GiB``, ``0`` -> bytes; GB are 10^9, GiB 2^30. Raises ``HarnessError``."""
    found = _SIZE.fullmatch(text)
    if found is None or (found[3] and not found[2]):
        raise HarnessError(f"{option} {text}: a size such as 50GB or 800MiB was expected")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2].lower()])


def _keys(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    with explained(folder):
        named = sorted(p for p in folder.iterdir() if _KEY.fullmatch(p.name) and p.is_dir())
        return [path for path in named if any(_own_files(path))]


def _kept(folder: Path) -> Kept:
    with explained(folder):
        sizes, used = 0, 0.0
        for path in _own_files(folder):
            with contextlib.suppress(FileNotFoundError):  # a run at work renames files
                status = path.stat()
                sizes += status.st_size
                used = max(used, status.st_mtime)
        return Kept(folder, read_manifest(folder), sizes, used)


def _own_files(folder: Path) -> Iterator[Path]:
    """Shards and manifest, with what killed processes left of them."""
    for path in folder.iterdir():
        if path.name.endswith((".safetensors", ".tmp")) or path.name == MANIFEST:
            yield path


def _wrong(folder: Path, manifest: Manifest, shard: int) -> str | None:
    path = folder / shard_name(shard)
    if not path.is_file():
        return "missing"
    if sha256_of(path) != manifest.shards[shard]:
        return "damaged: its sha256 is not the manifest's"
    if read_shard(path, folder.name, shard) is None:
        return "of another key or place"
    return None


def _repair(folder: Path, damaged: set[int]) -> None:
    """Take shards out of the manifest and off the disk, unless they were mended meanwhile."""
    with explained(folder), locked(folder):
        manifest = read_manifest(folder)
        if manifest is None:
            return
        still = {
            shard for shard in damaged & manifest.shards.keys() if _wrong(folder, manifest, shard)
        }
        left = {shard: sha for shard, sha in manifest.shards.items() if shard not in still}
        key = Key(manifest.facts, manifest.about)
        replace({folder / MANIFEST: manifest_bytes(key, manifest.pictures, left)})
        for shard in still:
            (folder / shard_name(shard)).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """The manifest first: without it no shard is there. A run that reads on has its files open or
    makes them again."""
    with explained(folder):
        with locked(folder):
            (folder / MANIFEST).unlink(missing_ok=True)
            for path in list(_own_files(folder)):
                path.unlink(missing_ok=True)
        (folder / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a run has begun to fill it again
            folder.rmdir()
