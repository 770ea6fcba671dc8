"""Which class each validation picture of ILSVRC2012 is of: Kaggle's solution, or the devkit's.

``LOC_val_solution.csv`` names the class (its WordNet id) and then boxes. The devkit has one number
a picture, in the order of their names, and ``meta.mat``, which says which class has which number:
the numbers are not the order of the WordNet ids.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.data.files import read_lines
from harness.errors import HarnessError

SOLUTION = "LOC_val_solution.csv"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12"
_META = "meta.mat"
WNID = re.compile(r"n[0-9]{8}")


def validation_classes(root: Path) -> tuple[Path, Mapping[str, str]]:
    """The file that says it, and the WordNet id by the name of each picture (without suffix).

    Looked for in ``root``: Kaggle's file, the devkit's two files (there, in its folder, or in its
    ``data``), its archive. Raises ``HarnessError`` where there is none.
    """
    solution = root / SOLUTION
    if solution.is_file():
        return solution, _solution(solution)
    for folder in (root, root / "data", root / DEVKIT / "data", root / DEVKIT):
        if (folder / TRUTH).is_file():
            if not (folder / _META).is_file():
                raise HarnessError(
                    f"{folder / _META}: no such file: the devkit's {TRUTH} means nothing without it"
                )
            lines = [line for _, line in read_lines(folder / TRUTH)]
            return folder / TRUTH, _truth(folder / TRUTH, lines, (folder / _META).read_bytes())
    archive = root / f"{DEVKIT}.tar.gz"
    if archive.is_file():
        text, meta = _from_archive(archive)
        return archive, _truth(archive, text.decode("ascii", "replace").split(), meta)
    raise HarnessError(
        f"{root}: nothing says of which class the validation pictures are: put Kaggle's {SOLUTION} "
        f"or ImageNet's {DEVKIT}.tar.gz there, or sort the pictures into val/<wnid>/"
    )


def _solution(path: Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    lines = read_lines(path)
    for number, cells in zip((n for n, _ in lines), csv.reader(t for _, t in lines), strict=True):
        if number == 1 and cells[0] == "ImageId":
            continue
        wnids = set(cells[1].split()[::5]) if len(cells) == 2 else set()
        if len(wnids) != 1 or not WNID.fullmatch(wnid := next(iter(wnids))):
            raise HarnessError(
                f"{path}:{number}: an ImageId, a comma and boxes of one class were expected "
                "(ILSVRC2012_val_00000001,n01751748 111 108 441 193)"
            )
        classes[cells[0]] = wnid
    return classes


def _from_archive(archive: Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as files:
            for member in files:
                name = member.name.rpartition("/")[2]
                if name in (TRUTH, _META) and (file := files.extractfile(member)):
                    found[name] = file.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise HarnessError(f"{archive}: not a sound archive: {error}; download it again") from None
    if len(found) < 2:
        raise HarnessError(f"{archive}: has no {TRUTH} and {_META} in it")
    return found[TRUTH], found[_META]


def _truth(source: Path, numbers: list[str], meta: bytes) -> dict[str, str]:
    wnids = _wnids(source, meta)
    classes = {}
    for place, number in enumerate(numbers, 1):
        if number not in wnids:
            raise HarnessError(
                f"{source}: picture {place}: {number!r} is the number of none of the "
                f"{len(wnids)} classes in {_META}"
            )
        classes[f"ILSVRC2012_val_{place:08d}"] = wnids[number]
    return classes


def _wnids(source: Path, meta: bytes) -> dict[str, str]:
    """WordNet ids by the devkit's number (as text), of the classes that have none below them."""
    import scipy.io

    load: Any = scipy.io.loadmat  # which takes a file too, whatever its types say
    try:
        synsets = load(io.BytesIO(meta), squeeze_me=True)["synsets"].ravel()
        return {
            str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises nearly anything on damaged bytes
        raise HarnessError(
            f"{source}: its {_META} is damaged ({type(error).__name__}: {error}); download it again"
        ) from None
