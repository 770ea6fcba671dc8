"""Sizes of pictures in large files, remembered beside the feature store.

The size of a picture is in its header, and to read the headers of a million pictures inside
archives takes minutes (parquet: all of its bytes), at every start. They are kept in the user's
cache under the names, lengths and times of the archives and the ids in them. What cannot be read
or written there is only computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.atomic import temporary, write_through

_FORMAT = 1
FEW = 2000
"""So many headers are read faster than anyone notices; their sizes are not kept."""

Size = tuple[int, int]


def folder() -> Path:
    """``vit-harness/sizes`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vit-harness" / "sizes"


def remembered(
    archives: Sequence[Path], ids: Sequence[str], compute: Callable[[], Iterable[Size]]
) -> list[Size]:
    """``(width, height)`` of each picture of ``archives``, from memory or computed."""
    if len(ids) < FEW:
        return list(compute())
    path = folder() / f"{_key(archives, ids)}.npy"
    with contextlib.suppress(OSError, ValueError):
        kept = np.load(path, allow_pickle=False)
        if kept.shape == (len(ids), 2) and kept.dtype == np.uint32:
            return [(int(width), int(height)) for width, height in kept]
    sizes = list(compute())
    if (0, 0) in sizes:
        return sizes  # a picture that is mended in place would stay unreadable in memory
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, np.array(sizes, np.uint32).reshape(-1, 2))
        write_through(temporary(path), buffer.getvalue())
        temporary(path).replace(path)
    return sizes


def _key(archives: Sequence[Path], ids: Sequence[str]) -> str:
    states = [archive.stat() for archive in archives]
    of = [
        [str(archive.absolute()), state.st_size, state.st_mtime_ns]
        for archive, state in zip(archives, states, strict=True)
    ]
    digest = hashlib.sha256(json.dumps([_FORMAT, of]).encode())
    for identity in ids:
        digest.update(identity.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
