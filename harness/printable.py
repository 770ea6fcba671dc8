"""Strangers' text as a terminal may be given it.

Names, units and ids come from other people's files. A control character in them could colour,
move or clear the reader's terminal, and half of a surrogate pair (of a file's name that is no
UTF-8, say) could not be printed at all.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Controls but tab and line feed, marks that turn the direction of writing, halves of pairs.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, longest: int = 5_000) -> str:
    """``text`` with what is no character to look at written out (``\\x1b``), and cut after
    ``longest`` characters."""
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text):,} characters)"
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def json_text(facts: Any) -> str:
    """``facts`` as JSON for a program or a person, in the same way; a program reads the same.

    Raises ``ValueError`` for NaN and infinity."""
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
