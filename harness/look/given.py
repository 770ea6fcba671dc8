"""The pictures that are to be looked at: files, folders, or pictures of a data set."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from harness.data.dataset import FORMATS, SUFFIXES, Dataset, Role, decode
from harness.data.files import read_bytes
from harness.data.pictures import find_pictures
from harness.errors import HarnessError

_ORIENTATION = 0x0112  # of EXIF
_SUFFIX = ".look.png"
_NAME_LENGTH = 80  # of a file name that may have 255 bytes, with room for a temporary one


class Given(NamedTuple):
    """A picture: what it is called, and how its pixels ``[H, W, 3]`` are read (``BadPicture``)."""

    name: str
    read: Callable[[], NDArray[np.uint8]]


def from_paths(paths: Sequence[str]) -> list[Given]:
    """Files as they are named, and of folders all pictures in them but earlier pages, sorted, each
    once.

    Raises ``HarnessError`` for what is neither, and for a folder without a picture.
    """
    found: dict[str, Given] = {}
    for text in paths:
        path = Path(text)
        if path.is_dir():
            names = sorted(each for each in find_pictures(path) if not each.endswith(_SUFFIX))
            if not names:
                raise HarnessError(f"{path}: no picture in it ({', '.join(sorted(SUFFIXES))})")
            files = [path / name for name in names]
        elif path.exists():
            files = [path]
        else:
            raise HarnessError(
                f"{path}: no such picture or folder (ids of a data set: with --dataset NAME)"
            )
        for file in files:
            found.setdefault(str(file), Given(_told(str(file)), _reader(file)))
    return list(found.values())


def from_dataset(name: str, roles: Mapping[Role, Dataset], ids: Sequence[str]) -> list[Given]:
    """Pictures of a data set by their ids, whatever their role; without ids all of test, or of the
    last role where there is none.

    Raises ``HarnessError`` for an unknown id.
    """
    if not ids:
        dataset = roles.get("test", list(roles.values())[-1])
        ids = [sample.id for sample in dataset.samples]
    places: dict[str, tuple[Dataset, int]] = {}
    for dataset in list(roles.values())[::-1]:  # of the same id in two roles, the first's
        places |= {sample.id: (dataset, place) for place, sample in enumerate(dataset.samples)}
    found = []
    for identity in dict.fromkeys(ids):
        if identity not in places:
            close = difflib.get_close_matches(identity, list(places), n=3, cutoff=0.6)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise HarnessError(f"data set {name!r}: no picture with the id {identity!r}{hint}")
        dataset, place = places[identity]
        found.append(Given(_told(identity), _picture_of(dataset, place)))
    return found


def file_names(pictures: Sequence[Given]) -> list[str]:
    """``NAME.look.png`` for each, no two alike: never the name of the picture itself.

    What is no plain letter, digit or one of ``. + -`` becomes ``_``, of a long name the end is
    kept, and names that would fall together (on a disk that ignores case, too) are numbered.
    """
    names: list[str] = []
    taken: set[str] = set()
    for picture in pictures:
        bare = picture.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        stem, dot, suffix = bare.rpartition(".")
        if dot and f".{suffix.lower()}" in SUFFIXES:
            bare = stem
        safe = re.sub(r"[^A-Za-z0-9.+-]+", "_", bare)[-_NAME_LENGTH:].lstrip(".") or "_"
        name, number = safe, 1
        while name.lower() in taken:
            number += 1
            name = f"{safe}-{number}"
        taken.add(name.lower())
        names.append(f"{name}{_SUFFIX}")
    return names


def fitted(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """The picture with its longer side at most so many pixels, its shape kept."""
    height, width = picture.shape[:2]
    if max(height, width) <= longest:
        return picture
    share = longest / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _told(name: str) -> str:
    """A file's name may hold bytes that are no text; they become ``?``."""
    return name.encode("utf-8", "replace").decode()


def _reader(path: Path) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        data = read_bytes(path, "picture")
        return _upright(decode(data, str(path)), data)

    return read


def _picture_of(dataset: Dataset, place: int) -> Callable[[], NDArray[np.uint8]]:
    return lambda: dataset.picture(place)


def _upright(pixels: NDArray[np.uint8], data: bytes) -> NDArray[np.uint8]:
    """Turned as its EXIF says. A data set's pictures are not: their labels were drawn on the grid
    that is stored."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        try:
            turned = image.getexif().get(_ORIENTATION)
        except Exception:  # PIL raises nearly anything on a damaged block of EXIF
            return pixels
    if turned in (None, 1):
        return pixels
    plain = Image.fromarray(pixels)
    plain.getexif()[_ORIENTATION] = turned
    return np.array(ImageOps.exif_transpose(plain))
