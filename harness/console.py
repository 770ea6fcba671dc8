"""Where commands print to, the form of their tables, and bytes as people read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.printable import printable

FILE_WIDTH = 160


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The command decides what that means; rich would leave with status 1."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """All text passes here, that of table cells too; what styles it is added later."""
        return super().render_str(printable(text), **options)


def standard_output() -> Console:
    """Standard output, as wide as the terminal; wide in a file, where nothing needs folding."""
    return _Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def into(file: TextIO) -> Console:
    """A file, or text in memory, that tables are written into."""
    return _Console(file=file, highlight=False, width=FILE_WIDTH)


def plain_table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    """A table with a bold head; the columns in ``right`` hold numbers."""
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.pad_edge = False
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def size(count: float) -> str:
    """Bytes for people: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float, unit: str, signed: bool = False) -> str:
    """A percentage to a tenth; of other numbers the smaller ones more exactly."""
    digits = 1 if unit == "%" or abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"  # no -0.0
