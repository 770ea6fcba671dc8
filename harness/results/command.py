"""``harness results``: look records over, bring them together, print their schema."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.markup import escape

from harness.console import standard_output
from harness.printable import json_text
from harness.results.check import Report, check
from harness.results.json_schema import json_schema
from harness.results.merge import carry_out, plan
from harness.storage.mirrors import told


def run(options: argparse.Namespace) -> bool:
    """Do what was typed and print it. False where something is wrong and was left."""
    if options.action == "schema":
        print(json_text(json_schema()))
        return True
    if options.action == "merge":
        _merge(options)
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
            f"[red]wrong[/] {escape(told(each.path))}: {escape(told(each.what))}", soft_wrap=True
        )
        console.print(f"    mend it: {escape(each.advice)}", soft_wrap=True)
    count = len(report.problems)
    wrong = f"{count:,} problem{'s' * (count != 1)}" if count else "nothing is wrong"
    where = ", ".join(map(told, report.folders))
    console.print(f"{report.records:,} records in {where}: {wrong}", markup=False, soft_wrap=True)


def _merge(options: argparse.Namespace) -> None:
    steps = plan(options.sources, options.into, options.prefer)
    if not options.dry_run:
        carry_out(steps, options.into)
    if options.json:
        print(
            json_text(
                {
                    "into": str(options.into),
                    "done": not options.dry_run,
                    "records": [
                        {
                            "path": str(step.target),
                            "from": str(step.chosen.path),
                            "state": step.state,
                            "beside": [str(target) for _, target in step.beside],
                        }
                        for step in steps
                    ],
                }
            )
        )
        return
    console = standard_output()
    for step in steps:
        if step.state == "replaces":
            text = told(f"{step.target}: replaced by {step.chosen.path}")
            console.print(text, markup=False, soft_wrap=True)
    counts = Counter(step.state for step in steps)
    words = [f"{counts['new']:,} records copied", f"{counts['replaces']:,} replaced"]
    words += [f"{counts['the same']:,} there already"]
    if beside := sum(len(step.beside) for step in steps):
        words.append(f"{beside:,} files beside them")
    would = "would be: " if options.dry_run else ""
    text = f"{told(options.into)}: {would}{', '.join(words)}"
    console.print(text, markup=False, soft_wrap=True)
