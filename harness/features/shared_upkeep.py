"""Looking after a feature store on a URL. Only objects with names of the store's own are touched.

Nothing is locked there. A key is removed object by object, its manifest first; a run that reads on
makes again what has gone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from harness.features.cutoffs import FOLDER as CUTOFFS
from harness.features.shared import make_room, shard_of
from harness.features.store import MANIFEST, Manifest, manifest_of
from harness.features.upkeep import Damage, Kept
from harness.storage.remote import Gone, Object, Remote, in_parallel
from harness.storage.urls import local_folder

_KEY = re.compile(r"[0-9a-f]{64}")
_CUTOFF = re.compile(rf"{CUTOFFS}/[0-9a-f]{{64}}\.json")
_Objects = dict[str, Object]


def kept_there(remote: Remote) -> list[Kept]:
    """Every key, the last used first. Raises ``HarnessError``."""
    return _by_use(remote, _keys(remote.listing()))


def verify_there(remote: Remote, repair: bool = False) -> list[Damage]:
    """Read and hash all again; with ``repair``, remove what is damaged. Raises
    ``HarnessError``."""
    found: list[Damage] = []
    for key, objects in _keys(remote.listing()).items():
        for name in sorted(objects):
            damage = _wrong(remote, key, name)
            if damage is None:
                continue
            found.append(damage)
            if repair:
                remote.remove(f"{key}/{name}")
    return found


def prune_there(remote: Remote, most: int) -> list[Kept]:
    """Remove the keys that were not used for longest until at most ``most`` bytes are left; give
    those that were removed. A use is noted once a day. Raises ``HarnessError``."""
    return _prune(remote, _keys(remote.listing()), most)


def clear_there(remote: Remote) -> list[Kept]:
    """Remove every key and every cut-off, and this machine's copies; give the keys. Raises
    ``HarnessError``."""
    listing = remote.listing()
    removed = _prune(remote, _keys(listing), -1)
    _remove(remote, [name for name in listing if _CUTOFF.fullmatch(name)])
    make_room(local_folder("features", remote.url), -1)
    return removed


def _prune(remote: Remote, keys: dict[str, _Objects], most: int) -> list[Kept]:
    every = _by_use(remote, keys)
    total = sum(one.bytes for one in every)
    removed = []
    while every and total > most:
        one = every.pop()
        key = one.folder.name
        names = sorted(keys[key], key=lambda name: (name != MANIFEST, name))
        _remove(remote, [f"{key}/{name}" for name in names])
        total -= one.bytes
        removed.append(one)
    return removed


def _by_use(remote: Remote, keys: dict[str, _Objects]) -> list[Kept]:
    """What is known of every key, the last used first."""
    return sorted(
        in_parallel(lambda each: _kept(remote, *each), keys.items()), key=lambda one: -one.used
    )


def _keys(listing: _Objects) -> dict[str, _Objects]:
    """The objects of every key, by their names in its folder."""
    keys: dict[str, _Objects] = {}
    for name, found in listing.items():
        key, _, last = name.partition("/")
        if _KEY.fullmatch(key) and (last == MANIFEST or shard_of(last) is not None):
            keys.setdefault(key, {})[last] = found
    return keys


def _kept(remote: Remote, key: str, objects: _Objects) -> Kept:
    manifest = None
    if MANIFEST in objects:
        try:
            told = manifest_of(remote.read(f"{key}/{MANIFEST}"), key)
        except Gone:  # since it was listed
            told = None
        if told is not None:
            there = [found for found in map(shard_of, objects) if found is not None]
            manifest = Manifest(told.facts, told.about, told.pictures, dict(there))
    size = sum(found.size for found in objects.values())
    used = max(found.modified for found in objects.values())
    return Kept(Path(key), manifest, size, used)


def _wrong(remote: Remote, key: str, name: str) -> Damage | None:
    place, shard = f"{key}/{name}", shard_of(name)
    try:
        data = remote.read(place)
    except Gone:
        return None
    if shard is None:
        whole, what = manifest_of(data, key) is not None, "damaged, or of another key"
    else:
        whole = hashlib.sha256(data).hexdigest() == shard[1]
        what = "damaged: its sha256 is not that of its name"
    return None if whole else Damage(f"{remote.url}/{place}", what)


def _remove(remote: Remote, names: Sequence[str]) -> None:
    for name in names[:1]:
        remote.remove(name)
    for _ in in_parallel(remote.remove, names[1:]):
        pass
