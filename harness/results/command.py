"""``harness results``: look records over and print what is wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape

from harness.console import standard_output
from harness.printable import json_text
from harness.results.check import Report, check
from harness.results.json_schema import json_schema


def run(options: argparse.Namespace) -> bool:
    """Do what was typed and print it. False where something is wrong and was left."""
    if options.action == "schema":
        print(json_text(json_schema()))
        return True
    return _check(options)


def _check(options: argparse.Namespace) -> bool:
    report = check(options.folders or [Path("results")])
    if options.json:
        problems = [
            {"path": str(each.path), "what": each.what, "advice": each.advice}
            for each in report.problems
        ]
        facts = {"folders": list(map(str, report.folders)), "records": report.records}
        print(json_text({**facts, "problems": problems}))
    else:
        _show(report)
    return not report.problems


def _show(report: Report) -> None:
    console = standard_output()
    for each in report.problems:  # on lines of their own: a path that is folded cannot be copied
        console.print(
            f"[red]wrong[/] {escape(str(each.path))}: {escape(each.what)}", soft_wrap=True
        )
        console.print(f"    mend it: {escape(each.advice)}", soft_wrap=True)
    count = len(report.problems)
    wrong = f"{count:,} problem{'s' * (count != 1)}" if count else "nothing is wrong"
    where = ", ".join(map(str, report.folders))
    console.print(f"{report.records:,} records in {where}: {wrong}", markup=False, soft_wrap=True)
