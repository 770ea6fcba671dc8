"""``harness regress``: read two folders of records and a gate, print or write what came of it."""

from __future__ import annotations

import argparse
import io
import os
import sys

from rich.console import Console

from harness.atomic import publish
from harness.console import into, standard_output
from harness.errors import HarnessError
from harness.gate.facts import as_json
from harness.gate.gate_file import Gate
from harness.gate.github import as_markdown
from harness.gate.judge import Report, judge
from harness.gate.junit import as_xml
from harness.gate.sheets import sheets
from harness.records import check_folder
from harness.tables import sheet
from harness.tables.rows import Chosen
from harness.typed import names

PASSED, FAILED = 0, 1
_WRITERS = {"github": as_markdown, "junit": as_xml, "json": as_json}


def run(options: argparse.Namespace) -> int:
    """Raises ``HarnessError`` for bad input; else the exit status is that of the verdict."""
    for folder in (options.baseline, options.candidate):
        check_folder(folder)
    if options.baseline.resolve() == options.candidate.resolve():
        raise HarnessError(f"{options.baseline}: baseline and candidate are the same folder")
    chosen = Chosen(
        tasks=names("task", options.task),
        datasets=names("dataset", options.dataset),
        models=names("model", options.model),
    )
    gate = Gate.load(options.gate, options.speed)
    report = judge(options.baseline, options.candidate, gate, chosen)
    for note in report.notes:
        print(f"harness: {note}", file=sys.stderr)
    try:
        _give(options, report)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`harness regress | head`), and the verdict still is the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PASSED if report.passed else FAILED


def _give(options: argparse.Namespace, report: Report) -> None:
    format_ = "json" if options.json else options.format
    if format_ == "table" and options.out is None:
        _show(standard_output(), report)
        return
    text = _text(format_, report)
    if options.out is None:
        print(text, end="")
        return
    publish(options.out, text.encode())
    print(report.verdict)


def _show(console: Console, report: Report) -> None:
    sheet.show(console, sheets(report))
    console.print(report.verdict, markup=False, soft_wrap=True)


def _text(format_: str, report: Report) -> str:
    if format_ in _WRITERS:
        # A path need not be text; what would be no UTF-8 is written as an escape.
        return _WRITERS[format_](report).encode("utf-8", "backslashreplace").decode()
    text = io.StringIO()
    _show(into(text), report)
    return text.getvalue()
