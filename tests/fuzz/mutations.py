"""Valid bytes and documents -> damaged ones. All that is random comes from the case's own draw."""

from __future__ import annotations

import copy
import random
from typing import Any

# Each has broken some reader of JSON or YAML somewhere.
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, 1e-320, -0.5),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "\0", "\n", "\ud800", "ü" * 3),
    *("../../etc/passwd", "/etc/passwd", "C:\\x", "~", "a" * 5000, "<b>", "\x1b[31m", "1e400"),
    *("*", "%s", "{}", "NaN", "null", [], {}, [[]], {"": None}, [None] * 50),
)
TOKENS = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"&a ", b"*a", b"<<: ", b"!!python/name:os.system "),
    *(b"9" * 5000, b"1e999", b"-0", b"NaN", b"0x" + b"f" * 99, b"[" * 3000, b"{" * 3000, b"\r"),
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<!--", b"]]>", b"\xed\xa0\x80", b'"', b"'"),
    *(b"2001-99-99", b"12:61:61", b"1_0", b"? ", b"- ", b"\t", b"#", b"=", b"0b2", b"0o9", b".inf"),
)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """``data`` after one to four changes: flips, cuts, splices, numbers, hostile tokens."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(found) + 1)
        other = draw.randrange(len(found) + 1)
        first, last = min(place, other), max(place, other)
        kind = draw.randrange(8)
        if kind == 0 and found:
            found[place % len(found)] ^= 1 << draw.randrange(8)
        elif kind == 1 and found:
            found[place % len(found)] = draw.choice((0, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del found[place:]
        elif kind == 3:
            del found[first : min(last, first + 64)]
        elif kind == 4:
            found[place:place] = found[first : min(last, first + 512)]
        elif kind == 5:
            found[place:place] = draw.choice(TOKENS)
        elif kind == 6:
            number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            width = draw.choice((2, 4, 8))
            whole = (number % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
            found[place : place + width] = whole
        else:
            digits = [i for i, byte in enumerate(found) if 48 <= byte <= 57]
            if digits:
                at = draw.choice(digits)
                found[at : at + 1] = draw.choice((b"-1", b"1e999", b"9" * 30, b"", b"0.5", b"nan"))
    return bytes(found)


def altered(draw: random.Random, document: Any) -> Any:
    """A copy of a JSON-like ``document`` in which one to three values are of another kind, gone,
    doubled or under another name."""
    whole = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = [(parent, key) for parent, key in _places(whole)]
        if not places:
            return whole
        parent, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind <= 2:
            parent[key] = copy.deepcopy(draw.choice(JUNK))
        elif kind == 3:
            parent[key] = [parent[key]]
        elif kind == 4 and isinstance(parent, dict):
            parent[str(draw.choice(JUNK))] = parent.pop(key)
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            del parent[key]
    return whole


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found
