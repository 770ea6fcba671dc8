"""Which objects are files of results, and of which record."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

_SAFE = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
_DEPTH = 4
_PICTURES = ".pictures"
_ENDINGS = (".head.safetensors", ".parquet", ".json")  # the record's own last


def belongs(name: str) -> bool:
    """Whether an object of that name, below the URL of results, is a file of one. The names are
    strangers' text: one that could leave or hide in a folder is none."""
    parts = name.split("/")
    if not all(_SAFE.fullmatch(part) and len(part.encode()) < 200 for part in parts):
        return False
    if parts[-2:-1] and parts[-2].endswith(_PICTURES):
        return len(parts) > _DEPTH and parts[-1].endswith(".png")
    return len(parts) >= _DEPTH and parts[-1].endswith(_ENDINGS)


def cell_of(name: str) -> str:
    """The name of the record that a file belongs to."""
    folder, _, last = name.rpartition("/")
    if folder.endswith(_PICTURES):
        return folder.removesuffix(_PICTURES) + ".json"
    ending = next(each for each in _ENDINGS if last.endswith(each))
    return f"{folder}/{last.removesuffix(ending)}.json"


def files_of(folder: Path, record: str) -> list[str]:
    """The files of a record that are in ``folder``, by name, in the order in which they are to be
    written: the record last."""
    stem = record.removesuffix(".json")
    pictures = sorted((folder / f"{stem}{_PICTURES}").glob("[!.]*.png"))
    names = [path.relative_to(folder).as_posix() for path in pictures]
    return names + [stem + end for end in _ENDINGS if (folder / (stem + end)).is_file()]


def disowned(record: Path) -> bool:
    """Whether a record is there whose table or head is not the one that it names."""
    try:
        facts = json.loads(record.read_bytes())
        for part, ending in (("per_picture", ".parquet"), ("head", ".head.safetensors")):
            file = record.with_suffix(ending)
            if facts[part] is None or (part == "head" and not file.exists()):
                continue  # a record is whole without its head
            if hashlib.sha256(file.read_bytes()).hexdigest() != facts[part]["sha256"]:
                return True
    except FileNotFoundError:
        return record.exists()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return True
    return False
