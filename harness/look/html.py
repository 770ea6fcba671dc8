"""All pages of ``harness look`` in one that needs nothing else: no script, no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem;
  background: #fff; color: #1a1a1a; }
img { max-width: 100%; height: auto; background: #fff; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #8886; }
td { font-variant-numeric: tabular-nums; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e6e6e6; }
  a { color: #8ab4f8; } }
"""
_COLUMNS = (
    "model",
    "patches (columns × rows)",
    "norm after the last layer: patches, median",
    "patches, largest",
    "class token",
    "registers",
    "LOST's box (x0 y0 x1 y1)",
)


def page(models: str, shown: Sequence[tuple[Mapping[str, Any], bytes]]) -> str:
    """``shown`` are what is told of each picture, and its PNG."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(models)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>What {escape(models)} see</h1>",
    ]
    if len(shown) > 1:
        links = (
            f'<li><a href="#picture-{number}">{escape(facts["picture"])}</a></li>'
            for number, (facts, _) in enumerate(shown, start=1)
        )
        parts.append(f"<nav><ol>{''.join(links)}</ol></nav>")
    for number, (facts, png) in enumerate(shown, start=1):
        name = escape(facts["picture"])
        width, height = facts["size"]
        alt = (
            f"{name} and, of {escape(models)}: norm maps by layer, attention of class and "
            "register tokens, principal components of patches, LOST's degree map, vote and box"
        )
        parts += [
            f'<section id="picture-{number}"><h2>{name}</h2>',
            f"<p>{width} × {height} pixels</p>",
            _table(facts["models"]),
            f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">',
            "</section>",
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _table(models: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in _COLUMNS)
    rows = []
    for each in models:
        rows_down, across = each["grid"]
        told = [
            f"{across} × {rows_down}",
            *(f"{norm:.3g}" for norm in each["patch_norm"].values()),
            "none" if each["class_norm"] is None else f"{each['class_norm']:.3g}",
            ", ".join(f"{norm:.3g}" for norm in each["register_norms"]) or "none",
            " ".join(map(str, each["lost"]["box"])),
        ]
        cells = "".join(f"<td>{escape(text)}</td>" for text in told)
        rows.append(f'<tr><th scope="row">{escape(each["model"])}</th>{cells}</tr>')
    body = "".join(rows)
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
