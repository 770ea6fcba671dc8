"""Annotations in JSON files written by others: read whole, without what nobody asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import HarnessError


def read_json(path: Path, without: str, expected: str) -> dict[str, Any]:
    """The mapping in a JSON file, every mapping in it without its key ``without``, which may be
    most of what it holds.

    Raises ``HarnessError`` for a file that is not there, no JSON, or no mapping: ``expected`` says
    of what one was expected.
    """

    def shed(found: dict[str, Any]) -> dict[str, Any]:
        found.pop(without, None)
        return found

    data = load_json(path, object_hook=shed, parse_constant=_refuse)
    if not isinstance(data, dict):
        raise HarnessError(f"{path}: a mapping with {expected} was expected")
    return data


def load_json(path: Path, **how: Any) -> Any:
    """What a JSON file holds; ``how`` as ``json.load`` has it. Raises ``HarnessError`` for a file
    that is not there, cannot be read, or is no JSON."""
    try:
        with path.open("rb") as file:
            return json.load(file, **how)
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{path}: not JSON: {error}") from None


def parse_line(text: str, where: str) -> dict[str, Any]:
    """The mapping on one line of a JSON-lines file. Raises ``HarnessError``."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise HarnessError(f"{where}: a mapping was expected, not {type(data).__name__}")
    return data


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
