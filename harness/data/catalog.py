"""Which data sets there are: the built-in catalog, and the user's own files laid over it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.data.dataset import Dataset, Role
from harness.data.entries import FORMATS, Entry
from harness.documents import Document, name_problem, path_problem, read_yaml, unknown
from harness.errors import HarnessError

BUILT_IN = Path(__file__).with_name("catalog.yaml")


@dataclass(frozen=True)
class _Placed:
    """An entry, the folder that its ``root`` is relative to, and where it is written."""

    entry: Entry
    base: Path
    source: str
    built_in: bool
    options: str
    """What a command must say beside the name, to mean this entry."""


class Catalog:
    """Names of data sets and what they stand for. Nothing is opened until ``open``."""

    def __init__(self, placed: Mapping[str, _Placed]) -> None:
        self._placed = dict(placed)

    @classmethod
    def load(cls, files: Sequence[Path] = (), data_root: Path | None = None) -> Catalog:
        """The built-in catalog with ``files`` laid over it, the last one on top.

        A built-in ``root`` is relative to ``data_root``, else to the environment's HARNESS_DATA,
        else to ``./data``; a file's, to that file's folder. Raises ``HarnessError``.
        """
        root = data_root or Path(os.environ.get("HARNESS_DATA") or "data")
        options = "" if data_root is None else f" --data-root {shlex.quote(str(data_root))}"
        placed = _read(BUILT_IN, root.expanduser().absolute(), options, built_in=True)
        for file in files:
            path = file.expanduser()
            options = f" --datasets {shlex.quote(str(file))}"
            placed |= _read(path, path.absolute().parent, options, built_in=False)
        return cls(placed)

    def names(self) -> list[str]:
        return list(self._placed)

    def entry(self, name: str) -> Entry:
        """The entry called ``name``; an unknown name raises ``HarnessError`` with a suggestion."""
        return self._find(name).entry

    def base(self, name: str) -> Path:
        """The folder that ``root`` and ``fetch`` of ``name`` are relative to."""
        return self._find(name).base

    def root(self, name: str) -> Path | None:
        """The folder of the data set, or None where it has no files."""
        placed = self._find(name)
        if placed.entry.root is None:
            return None
        return placed.base / Path(placed.entry.root).expanduser()

    def absent(self, name: str) -> list[Path]:
        """Folders and lists that ``name`` cannot do without and that are not there."""
        placed, root = self._find(name), self.root(name)
        if root is None:
            return []
        if not root.is_dir():
            return [root]
        return [path for path in placed.entry.needs(root) if not path.exists()]

    def open(self, name: str) -> dict[Role, Dataset]:
        """Read the annotations of ``name``, one data set a role; a lone split is test.

        Pictures that are not there do not raise: ask ``Dataset.missing``. A count other than the
        entry's does not either: ask ``unexpected``. Raises ``HarnessError`` for all else.
        """
        absent = self.absent(name)
        if absent:
            raise HarnessError(f"{name}: there is no {absent[0]}: {self.advice(name)}")
        return self._find(name).entry.open(name, self.root(name) or Path())

    def unexpected(self, name: str, opened: Mapping[Role, Dataset]) -> list[str]:
        """Where ``opened`` is not what the entry promises, a sentence for each role."""
        sentences = []
        for role, expected in self.entry(name).expected.items():
            count = len(opened[role].samples) if role in opened else 0
            if count != expected:
                sentences.append(
                    f"{name}: {count:,} pictures for {role} where {expected:,} were expected: "
                    "its scores are not those of the data set that the name stands for"
                )
        return sentences

    def advice(self, name: str) -> str:
        """What to do about files of ``name`` that are not there."""
        placed = self._find(name)
        fetch = self.fetch_command(name)
        ways = [] if fetch is None else [f"`{fetch}` brings it"]
        if placed.built_in:
            ways.append("`--data-root DIR` (or HARNESS_DATA) says where the data sets are")
        else:
            ways.append(f"correct its root ({placed.source})")
        ways.append(f"`harness doctor {name}{placed.options}` tells more")
        return "; ".join(ways)

    def fetch_command(self, name: str) -> str | None:
        """The command that brings ``name`` to where it is looked for; None where there is none."""
        placed = self._find(name)
        return f"harness datasets fetch {name}{placed.options}" if placed.entry.fetch else None

    def _find(self, name: str) -> _Placed:
        if name not in self._placed:
            raise unknown("data set", name, self._placed, "harness datasets")
        return self._placed[name]


def _read(path: Path, base: Path, options: str, *, built_in: bool) -> dict[str, _Placed]:
    document = read_yaml(path)
    placed = {}
    for name in document.data:
        source = f"{path}:{document.line((name,))}"
        placed[name] = _Placed(_entry(document, name), base, source, built_in, options)
    return placed


def _entry(document: Document, name: str) -> Entry:
    fields = document.data[name]
    problem = name_problem(name)
    if problem:
        raise document.error((name,), problem)
    if not isinstance(fields, dict):
        raise document.error((name,), "a mapping with format: and root: was expected")
    kind = fields.get("format")
    if not isinstance(kind, str) or kind not in FORMATS:
        formats = ", ".join(FORMATS)
        raise document.error((name, "format"), f"{kind!r} is no format; there are {formats}")
    root = fields.get("root")
    if isinstance(root, str) and (problem := path_problem(root)):
        raise document.error((name, "root"), f"the path {root[:100]!r} {problem}")
    model = FORMATS[kind]
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        known = [each.alias or key for key, each in model.model_fields.items()]
        raise document.validation_error((name,), error, known) from None
