"""YAML files written by people: strict, and with line numbers in every complaint.

A registry or data-set file is small and flat. So anchors and aliases (which let a page of text
expand to gigabytes) are refused, a key that stands twice is an error, and nothing but plain
scalars, lists and mappings is built (yaml's safe loader). What such a file names becomes part of
file names and of hashes; the rules for both stand here, so that all of the house shares them.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.errors import HarnessError

MAX_BYTES = 4 * 1024 * 1024

KeyPath = tuple[str | int, ...]

NAME_PATTERN = "[A-Za-z0-9_+-][A-Za-z0-9._+-]*"
NAME_LENGTH = 100
_PART_BYTES, _PATH_BYTES = 255, 4000  # what file systems take, a little less for the whole
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class Document:
    """A parsed YAML file: its ``data``, and the line on which every key or item stands. Those who
    read a file twice may share one: nobody changes it."""

    def __init__(self, path: Path, data: Any, lines: dict[KeyPath, int]) -> None:
        self.path = path
        self.data = data
        self.lines = lines

    def line(self, keys: KeyPath) -> int:
        """The line of ``keys``, or of the nearest enclosing key that has one (from 1)."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def error(self, keys: KeyPath, what: str) -> HarnessError:
        """An error that points at ``keys``: ``models.yaml:12: vits: …``."""
        where = ".".join(str(key) for key in keys)
        return HarnessError(f"{self.path}:{self.line(keys)}: {where + ': ' if where else ''}{what}")

    def validation_error(
        self, keys: KeyPath, error: ValidationError, known: Iterable[str] = ()
    ) -> HarnessError:
        """The first complaint of a pydantic model about the mapping at ``keys``, with its line.

        ``known``: the keys that the mapping may have, for a suggestion where one is misspelt.
        """
        first = error.errors()[0]
        place: KeyPath = ()
        for part in first["loc"]:
            # pydantic mixes the names of union members into the place; the file does not know them.
            if (*keys, *place, part) in self.lines:
                place += (part,)
        if first["type"] == "missing":
            place += first["loc"][-1:]
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(first["loc"][-1]), list(known), n=1, cutoff=0.6)
            what = "unknown key" + (f" (did you mean {close[0]}?)" if close else "")
        return self.error(keys + place, what)


class _LineLoader(yaml.SafeLoader):
    """A safe loader that refuses anchors and aliases; ``_build`` looks for duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "anchors (&name) and aliases (*name) are not allowed in this file",
                event.start_mark,
            )
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Document:
    """Read one strict YAML mapping.

    Raises ``HarnessError`` naming file and line for a file that is missing, unreadable, too large,
    not UTF-8, not YAML, not a mapping, or that holds an alias or the same key twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HarnessError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; not read")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read: {error}") from None
    return _parsed(path, text)


@lru_cache(maxsize=16)  # the shipped files are asked for again and again
def _parsed(path: Path, text: str) -> Document:
    lines: dict[KeyPath, int] = {}
    try:
        loader = _LineLoader(text)
        try:
            node = loader.get_single_node()
            data = {} if node is None else _build(path, loader, node, (), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise HarnessError(f"{path}:{line}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise HarnessError(f"{path}: not valid YAML: {error}") from None
    except ValueError as error:
        raise HarnessError(f"{path}: a value cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise HarnessError(f"{path}:1: a mapping of names to entries was expected")
    return Document(path, data, lines)


def _build(
    path: Path, loader: _LineLoader, node: yaml.Node, keys: KeyPath, lines: dict[KeyPath, int]
) -> Any:
    lines.setdefault(keys, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        # A scalar's tag is the safe loader's to refuse; these are built here, without it.
        line = node.start_mark.line + 1
        raise HarnessError(f"{path}:{line}: the tag {node.tag!r} is not allowed in this file")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise HarnessError(f"{path}:{line}: the key {key!r} must be text (quote it)")
            _check_unicode(path, line, repr(key), key)
            if key in result:
                raise HarnessError(
                    f"{path}:{line}: {key!r} stands twice (first on line {lines[(*keys, key)]})"
                )
            lines[(*keys, key)] = line
            result[key] = _build(path, loader, value_node, (*keys, key), lines)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(path, loader, item, (*keys, index), lines)
            for index, item in enumerate(node.value)
        ]
    value = loader.construct_object(node, deep=True)
    if isinstance(value, str):
        place = ".".join(str(key) for key in keys)
        _check_unicode(path, node.start_mark.line + 1, place, value)
    return value


def _check_unicode(path: Path, line: int, place: str, text: str) -> None:
    """Half a surrogate pair, which an escape can write, can stand in no record and no page."""
    if _halved(text):
        raise HarnessError(f"{path}:{line}: {place}: holds what is no character")


def _halved(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> HarnessError:
    """``no model 'vitl-reg': did you mean vitl-reg4? `harness models` lists all``."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return HarnessError(f"no {kind} {name!r}: {hint}`{listing}` lists all")


def name_problem(name: str) -> str | None:
    """Why ``name`` cannot name a model, task, data set or protocol; None where it can.

    Names become folders and files, stand in comma lists, and are set apart from what follows them
    by ``~``: so no separator, no space, nothing hidden, and nothing that climbs out of a folder.
    """
    if len(name) > NAME_LENGTH:
        return f"a name has at most {NAME_LENGTH} characters"
    if not re.fullmatch(NAME_PATTERN, name):
        return "a name is made of A-Z a-z 0-9 . _ + - and does not begin with a dot"
    return None


def check_name(kind: str, name: str) -> str:
    """``name`` itself. Raises ``HarnessError`` where it cannot be part of a file name."""
    problem = name_problem(name)
    if problem:
        raise HarnessError(f"the {kind} name {name!r} cannot be used: {problem}")
    return name


def path_problem(text: str) -> str | None:
    """Why no file can have the path ``text``; None where one can. The file system would say so
    too, in the middle of whatever asks for it."""
    try:
        parts = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can write one
        return "holds what is no character"
    if "\0" in text:
        return "holds a zero byte"
    if len(text) > _PATH_BYTES or any(len(part) > _PART_BYTES for part in parts):
        return f"is too long ({len(text):,} characters)"
    return None


def has_text(value: str) -> str:
    """``value`` itself. Raises ``ValueError``, which pydantic tells with the place, where it is
    empty or holds half of a surrogate pair, which YAML can write and no file or terminal takes."""
    if not value.strip():
        raise ValueError("must not be empty")
    if _halved(value):
        raise ValueError("holds what is no character")
    return value


def canonical_json(value: object) -> bytes:
    """The one JSON text of ``value``: sorted keys, no spaces, ASCII. What is hashed is this.

    Raises ``ValueError`` for NaN and infinity, ``TypeError`` for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")
