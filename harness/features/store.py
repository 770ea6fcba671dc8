"""The feature store: vectors that were computed once, kept in files that are never wrong.

``FOLDER/<key>/manifest.json`` names shards of ``SHARD`` pictures, or of as many as ``SHARD_BYTES``
hold, with their sha256; a shard is a
safetensors file that holds the rows of its pictures in the data set's order. Both get their names
in one rename each, under the key's lock: a shard is there or it is not. One that is damaged, cut
short or in the wrong place is not there, and is made again.

Nothing here may fail a run: where the folder cannot be read or written that is said once
(``Store.notices``), and the run goes on without. ``shared.py`` has the store on a URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.atomic import locked, replace, sweep
from harness.backbone.architecture import Architecture
from harness.data.views import Geometry, View
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.features.keys import Key
from harness.features.select import Selector, row_bytes
from harness.storage.urls import checked, is_url, local_folder, user_cache

SHARD = 1024
"""Pictures in a shard: what a killed run loses of its work, at most."""
SHARD_BYTES = 2**27
"""A shard that would be larger has fewer pictures: it is in memory once when it is written."""
MANIFEST = "manifest.json"
_FORMAT = 1
_STORED_AS = {"F32": np.float32, "F16": np.float16}
_READ_THROUGH = 2**16  # bytes
_TROUBLE = (OSError, HarnessError, NotImplementedError)  # the last: a disk without locks


def default_url() -> str | None:
    """$HARNESS_CACHE where that is a URL. Raises ``HarnessError`` for a bad one."""
    own = os.environ.get("HARNESS_CACHE", "")
    return checked(own) if is_url(own) else None


def default_folder() -> Path:
    """$HARNESS_CACHE, or ``vit-harness/features`` in the user's cache folder; of a URL the folder
    for what this machine keeps of it."""
    url = default_url()
    if url is not None:
        return local_folder("features", url)
    own = os.environ.get("HARNESS_CACHE")
    return Path(own).expanduser().absolute() if own else user_cache() / "features"


class Rows(NamedTuple):
    """One shard: ``values [n, D]`` float32 or float16, ``there [n]`` bool, ``geometry [n, 13]``
    int32, and by row why a picture could not be used (its row is 0). All on the CPU."""

    values: Tensor
    there: Tensor
    geometry: Tensor
    bad: Mapping[int, str]


class Store:
    """The folder of a store. ``shard`` is the number of pictures in a shard, at most."""

    def __init__(self, folder: Path | None = None, shard: int | None = None) -> None:
        self.folder = default_folder() if folder is None else folder
        self.place = str(self.folder)
        self.shard = SHARD if shard is None else shard
        self.notices: list[str] = []
        self.usable = True

    def feature(self, key: Key, pictures: int, use: bool = True) -> Feature:
        """The vectors of ``key`` for that many pictures, as far as they are there; ``use`` counts
        as a use, which keeps a key from being pruned."""
        return Feature(self, key, pictures, use)

    def read_note(self, name: str) -> bytes | None:
        """A small file of the store, by its name from the folder on; None where it is not there."""
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def keep_note(self, name: str, data: bytes) -> None:
        """Write a small file of the store, if it can be."""
        if not self.usable:
            return
        with self.forgiving():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent):
                replace({path: data})

    @contextlib.contextmanager
    def forgiving(self) -> Iterator[None]:
        """Trouble inside is told once, and nothing more is written."""
        try:
            yield
        except _TROUBLE as error:
            if self.usable:
                reason = error.strerror if isinstance(error, OSError) else None
                self.notices.append(
                    f"feature store {self.place}: {reason or error}; the run goes on without "
                    "storing (HARNESS_CACHE names another folder)"
                )
            self.usable = False


def shard_size(
    store: Store | None, selectors: Collection[Selector], architecture: Architecture, view: View
) -> int:
    """Pictures in a shard of a pass that selects these: as many as the store has, or a run without
    one, but no more than ``SHARD_BYTES`` hold of the widest."""
    widest = max(row_bytes(selector, architecture, view) for selector in selectors)
    return max(1, min(SHARD if store is None else store.shard, SHARD_BYTES // widest))


class Feature:
    """The vectors of one key: which shards are there, and their rows."""

    def __init__(self, store: Store, key: Key, pictures: int, use: bool) -> None:
        self._store, self._key, self._pictures = store, key, pictures
        self.size = int(key.facts["shard"])  # pictures in a shard
        self.folder = store.folder / key.digest
        self._shards: dict[int, str] = {}
        self._checked: set[int] = set()
        with store.forgiving():
            self._look(use)

    def _look(self, use: bool) -> None:
        manifest = read_manifest(self.folder)
        if manifest is not None:
            self._shards = manifest.shards
            if use:
                with contextlib.suppress(OSError):  # a shared, read-only store is a store
                    os.utime(self.folder / MANIFEST)

    @property
    def listed(self) -> set[int]:
        """The shards that the manifest names; whether they are whole is not looked at."""
        return set(self._shards)

    def rows(self, shard: int) -> int:
        """How many pictures a shard holds."""
        return min(self.size, self._pictures - shard * self.size)

    def whole(self, shard: int) -> bool:
        """Whether the shard is there and its bytes are those that were written."""
        if shard in self._checked:
            return True
        if not self._sound(shard, self._shards.get(shard)):
            return False
        self._checked.add(shard)
        return True

    def read(self, shard: int) -> Rows | None:
        """Its rows, mapped into memory; None where it is not whole."""
        return self._mapped(shard) if self.whole(shard) else None

    @property
    def writable(self) -> bool:
        """Whether nothing has kept the store from being written so far."""
        return self._store.usable

    def take(self, shard: int, rows: NDArray[np.int64]) -> Tensor | None:
        """Copies of the vectors at ``rows [b]``, rising, of a shard: ``[b, D]`` as it was stored,
        on the CPU; None where it is not whole. Read and not mapped: pages of a mapped file count
        as this process's memory."""
        return read_values(self._path(shard), rows) if self.whole(shard) else None

    def _path(self, shard: int) -> Path:
        return self.folder / shard_name(shard)

    def _sound(self, shard: int, expected: str | None) -> bool:
        same = expected is not None and sha256_of(self._path(shard)) == expected
        return same and self._mapped(shard) is not None

    def _mapped(self, shard: int) -> Rows | None:
        rows = read_shard(self._path(shard), self._key.digest, shard)
        return rows if rows is not None and len(rows.there) == self.rows(shard) else None

    def write(self, shard: int, rows: Rows) -> None:
        """Keep a shard, unless another process has written it in the meantime."""
        if not self._store.usable:
            return
        with self._store.forgiving():
            data = _packed(self._key.digest, shard, rows)
            try:
                self._write(shard, data)
            except FileNotFoundError:  # the folder was pruned while we waited for its lock
                self._write(shard, data)

    def _write(self, shard: int, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            sweep(self.folder)
            manifest = read_manifest(self.folder)
            shards = dict(manifest.shards) if manifest is not None else {}
            path, digest = self._path(shard), hashlib.sha256(data).hexdigest()
            if not self._sound(shard, shards.get(shard)):
                shards[shard] = digest
                whole = manifest_bytes(self._key, self._pictures, shards)
                replace({path: data, self.folder / MANIFEST: whole})
        self._shards = shards


@dataclass(frozen=True)
class Manifest:
    """``shards`` maps a shard's number to the sha256 of its file."""

    facts: Mapping[str, Any]
    about: Mapping[str, Any]
    pictures: int
    shards: dict[int, str]

    @property
    def complete(self) -> bool:
        return len(self.shards) * int(self.facts["shard"]) >= self.pictures


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none, or it is damaged, or of another key than its folder's.

    Raises ``OSError`` for a file that is there and cannot be read.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return manifest_of(data, folder.name)


def manifest_of(data: bytes, digest: str) -> Manifest | None:
    """None where it is damaged, or of another key."""
    try:
        found = json.loads(data)
        body = found["body"]
        sealed = hashlib.sha256(canonical_json(body)).hexdigest() == found["sha256"]
        own = hashlib.sha256(canonical_json(body["facts"])).hexdigest() == digest
        if not sealed or not own or body["format"] != _FORMAT:
            return None
        shards = {int(number): str(digest) for number, digest in body["shards"].items()}
        return Manifest(body["facts"], body["about"], int(body["pictures"]), shards)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def manifest_bytes(key: Key, pictures: int, shards: Mapping[int, str]) -> bytes:
    body = {
        "format": _FORMAT,
        "facts": key.facts,
        "about": key.about,
        "pictures": pictures,
        "shards": {str(number): shards[number] for number in sorted(shards)},
    }
    seal = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps({"sha256": seal, "body": body}, indent=1, allow_nan=False).encode()


def shard_name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


def sha256_of(path: Path) -> str | None:
    """None where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def read_shard(path: Path, digest: str, shard: int) -> Rows | None:
    """The rows of a shard, mapped into memory; None where the file is not that shard of the key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if (facts.get("key"), facts.get("shard")) != (digest, str(shard)):
                return None
            bad = {int(row): str(why) for row, why in json.loads(facts["bad"]).items()}
            parts = [file.get_tensor(name) for name in ("values", "there", "geometry")]
            return Rows(parts[0], parts[1], parts[2], bad)
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError):
        return None


def read_values(path: Path, rows: NDArray[np.int64]) -> Tensor | None:
    """The vectors at ``rows``, rising, of a shard's file; None where it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            facts = json.loads(file.read(length))["values"]
            (_, width), (start, _) = facts["shape"], facts["data_offsets"]
            found = np.empty((len(rows), width), _STORED_AS[facts["dtype"]])
            row = width * found.itemsize
            # What lies between is read too, where that is less than another read costs.
            apart = np.flatnonzero(np.diff(rows) * row > _READ_THROUGH) + 1
            for part in np.split(np.arange(len(rows)), apart):
                some = rows[part]
                span = np.empty((int(some[-1] - some[0]) + 1, width), found.dtype)
                file.seek(8 + length + start + int(some[0]) * row)
                if file.readinto(span.data) != span.nbytes:
                    return None
                found[part] = span[some - some[0]]
            return torch.from_numpy(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _packed(digest: str, shard: int, rows: Rows) -> bytes:
    from safetensors.torch import save

    tensors = {"values": rows.values, "there": rows.there, "geometry": rows.geometry}
    bad = json.dumps({str(row): why for row, why in sorted(rows.bad.items())})
    return save(tensors, {"key": digest, "shard": str(shard), "bad": bad})


class Filling:
    """Collects the rows of one shard, in whatever order they come."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._there = torch.zeros(pictures, dtype=torch.bool)
        self._geometry = torch.zeros(pictures, 13, dtype=torch.int32)
        self._values: Tensor | None = None

    def add(
        self, rows: Sequence[int], values: Tensor, there: Tensor, geometry: Sequence[Geometry]
    ) -> None:
        """``values [B, D]``, ``there [B]`` of the pictures in ``rows [B]`` of the shard."""
        if self._values is None:
            self._values = torch.zeros(self._pictures, values.shape[1], dtype=values.dtype)
        self._values[rows] = values.cpu()
        self._there[rows] = there.cpu()
        flat = [
            (*each.stored, *each.resized, *each.crop, *each.pad, each.mirrored) for each in geometry
        ]
        self._geometry[rows] = torch.tensor(flat, dtype=torch.int32)

    def rows(self, bad: Mapping[int, str]) -> Rows:
        """``bad`` says which rows never came. With none that came, D is 0."""
        values = torch.zeros(self._pictures, 0) if self._values is None else self._values
        return Rows(values, self._there, self._geometry, bad)


def geometry_of(row: Sequence[int]) -> Geometry:
    """A row of 13 whole numbers as it was; older ones, of 12, are of pictures not mirrored."""
    a, b, c, d, x, y, width, height, left, top, right, bottom, *mirrored = row
    place, pad = (x, y, width, height), (left, top, right, bottom)
    return Geometry((a, b), (c, d), place, pad, any(mirrored))
