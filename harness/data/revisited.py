"""Oxford and Paris revisited: queries, a gallery, and which pictures of it answer a query.

Radenović et al., "Revisiting Oxford and Paris" (CVPR 2018, arXiv 1803.11285), in the layout of
filipradenovic/revisitop: pictures in ``jpg``, and one file with ``imlist`` (the gallery),
``qimlist`` (the queries) and ``gnd``, which has for each query ``bbx`` (x0, y0, x1, y1) and places
in ``imlist``: ``easy``, ``hard``, ``junk``. The gallery is the role train, the queries are test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from harness.data.dataset import SUFFIXES, Query, Role, Sample, Target, header_size, safe_relative
from harness.data.files import FileDataset
from harness.data.json_files import load_json
from harness.data.pictures import find_pictures
from harness.data.plain_pickle import read_plain
from harness.errors import HarnessError

_KINDS = ("easy", "hard", "junk")
_READERS = 8  # headers are read at a disk's pace, not at a core's


def read_revisited(
    name: str, root: Path, annotations: str, images: str = "jpg"
) -> dict[Role, FileDataset]:
    """Open gallery and queries of the data set ``name``; the paths are relative to ``root``.

    ``annotations`` is a ``.pkl`` as released, of which nothing is run, or the same as ``.json``.
    A name in it has no suffix (``.jpg`` is meant) or a picture's; it is the picture's id. The
    picture may lie in ``images`` or in any folder below it. Pictures that are not there do not
    raise: ask ``Dataset.missing``. Raises ``HarnessError`` for all else.
    """
    path, folder = root / annotations, root / images
    if path.suffix not in _READ:
        raise HarnessError(f"{path}: annotations are a {' or a '.join(_READ)} file")
    found = _Annotations(path, _READ[path.suffix](path))
    gallery, queries = found.names("imlist"), found.names("qimlist")
    both = set(gallery) & set(queries)
    if both:
        raise found.error(f"{min(both)!r} stands in imlist and in qimlist: it would find itself")
    asked = found.queries(len(queries), len(gallery))
    lying: dict[str, list[str]] = {}
    for file in find_pictures(folder) if folder.is_dir() else []:
        lying.setdefault(PurePosixPath(file).name, []).append(file)

    def opened(split: str, names: Sequence[str], targets: Sequence[Target]) -> FileDataset:
        files, absent = [], []
        for each in names:
            file = each if PurePosixPath(each).suffix.lower() in SUFFIXES else f"{each}.jpg"
            places = lying.get(file, [])
            if len(places) > 1:
                raise HarnessError(f"{folder}: there are both {places[0]} and {places[1]}")
            files.append(places[0] if places else file)
            if not places:
                absent.append(each)
        with ThreadPoolExecutor(_READERS) as readers:
            sizes = list(readers.map(lambda file: header_size(folder / file), files))
        samples = [
            Sample(each, size, target)
            for each, size, target in zip(names, sizes, targets, strict=True)
        ]
        return FileDataset(name, split, samples, (), folder, files, absent)

    return {
        "train": opened("gallery", gallery, [Target()] * len(gallery)),
        "test": opened("queries", queries, [Target(query=query) for query in asked]),
    }


_READ: Mapping[str, Callable[[Path], Any]] = {".pkl": read_plain, ".json": load_json}


class _Annotations:
    """What the file holds, taken out with checks that name the place of what is wrong."""

    def __init__(self, path: Path, data: Any) -> None:
        self._path = path
        if not isinstance(data, Mapping):
            raise self.error("a mapping with imlist, qimlist and gnd was expected")
        self._data = data

    def error(self, what: str) -> HarnessError:
        return HarnessError(f"{self._path}: {what}")

    def names(self, key: str) -> list[str]:
        names = self._data.get(key)
        if not isinstance(names, list | tuple) or not names:
            raise self.error(f"{key}: a list of names of pictures was expected")
        seen = set()
        for name in names:
            if not isinstance(name, str) or len(safe_relative(name, str(self._path)).parts) != 1:
                raise self.error(f"{key}: {name!r} is no name of a picture")
            if name in seen:
                raise self.error(f"{key}: {name!r} stands twice")
            seen.add(name)
        return list(names)

    def queries(self, count: int, gallery: int) -> list[Query]:
        """The ``count`` entries of ``gnd``, with places in a gallery of that many pictures."""
        answers = self._data.get("gnd")
        if not isinstance(answers, list | tuple) or len(answers) != count:
            raise self.error(f"gnd: a list of {count} was expected, one for each query of qimlist")
        queries = []
        for number, answer in enumerate(answers):
            where = f"gnd[{number}]"
            if not isinstance(answer, Mapping):
                raise self.error(f"{where}: a mapping with bbx, easy, hard and junk was expected")
            places = [self._places(f"{where}.{kind}", answer.get(kind), gallery) for kind in _KINDS]
            every = [place for of_kind in places for place in of_kind]
            if len(set(every)) != len(every):
                raise self.error(f"{where}: a picture stands twice among {', '.join(_KINDS)}")
            queries.append(Query(self._region(f"{where}.bbx", answer.get("bbx")), *places))
        return queries

    def _places(self, where: str, values: Any, gallery: int) -> tuple[int, ...]:
        if not isinstance(values, list | tuple):
            raise self.error(f"{where}: a list of places in imlist was expected")
        places = []
        for value in values:
            # Whole numbers may be written as floats: so does MATLAB, where these lists come from.
            if not _is_number(value) or value != int(value) or not 0 <= value < gallery:
                raise self.error(
                    f"{where}: {value!r} is no place in imlist (0 to {gallery - 1}, whole)"
                )
            places.append(int(value))
        return tuple(places)

    def _region(self, where: str, values: Any) -> tuple[float, float, float, float] | None:
        if values is None:
            return None
        if not isinstance(values, list | tuple) or len(values) != 4:
            raise self.error(f"{where}: x0, y0, x1, y1 were expected")
        for value in values:
            if not _is_number(value):
                raise self.error(f"{where}: {value!r} is no number")
        x0, y0, x1, y1 = map(float, values)
        if x0 >= x1 or y0 >= y1:
            raise self.error(f"{where}: the box is empty: {x0:g}, {y0:g}, {x1:g}, {y1:g}")
        return x0, y0, x1, y1


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
