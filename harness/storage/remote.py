"""A folder on a URL, through fsspec: list, read, write whole objects, and nothing else.

One object is written by one request, so that it is there whole or not at all. What may pass (a
connection that breaks, a server that is busy, half an answer) is tried again with longer and longer
pauses. Credentials, endpoint and the rest are fsspec's own; nothing of them is printed.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from harness.errors import HarnessError
from harness.storage.urls import checked

PAUSES = (0.2, 0.8, 2.0)
"""Seconds before each further try, give or take a half."""
AT_ONCE = 16
"""Requests that are under way together."""
DOWN_SECONDS = 60.0
"""How long it is remembered that a storage did not answer, for those who can do without."""

_DRIVERS = {
    "s3": "pip install 'vit-harness[storage]'",
    "s3a": "pip install 'vit-harness[storage]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "abfs": "pip install adlfs",
    "az": "pip install adlfs",
}
_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_SECRET = re.compile(r"(?<=//)[^/@\s]*(?=@)|(?<=\?)[^\s\"']+")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError)
_LASTING_NAMES = {*_CREDENTIALS, "ProfileNotFound", "NoRegionError", "NoAuthTokenError"}

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class StorageTrouble(HarnessError):
    """The storage does not answer, or not as it should, however often it is asked."""


class Gone(StorageTrouble):
    """There is no such object, or no such bucket."""


class Object(NamedTuple):
    """One object: bytes, a sign that changes with its content, and when it was written (seconds
    since 1970; 0: not told)."""

    size: int
    sign: str
    modified: float = 0.0


def md5_of(data: bytes) -> str:
    """The sign that S3 gives to an object that was written by one plain PUT."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@functools.cache
def at(url: str) -> Remote:
    """The folder on ``url``, one a process. Nothing is asked of it yet. Raises ``HarnessError``
    where the URL is none or its driver is not installed."""
    return Remote(url)


def forget() -> None:
    """Open every URL anew: environment and credentials may have changed."""
    at.cache_clear()


class Remote:
    """Objects below ``url`` by their names from there on, with ``/``. Every method raises
    ``StorageTrouble``."""

    def __init__(self, url: str) -> None:
        self.url = checked(url)
        self._fs, self._root = _opened(self.url)
        self._failed: float | None = None

    def down(self) -> bool:
        """Whether it did not answer just now, however often it was asked, and has not since."""
        return self._failed is not None and time.monotonic() - self._failed < DOWN_SECONDS

    def listing(self, below: str = "") -> dict[str, Object]:
        """Every object below the folder ``below``, by name. An empty folder and one that is not
        there are the same; a bucket that is not there raises ``Gone`` where the storage says so."""
        where = self._path(below) if below else self._root
        found = self._tried(below, lambda: self._found(where))
        start = len(self._root) + 1
        return {
            name[start:]: _object(info)
            for name, info in found.items()
            if info.get("type") != "directory" and not name.endswith("/")
        }

    def look(self, name: str) -> Object | None:
        """What is there under ``name`` now; None where nothing is."""
        try:
            return _object(self._tried(name, lambda: self._fs.info(self._path(name))))
        except Gone:
            return None

    def read(self, name: str, size: int | None = None) -> bytes:
        """The whole object, of ``size`` bytes where that is known. Raises ``Gone``."""

        def whole() -> bytes:
            data = bytes(self._fs.cat_file(self._path(name)))
            if size is not None and len(data) != size:
                raise ConnectionError(f"{len(data)} bytes came of {size}")
            return data

        return self._tried(name, whole)

    def write(self, name: str, data: bytes) -> None:
        self._tried(name, lambda: self._fs.pipe_file(self._path(name), data))

    def holds(self, name: str, data: bytes) -> Object | None:
        """The object under ``name`` if its content is ``data``, else None."""
        there = self.look(name)
        if there is None or there.size != len(data):
            return None
        if there.sign != md5_of(data):  # which is no sign of its content everywhere
            try:
                if self.read(name) != data:
                    return None
            except Gone:
                return None
        return there

    def remove(self, name: str) -> None:
        """Remove an object, unless it has gone already."""
        try:
            self._tried(name, lambda: self._fs.rm_file(self._path(name)))
        except Gone:
            return

    def _found(self, where: str) -> dict[str, Any]:
        self._fs.invalidate_cache()
        try:
            return dict(self._fs.find(where, detail=True))
        except FileNotFoundError:
            if where == self._root:
                raise
            return {}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _tried(self, name: str, call: Callable[[], Answer]) -> Answer:
        """What ``call`` gives, tried again where that may help."""
        for pause in (*PAUSES, None):
            try:
                answer = call()
            except Exception as error:  # drivers raise what their libraries do
                if pause is None or _lasts(error):
                    self._failed = None if _lasts(error) else time.monotonic()
                    raise self._told(name, error) from None
            else:
                self._failed = None
                return answer
            time.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _told(self, name: str, error: Exception) -> StorageTrouble:
        place = f"{self.url}/{name}" if name else self.url
        if isinstance(error, FileNotFoundError):
            return Gone(f"{place}: no such bucket or object")
        if type(error).__name__ in _CREDENTIALS:
            return StorageTrouble(
                f"{place}: no credentials: set them as the storage's own tools read them "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
            )
        if isinstance(error, PermissionError):
            return StorageTrouble(
                f"{place}: access is denied: use credentials that may list, read and write there"
            )
        return StorageTrouble(f"{place}: the storage does not answer as it should: {_said(error)}")


def in_parallel(
    call: Callable[[Item], Answer], items: Iterable[Item], at_once: int = AT_ONCE
) -> Iterator[Answer]:
    """``call`` of each item in order, several at a time. The first error ends it; those that have
    not begun then do not begin."""
    pool = ThreadPoolExecutor(at_once)
    try:
        yield from pool.map(call, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _opened(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    install = _DRIVERS.get(scheme, "install its fsspec driver")
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError:
        raise HarnessError(f"{url}: needs fsspec: {_DRIVERS['s3']}") from None
    if scheme not in fsspec.available_protocols():
        raise HarnessError(f"{url}: fsspec knows no {scheme}://; s3://, gs:// and others it does")
    try:
        fs, root = url_to_fs(url, skip_instance_cache=True, **_settings(scheme))
    except ImportError:
        raise HarnessError(
            f"{url}: the driver of {scheme}:// is not installed: {install}"
        ) from None
    except Exception as error:  # of a driver, over its configuration
        raise HarnessError(f"{url}: cannot be opened: {_said(error)}") from None
    return fs, str(root).rstrip("/")


def _settings(scheme: str) -> dict[str, Any]:
    """What is ours to say: how often to try is decided here, in one place."""
    if scheme in ("file", "local"):
        return {"auto_mkdir": True}
    if scheme not in ("s3", "s3a"):
        return {}
    from fsspec.config import conf

    own = conf.get(scheme, {}).get("config_kwargs", {})
    retries = {"max_attempts": 1, "mode": "standard"}
    return {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": retries, **own},
    }


def _lasts(error: Exception) -> bool:
    """Whether to try again is in vain."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, _LASTING) or bool(names & _LASTING_NAMES)


def _said(error: Exception) -> str:
    """What a driver says, in one line, without what may be secret in an address."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _SECRET.sub("…", line)[:200]


def _object(info: dict[str, Any]) -> Object:
    changed = next((info[k] for k in _TIMES if info.get(k) is not None), None)
    sign = info.get("ETag") or info.get("etag") or info.get("md5Hash") or changed
    modified = 0.0
    if isinstance(changed, datetime):
        modified = changed.timestamp()
    elif isinstance(changed, int | float):
        modified = float(changed)
    return Object(int(info.get("size") or 0), str(sign).strip('"'), modified)


_TIMES: Sequence[str] = ("LastModified", "mtime", "updated", "last_modified", "created")
