"""What a gate found, as a comment or a job summary on GitHub shows it: the verdict, what fails, and
the rest folded away."""

from __future__ import annotations

from html import escape

from harness.gate.judge import Report
from harness.gate.sheets import groups, speeds, table, unchanged
from harness.tables.sheet import Sheet, markdown_lines, safe

LIMIT = 65_000
"""Bytes. A comment holds 65,536 characters, a job summary 1 MiB."""
_RESERVED = 600
"""For the line that tells what was cut."""


class _Page:
    """Lines as long as there is room; ``cut`` counts the rows for which there was none."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.room = LIMIT - _RESERVED
        self.cut = 0

    def add(self, *lines: str) -> bool:
        """All of ``lines``, or none."""
        need = sum(len(line.encode("utf-8", "backslashreplace")) + 1 for line in lines)
        if need > self.room:
            return False
        self.room -= need
        self.lines += lines
        return True

    def table(self, sheet: Sheet, folded: bool) -> None:
        """As many rows as fit, below a title, which one clicks on where it is ``folded``."""
        head, rows = markdown_lines(sheet)
        title = f"{sheet.title} ({len(rows)})"
        closing = ["", "</details>"] if folded else []
        opening = (
            ["", f"<details><summary>{escape(title)}</summary>", ""]
            if folded
            else ["", f"### {safe(title)}", ""]
        )
        notes = ["", *(f"{safe(note)}  " for note in sheet.notes)] if sheet.notes else []
        if not self.add(*opening, *head, *notes, *closing):
            self.cut += len(rows)
            return
        below = self.lines[len(self.lines) - len(notes) - len(closing) :]
        del self.lines[len(self.lines) - len(below) :]
        for row in rows:
            self.cut += not self.add(_no_mention(row))
        self.lines += below


def as_markdown(report: Report) -> str:
    """At most ``LIMIT`` bytes; a line says how much was cut, if anything was."""
    page = _Page()
    page.add(f"## harness regress {safe(report.verdict)}", "")
    page.add(_no_mention(f"{safe(str(report.candidate))} against {safe(str(report.baseline))}"))
    for note in report.notes:
        page.add("", _no_mention(safe(note)))
    regressed, *others = (table(title, cells) for title, cells in groups(report))
    if regressed.rows:
        page.table(regressed, folded=False)
    for sheet in others:
        if sheet.rows:
            page.table(sheet, folded=True)
    if report.paces:
        page.table(speeds(report.paces, report.gate.speed or 0.0), folded=not report.slow)
    if (same := unchanged(report)).rows:
        page.table(same, folded=True)
    if page.cut:
        page.lines += ["", f"{page.cut:,} rows do not fit here; `--format json` has them all."]
    return "\n".join(page.lines) + "\n"


def _no_mention(text: str) -> str:
    """Nobody is notified because a name holds an @: an invisible space follows it."""
    return text.replace("@", "@\u200b")
