"""Pictures that lie in folders: read one, and know which are missing without asking for each."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.data.dataset import Dataset, Sample
from harness.errors import BadPicture, HarnessError


class Listing:
    """Which files there are below ``root``: every folder asked about is listed once, and kept.

    One listing of 20,000 names takes a few milliseconds; asking for each is a round trip per
    picture on a network drive.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, frozenset[str]] = {}

    def __contains__(self, relative: str) -> bool:
        folder, _, name = relative.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._names(folder)
        return name in self._folders[folder]

    def _names(self, folder: str) -> frozenset[str]:
        try:
            with os.scandir(self._root / folder) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise HarnessError(f"{self._root / folder}: cannot be listed: {error}") from None


class FileDataset(Dataset):
    """A data set whose picture ``i`` is the file ``root / files[i]``."""

    def __init__(
        self,
        name: str,
        split: str,
        samples: Sequence[Sample],
        classes: tuple[str, ...],
        root: Path,
        files: Sequence[str],
        absent: Iterable[str] = (),
    ) -> None:
        """``files`` are relative to ``root``, with forward slashes; ``absent`` are ids."""
        self.name = name
        self.split = split
        self.samples = samples
        self.classes = classes
        self.root = root
        self.files = files
        self._absent = tuple(absent)

    def read(self, index: int) -> bytes:
        return read_bytes(self.root / self.files[index], "picture")

    def where(self, index: int) -> str:
        return str(self.root / self.files[index])

    def missing(self) -> list[str]:
        return list(self._absent)


def read_bytes(path: Path, what: str) -> bytes:
    """The bytes of one file of a picture, which an error calls ``what``. Raises ``BadPicture``."""
    try:
        # A pipe named .jpg would be waited on for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadPicture(f"{path}: not a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadPicture(f"{path}: no such {what}") from None
    except OSError as error:
        raise BadPicture(f"{path}: cannot be read: {error.strerror}") from None


def check_sha256(path: Path, expected: str, otherwise: str) -> None:
    """Raises ``HarnessError`` for a file that cannot be read, or is another than the ``expected``:
    ``otherwise`` says what that means."""
    try:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    if actual != expected:
        raise HarnessError(f"{path}: sha256 {actual}, not {expected}: {otherwise}")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list of names that are not blank, with their numbers (from 1)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HarnessError(f"{path}: not a list of names (its bytes are not UTF-8)") from None
    lines = text.split("\n")  # splitlines() would also break at form feeds inside a name
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
