"""The feature store on a URL: many machines fill it and read it, and none has a lock.

``URL/<key>/<shard>-<sha256>.safetensors`` is a shard. Its name says what its bytes are and it is
written by one request, so nothing is ever changed that another machine may be writing, and the
listing says what is there. Two machines that make the same shard at once leave two objects if their
last bits differ; either is whole. ``URL/<key>/manifest.json`` says what the vectors are of; all
machines write the same there, and its date is that of the last use.

A shard is read from a copy on this machine, mapped into memory, which is checked by the sha256.
The copies take at most $HARNESS_CACHE_LOCAL_SIZE (20GB); what was not used for longest goes first.
A copy counts only while the URL lists its shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.atomic import temporary
from harness.features.keys import Key
from harness.features.store import (
    MANIFEST,
    Feature,
    Rows,
    Store,
    default_url,
    manifest_bytes,
    sha256_of,
)
from harness.features.upkeep import Kept, kept, parse_size
from harness.storage.remote import Gone, Object, StorageTrouble, at
from harness.storage.urls import local_folder

COPIES = "20GB"
_SHARD = re.compile(r"([0-9]{5,})-([0-9a-f]{64})\.safetensors")
_USED_ANEW = 86_400.0
"""Seconds after which a use is noted again."""


def user_store() -> Store:
    """The store in $HARNESS_CACHE, a folder or a URL. Raises ``HarnessError`` for a URL that is
    none, or has no driver; whether anything answers there is not asked."""
    url = default_url()
    return Store() if url is None else SharedStore(url)


def kept_in(store: Store) -> list[Kept]:
    """Every key in a store, the last used first. Raises ``HarnessError``."""
    if isinstance(store, SharedStore):
        from harness.features.shared_upkeep import kept_there

        return kept_there(store.remote)
    return kept(store.folder)


def shard_of(name: str) -> tuple[int, str] | None:
    """Number and sha256 in the name of a shard's object; None for any other name."""
    found = _SHARD.fullmatch(name)
    return None if found is None else (int(found[1]), found[2])


class SharedStore(Store):
    """The store on ``url``; ``folder`` has this machine's copies."""

    def __init__(self, url: str, shard: int | None = None) -> None:
        super().__init__(local_folder("features", url), shard)
        self.place, self.remote = url, at(url)
        if self.remote.down():  # a worker of `--engine ray` has a store for each piece
            self.usable = False
            self.notices.append(
                f"feature store {url}: did not answer a moment ago; the run goes on without "
                "storing (HARNESS_CACHE names another folder)"
            )
        size = os.environ.get("HARNESS_CACHE_LOCAL_SIZE") or COPIES
        self._most = parse_size(size, "HARNESS_CACHE_LOCAL_SIZE")
        self._held: int | None = None

    def feature(self, key: Key, pictures: int, use: bool = True) -> Feature:
        return SharedFeature(self, key, pictures, use)

    def read_note(self, name: str) -> bytes | None:
        if self.usable:
            with self.forgiving(), contextlib.suppress(Gone):
                return self.remote.read(name)
        return None

    def keep_note(self, name: str, data: bytes) -> None:
        if self.usable:
            with self.forgiving():
                self.remote.write(name, data)

    def keep_copy(self, path: Path, data: bytes) -> None:
        """Keep a copy here, and remove others where there are too many. Raises ``OSError``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unnamed = temporary(path)
        try:
            unnamed.write_bytes(data)  # not flushed: a copy that a power cut spoils is not used
            unnamed.replace(path)
        finally:
            unnamed.unlink(missing_ok=True)
        if self._held is not None:
            self._held += len(data)
        if self._held is None or self._held > self._most:
            self._held = make_room(self.folder, self._most, path)


class SharedFeature(Feature):
    """The vectors of one key on a URL. Of two objects of one shard the first by name is used, or
    the other where that is damaged."""

    def __init__(self, store: SharedStore, key: Key, pictures: int, use: bool) -> None:
        self._shared = store
        self._found: dict[int, list[str]] = {}
        self._told: Object | None = None
        self._last: tuple[int, Rows] | None = None
        super().__init__(store, key, pictures, use)

    def _look(self, use: bool) -> None:
        if not self._shared.usable:
            return
        self._list()
        if use and self._shards and (self._told is None or _old(self._told)):
            with contextlib.suppress(StorageTrouble):  # who may only read need not say so
                self._tell()

    def _list(self) -> None:
        digest = self._key.digest
        listing = self._shared.remote.listing(digest)
        names = {name.removeprefix(f"{digest}/"): found for name, found in listing.items()}
        self._told, self._found = names.get(MANIFEST), {}
        for name in sorted(names):
            if (shard := shard_of(name)) is not None:
                self._found.setdefault(shard[0], []).append(shard[1])
        self._shards = {number: digests[0] for number, digests in self._found.items()}

    def _tell(self) -> None:
        """Say what the vectors are of, and that they are used."""
        name = f"{self._key.digest}/{MANIFEST}"
        data = manifest_bytes(self._key, self._pictures, {})
        self._shared.remote.write(name, data)
        self._told = Object(len(data), "", time.time())

    def read(self, shard: int) -> Rows | None:
        """As of a folder; the last one is held, for its copy may go to make room for another."""
        if self._last is None or self._last[0] != shard:
            rows = super().read(shard)
            if rows is None and shard in self._checked:  # so it was
                self._checked.remove(shard)
                rows = super().read(shard)
            if rows is None:
                return None
            self._last = shard, rows
        return self._last[1]

    def take(self, shard: int, rows: NDArray[np.int64]) -> Tensor | None:
        """As of a folder, though the copy may have gone to make room for another."""
        found = super().take(shard, rows)
        if found is None and shard in self._checked:
            self._checked.remove(shard)
            found = super().take(shard, rows)
        return found

    def _path(self, shard: int) -> Path:
        return self.folder / _name(shard, self._shards[shard])

    def _mapped(self, shard: int) -> Rows | None:
        return super()._mapped(shard) if shard in self._shards else None

    def _sound(self, shard: int, expected: str | None) -> bool:
        for digest in self._found.get(shard, []):
            self._shards[shard] = digest
            path = self._path(shard)
            if sha256_of(path) == digest:
                with contextlib.suppress(OSError):
                    os.utime(path)
            elif not self._fetched(path, shard, digest):
                continue
            if self._mapped(shard) is not None:
                return True
        return False

    def _fetched(self, path: Path, shard: int, digest: str) -> bool:
        """Whether there is a copy now."""
        if not self._shared.usable:
            return False
        with self._shared.forgiving():
            for _ in range(2):  # what came may be damaged, and not what lies there
                try:
                    data = self._shared.remote.read(f"{self._key.digest}/{path.name}")
                except Gone:
                    return False
                if hashlib.sha256(data).hexdigest() == digest:
                    self._shared.keep_copy(path, data)
                    return True
        return False

    def _write(self, shard: int, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if shard not in self._found:
            self._list()  # another machine may have come first
            if self._found.get(shard):
                return
        if self._told is None:
            self._tell()
        self._shared.remote.write(f"{self._key.digest}/{_name(shard, digest)}", data)
        with contextlib.suppress(StorageTrouble):  # they were damaged, or this had not been made
            for old in self._found.get(shard, []):
                if old != digest:
                    self._shared.remote.remove(f"{self._key.digest}/{_name(shard, old)}")
        self._found[shard], self._shards[shard] = [digest], digest
        self._shared.keep_copy(self._path(shard), data)


def make_room(folder: Path, most: int, kept_one: Path | None = None) -> int:
    """Remove the copies that were not used for longest until at most ``most`` bytes are left; give
    the bytes that are. ``kept_one`` stays. Whoever has one mapped keeps it as long as it reads."""
    copies = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            if path.name.endswith((".safetensors", ".tmp")):
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
    held = sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if held <= most:
            break
        if path != kept_one:
            with contextlib.suppress(OSError):
                path.unlink()
                held -= size
    return held


def _name(shard: int, digest: str) -> str:
    return f"{shard:05d}-{digest}.safetensors"


def _old(found: Object) -> bool:
    return time.time() - found.modified > _USED_ANEW
