"""URLs in place of folders: which texts are one, what may stand in it, and the folder on this
machine for what is kept of it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from harness.errors import HarnessError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FLATTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_url(text: str) -> bool:
    """Whether this is a URL and not a folder's path."""
    return _URL.match(text) is not None


def was_url(path: Path) -> bool:
    """Whether ``path`` was made of a URL: pathlib makes one slash of two."""
    return _FLATTENED.match(str(path)) is not None and not path.exists()


def checked(url: str) -> str:
    """``url`` without a slash at its end. Raises ``HarnessError`` where a secret may stand in it,
    which would be printed and recorded, or where it names nothing."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if "@" in host or "?" in rest or "#" in rest:
        raise HarnessError(
            f"{scheme}://…: no key, secret or query in a URL: it would be printed and recorded; "
            "credentials come from the environment or the storage's own files (docs/storage.md)"
        )
    rest = rest.rstrip("/")
    parts = rest.split("/")
    if not rest or {".", ".."} & set(parts) or "" in parts[1:] or (not host and not path):
        raise HarnessError(f"{url}: not a place to keep files; s3://bucket/folder is one")
    return f"{scheme.lower()}://{rest}"


def user_cache() -> Path:
    """``vit-harness`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vit-harness"


def local_folder(kind: str, url: str) -> Path:
    """Where this machine keeps what it has of ``url``: below $HARNESS_CACHE_LOCAL, or ``remote``
    in the user's cache. The name is for people, its digits keep two URLs apart."""
    own = os.environ.get("HARNESS_CACHE_LOCAL")
    base = Path(own).expanduser().absolute() if own else user_cache() / "remote"
    shown = re.sub(r"[^A-Za-z0-9.]+", "-", url)[-60:].strip("-.")
    return base / f"{kind}-{shown}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
