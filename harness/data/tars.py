"""Pictures in tar archives that stay as they are: an index of members, read by offset.

An archive must not be compressed, or there would be no offset to read at. The index is made by one
walk over the headers, 512 bytes a member; nothing is unpacked and nothing is written.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.data.dataset import Dataset, Sample, Target, header_size
from harness.data.sizes import remembered
from harness.errors import BadPicture, HarnessError

_BLOCK = 512
_HEADER = 1 << 15  # bytes that hold the size of nearly every picture


class Member(NamedTuple):
    """A file in an archive: ``length`` bytes from ``offset``, both counted in the outermost."""

    name: str
    archive: Path
    offset: int
    length: int


class Filed(NamedTuple):
    """A picture of a data set, and where it lies; None: the archive lacks it."""

    id: str
    label: int
    member: Member | None


def members(archive: Path) -> Iterator[Member]:
    """The files of a tar archive, in its order. Raises ``HarnessError`` for an archive that is
    compressed, damaged or cut short."""
    try:
        with archive.open("rb") as file:
            yield from _walk(file, archive, 0)
    except OSError as error:
        raise HarnessError(f"{archive}: cannot be read: {error.strerror or error}") from None


def nested(archive: Path) -> Iterator[tuple[str, Member]]:
    """The files of the tar archives in a tar archive (ImageNet's training set is one), each with
    the name of its own archive. Raises ``HarnessError`` as ``members`` does."""
    try:
        with archive.open("rb") as file:
            for outer in _walk(file, archive, 0):
                if outer.name.endswith(".tar"):
                    inner = _Part(file, outer.offset, outer.length)
                    for member in _walk(inner, archive, outer.offset, f" ({outer.name})"):
                        yield outer.name, member
    except OSError as error:
        raise HarnessError(f"{archive}: cannot be read: {error.strerror or error}") from None


def _walk(file: io.BufferedIOBase, archive: Path, start: int, part: str = "") -> Iterator[Member]:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    what = f"{archive}{part}"
    try:
        with tarfile.open(fileobj=file, mode="r:") as index:
            while (member := index.next()) is not None:
                index.members = []  # type: ignore[attr-defined]  # tarfile keeps a million else
                if not member.isfile():
                    continue
                if member.issparse() or member.offset_data + member.size > length:
                    raise HarnessError(f"{what}: {member.name} is cut short; download it again")
                yield Member(member.name, archive, start + member.offset_data, member.size)
            end = index.offset
    except tarfile.TarError as error:
        raise HarnessError(
            f"{what}: not a sound tar archive ({error}): an uncompressed one is needed; unpack it "
            "if it is compressed, else download it again"
        ) from None
    # tarfile takes a damaged header, and the end of a file that was cut there, for the end.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise HarnessError(
            f"{what}: damaged or cut short after {end:,} of {length:,} bytes; download it again"
        )


class _Part(io.BufferedIOBase):
    """``length`` bytes of another file, from ``start``, as a file."""

    def __init__(self, whole: io.BufferedIOBase, start: int, length: int) -> None:
        self._whole, self._start, self._length, self._place = whole, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._place)
        count = left if size is None or size < 0 else min(size, left)
        self._whole.seek(self._start + self._place)
        data = self._whole.read(count)
        self._place += len(data)
        return data


class TarDataset(Dataset):
    """A data set whose pictures lie in tar archives. The archive is opened for each picture, so
    that worker processes share nothing."""

    def __init__(
        self, name: str, split: str, filed: Sequence[Filed], classes: tuple[str, ...]
    ) -> None:
        self.name, self.split, self.classes = name, split, classes
        self._members = [each.member for each in filed]
        archives = {each.archive for each in self._members if each is not None}
        ids = [each.id for each in filed]
        sizes = remembered(sorted(archives), ids, lambda: map(_size, self._members))
        self.samples = [
            Sample(each.id, size, Target(label=each.label))
            for each, size in zip(filed, sizes, strict=True)
        ]

    def read(self, index: int) -> bytes:
        member = self._members[index]
        if member is None:
            raise BadPicture(f"{self.where(index)}: not in the archive")
        try:
            data = _bytes(member, member.length)
        except OSError as error:
            raise BadPicture(f"{self.where(index)}: cannot be read: {error.strerror}") from None
        if len(data) != member.length:
            raise BadPicture(f"{self.where(index)}: the archive ends inside it")
        return data

    def where(self, index: int) -> str:
        member = self._members[index]
        if member is None:
            return self.samples[index].id
        return f"{member.archive}: {member.name}"

    def missing(self) -> list[str]:
        return [
            sample.id
            for sample, member in zip(self.samples, self._members, strict=True)
            if member is None
        ]


def _bytes(member: Member, count: int) -> bytes:
    with member.archive.open("rb", buffering=0) as file:
        file.seek(member.offset)
        data = b""
        while len(data) < count and (more := file.read(count - len(data))):
            data += more  # one read of an unbuffered file may give less than was asked
        return data


def _size(member: Member | None) -> tuple[int, int]:
    if member is None:
        return (0, 0)
    try:
        size = header_size(io.BytesIO(_bytes(member, min(member.length, _HEADER))))
        if size == (0, 0) and member.length > _HEADER:
            size = header_size(io.BytesIO(_bytes(member, member.length)))
    except OSError:
        return (0, 0)
    return size
