"""The page: templates, style and script put together into one file that needs no other."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.contents import Contents

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).with_name("templates")


def page(contents: Contents) -> bytes:
    """The same contents give the same bytes. Every text of a record is escaped, and the page's
    policy lets nothing run but its own script, and nothing be fetched."""
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    text = (
        _environment()
        .get_template("page.html")
        .render(contents=contents, policy=policy, style=style, script=script)
    )
    return text.encode("utf-8", "replace")


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["exact"] = _exact
    return found


def _exact(value: Any) -> str:
    """A number as the record has it, to the last digit; nothing for None."""
    return "" if value is None else repr(value)
