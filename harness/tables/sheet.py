"""A table before it is drawn: text in cells, notes below. Drawn on a terminal or as markdown; as
CSV a list of facts, one line each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape

from harness.console import number, plain_table
from harness.printable import printable


@dataclass(frozen=True)
class Cell:
    text: str
    bold: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Sheet:
    """``columns`` in ``right`` hold numbers; a row has a cell, or plain text, for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    right: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)


def show(console: Console, sheets: Sequence[Sheet]) -> None:
    for sheet in sheets:
        # Below the title, not as one: a title narrower than its table would be folded to it.
        console.print(f"[bold]{escape(sheet.title)}[/]", soft_wrap=True)
        table = plain_table(*sheet.columns, right=sheet.right)
        for row in sheet.rows:
            table.add_row(*map(_on_terminal, row))
        console.print(table)
        for note in sheet.notes:
            console.print(escape(note), style="dim", soft_wrap=True)
        console.print()


def _on_terminal(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f"[bold]{escape(cell.text)}[/]" if cell.bold else escape(cell.text)


def markdown(sheets: Sequence[Sheet], level: int = 2) -> str:
    """Tables as GitHub draws them, each below a head of this ``level``."""
    lines = []
    for sheet in sheets:
        head, rows = markdown_lines(sheet)
        lines += [f"{'#' * level} {safe(sheet.title)}", "", *head, *rows]
        if sheet.notes:
            lines += ["", *(f"{safe(note)}  " for note in sheet.notes)]
        lines.append("")
    return "\n".join(lines)


def markdown_lines(sheet: Sheet) -> tuple[list[str], list[str]]:
    """The head of a table, and a line for each of its rows."""
    head = [
        _line([safe(column) for column in sheet.columns]),
        _line(["---:" if c in sheet.right else "---" for c in sheet.columns]),
    ]
    return head, [_line([_in_markdown(cell) for cell in row]) for row in sheet.rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return safe(cell)
    text = safe(cell.text)
    text = text if cell.link is None else f"[{text}]({quote(cell.link, errors='surrogateescape')})"
    return f"**{text}**" if cell.bold else text


def safe(text: str) -> str:
    """One line of which no character means something to markdown, HTML included, or to a
    terminal."""
    text = printable(" ".join(text.splitlines()))
    for character in "\\`*_[]|<>~":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;")


def comma_separated(facts: Sequence[Mapping[str, Any]]) -> str:
    """A line for each of ``facts``, after one with their keys; nothing is empty, lists are JSON."""
    columns = list(dict.fromkeys(key for each in facts for key in each))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for each in facts:
        writer.writerow({key: _flat(value) for key, value in each.items()})
    return text.getvalue()


def _flat(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return printable(value, len(value))
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def heading(metric: str, unit: str, higher_is_better: bool) -> str:
    """A metric's name, its unit if it has one, and which way is better."""
    words = [metric.replace("_", " "), unit, "↑" if higher_is_better else "↓"]
    return " ".join(word for word in words if word)


def measured(value: float | None, unit: str, signed: bool = False) -> str:
    return "–" if value is None else number(value, unit, signed)


def span(low: float, high: float, unit: str, signed: bool = False) -> str:
    """An interval: ``38.5–51.5``, or with signs ``+1.0 … +5.2``."""
    ends = [number(end, unit, signed) for end in (low, high)]
    return " … ".join(ends) if signed or low < 0 else "–".join(ends)


def probability(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
