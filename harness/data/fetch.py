"""Bring a data set from its own source: the only place in ``harness/data`` that uses the network.

Everything happens in a folder ``.fetch-…`` beside the destination, and what a download gives
appears there by one rename. So a fetch that is killed leaves nothing that looks like a data set.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from harness.data.catalog import Catalog
from harness.data.dataset import safe_relative
from harness.data.entry import Download
from harness.errors import HarnessError

TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 20
_BY_HAND = "try again, or download it by hand"

Progress = Callable[[str, int, int | None], None]
"""What is being done, the bytes done, and of how many (None: not known)."""


@dataclass(frozen=True)
class Fetched:
    """One thing that is there now. ``sha256`` is of the file that was downloaded, and None where
    nothing was: ``already`` says that it was there before."""

    path: Path
    url: str
    sha256: str | None
    already: bool


def fetch(catalog: Catalog, name: str, progress: Progress) -> list[Fetched]:
    """Download what ``name`` lacks. What is there is left alone: all ``already`` means complete.

    Raises ``HarnessError`` where the entry names no source, the network or the disk fails, a
    digest is wrong, or an archive is not what it should be; what was fetched before stays.
    """
    entry = catalog.entry(name)
    if not entry.fetch:
        if catalog.root(name) is None:
            raise HarnessError(f"{name}: needs no files; there is nothing to fetch")
        raise HarnessError(
            f"{name}: cannot be fetched. {entry.note or 'Its entry names no source.'} "
            f"It is looked for in {catalog.root(name)}"
        )
    return [_bring(download, catalog.base(name), progress) for download in entry.fetch]


def _bring(download: Download, base: Path, progress: Progress) -> Fetched:
    folder = base / download.to
    target = folder / download.target
    try:
        if target.exists():
            if not download.extract:
                _check_existing(download, target)
            return Fetched(target, download.url, None, already=True)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
        try:
            file = unfinished / "download"
            sha256 = _stream(download, file, progress)
            source = file
            if download.extract:
                source = _extract(download, file, unfinished / "content", progress)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise HarnessError(f"{target}: appeared meanwhile; it is left as it is")
            source.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise HarnessError(f"{target}: cannot be written: {error}") from None
    return Fetched(target, download.url, sha256, already=False)


def _check_existing(download: Download, target: Path) -> None:
    for algorithm, expected in _digests(download).items():
        if expected is None:
            continue
        digest = _hash(algorithm)
        with target.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        actual = digest.hexdigest()
        if actual != expected:
            raise HarnessError(
                f"{target}: is there, but its {algorithm} is {actual}, not {expected}: remove it "
                "and fetch again"
            )


def _digests(download: Download) -> dict[str, str | None]:
    return {"sha256": download.sha256, "md5": download.md5}


def _hash(algorithm: str) -> hashlib._Hash:
    return hashlib.new(algorithm, usedforsecurity=False)  # md5 is all that some sources publish


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http(s) only, and never from https back to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            fp.close()
            raise HarnessError(f"{req.full_url}: leads to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stream(download: Download, file: Path, progress: Progress) -> str:
    """Download to ``file``; check length and digests. Returns the sha256."""
    request = urllib.request.Request(download.url, headers={"User-Agent": "vit-harness"})
    hashes = {algorithm: _hash(algorithm) for algorithm in _digests(download)}
    opener = urllib.request.build_opener(_WebOnly)
    done = 0
    with file.open("wb") as out:
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                length = response.headers.get("Content-Length", "")
                total = int(length) if length.isdecimal() else None
                while chunk := _receive(response, download.url):
                    out.write(chunk)
                    for each in hashes.values():
                        each.update(chunk)
                    done += len(chunk)
                    progress(f"downloading {download.url}", done, total)
        except urllib.error.HTTPError as error:
            error.close()
            raise HarnessError(f"{download.url}: {error.code} {error.reason}; {_BY_HAND}") from None
        except urllib.error.URLError as error:
            raise HarnessError(f"{download.url}: {error.reason}; {_BY_HAND}") from None
        except http.client.HTTPException as error:
            raise HarnessError(f"{download.url}: {error!r}; {_BY_HAND}") from None
    if total is not None and done != total:
        raise HarnessError(f"{download.url}: broke off at {done:,} of {total:,} bytes; {_BY_HAND}")
    for algorithm, expected in _digests(download).items():
        actual = hashes[algorithm].hexdigest()
        if expected is not None and actual != expected:
            raise HarnessError(
                f"{download.url}: its {algorithm} is {actual}, not {expected}: the file is damaged "
                "or has changed; nothing was kept"
            )
    return hashes["sha256"].hexdigest()


def _receive(response: http.client.HTTPResponse, url: str) -> bytes:
    """The next bytes. Kept apart from the writing, whose errors are the disk's."""
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise HarnessError(f"{url}: broke off: {error!r}; {_BY_HAND}") from None


def _extract(download: Download, file: Path, content: Path, progress: Progress) -> Path:
    """Take what the download gives out of its archive, into ``content``. Returns where it lies."""
    content.mkdir()
    what = f"unpacking {download.target}"
    try:
        if urlsplit(download.url).path.lower().endswith(".zip"):
            _unzip(file, content, download, what, progress)
        else:
            _untar(file, content, download, what, progress)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise HarnessError(f"{download.url}: not a sound archive: {error}") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile: unknown method, encrypted
        raise HarnessError(f"{download.url}: cannot be unpacked: {error}") from None
    source = _flattened(content, download) if download.flat else content / download.target
    if not source.exists() or source.is_symlink():
        raise HarnessError(f"{download.url}: the archive has no {download.target} in it")
    return source


def _flattened(content: Path, download: Download) -> Path:
    """All files of the unpacked archive in one folder of their own."""
    flat = content.with_name("flat")
    flat.mkdir()
    for path in sorted(content.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if (flat / path.name).exists():
            raise HarnessError(f"{download.url}: the archive has two files called {path.name}")
        path.rename(flat / path.name)
    if not any(flat.iterdir()):
        raise HarnessError(f"{download.url}: the archive has no file in it")
    return flat


def _wanted(name: str, download: Download) -> bool:
    """Whether a member is part of what the download gives. One unsafe name condemns the archive."""
    path = safe_relative(name, download.url)
    return download.flat or path.parts[: len(target := Path(download.target).parts)] == target


def _unzip(file: Path, content: Path, download: Download, what: str, progress: Progress) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if _wanted(m.filename, download)]
        total, done = sum(member.file_size for member in members), 0
        for member in members:
            archive.extract(member, content)  # reads to the end, which checks the member's CRC
            done += member.file_size
            progress(what, done, total)


def _untar(file: Path, content: Path, download: Download, what: str, progress: Progress) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise HarnessError("unpacking a tar file safely needs Python 3.11.4 or later")

    def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        done = 0
        for member in archive:
            if member.name in (".", "./") or not _wanted(member.name, download):
                continue
            yield member
            done += member.size
            progress(what, done, None)

    with tarfile.open(file) as archive:
        archive.extractall(content, members=members(archive), filter="data")
