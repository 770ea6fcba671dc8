"""``harness compare``, ``leaderboard`` and ``report``: read records, print or write tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.atomic import publish
from harness.console import standard_output
from harness.errors import HarnessError
from harness.printable import json_text, printable
from harness.registry import Registry
from harness.storage.mirrors import told
from harness.tables import compare_sheets, leaderboard_sheets, sheet
from harness.tables.compare import compare
from harness.tables.leaderboard import boards
from harness.tables.rows import Chosen, Pair, Result, match, pairs_of, protocol_words, read_results

Names = Callable[[str, Sequence[str]], list[str]]


def run(options: argparse.Namespace, names: Names) -> None:
    """Do what was typed; ``names`` reads comma lists."""
    commands = {"compare": _compare, "leaderboard": _leaderboard, "report": _report}
    commands[options.command](options, names)


def _compare(options: argparse.Namespace, names: Names) -> None:
    first, second = options.first, options.second
    if options.pairs == (first is not None) or (first is None) != (second is None):
        raise HarnessError("harness compare: name two models, or --pairs")
    if first is not None and first == second:
        raise HarnessError(f"harness compare {first} {second}: a model is compared with another")
    registry = Registry.load(options.models)
    chosen = Chosen(
        tasks=names("task", options.task),
        datasets=names("dataset", options.dataset),
        models=[] if options.pairs else [first, second],
        random=options.everything,
    )
    results = read_results(_folders(options), chosen, _tell)
    there = {each.model for each in results}
    couples = pairs_of(registry, there) if options.pairs else [(first, second)]
    for name in [] if options.pairs else (first, second):
        if name not in there:
            raise HarnessError(f"no result of {name} in {_told(options)}")
    pairs: list[Pair] = []
    alone: list[Result] = []
    for couple in couples:
        matched, left = match(results, *couple)
        pairs += matched
        alone += left
    if not pairs:
        what = "models with their baselines" if options.pairs else f"{first} and {second}"
        raise HarnessError(f"{what} have no data set, task and protocol in common")
    rows = compare(pairs, _protocol, names("metric", options.metric), _tell)
    if not rows:
        raise HarnessError("nothing to compare: no pair has such a metric and a whole table")
    facts = [compare_sheets.facts(row) for row in rows]
    alone = list({each.path: each for each in alone}.values())
    format_ = "json" if options.json else options.format
    if format_ == "json":
        only = [{"model": each.model, "record": str(each.path)} for each in alone]
        print(json_text({"comparisons": facts, "only_one_has": only}))
    elif format_ == "csv":
        print(sheet.comma_separated(facts), end="")
    elif format_ == "markdown":
        print(sheet.markdown(compare_sheets.sheets(rows, alone)))
    else:
        sheet.show(standard_output(), compare_sheets.sheets(rows, alone))


def _leaderboard(options: argparse.Namespace, names: Names) -> None:
    chosen = Chosen(
        tasks=names("task", options.task),
        datasets=names("dataset", options.dataset),
        families=names("family", options.family),
        random=options.everything,
    )
    registry = Registry.load(options.models)
    results = read_results(_folders(options), chosen, _tell)
    found = boards(results, registry, options.everything, options.pairs, _tell)
    start = Path.cwd() if options.out is None else options.out.parent
    format_ = "json" if options.json else options.format
    if format_ == "markdown":
        text = "# Leaderboard\n\n" + sheet.markdown(leaderboard_sheets.sheets(found, start))
    elif format_ == "csv":
        text = sheet.comma_separated(leaderboard_sheets.facts(found, start))
    else:
        text = json_text(leaderboard_sheets.facts(found, start)) + "\n"
    if options.out is None:
        print(text, end="")
        return
    publish(options.out, text.encode())


def _report(options: argparse.Namespace, names: Names) -> None:
    from harness.report.command import report

    report(options, names, _folders(options), _tell)


def _folders(options: argparse.Namespace) -> list[Path]:
    return options.results or [Path("results")]


def _told(options: argparse.Namespace) -> str:
    return ", ".join(map(told, _folders(options)))


def _protocol(result: Result) -> str:
    return ", ".join(protocol_words(result.record))


def _tell(notice: str) -> None:
    print(f"harness: {printable(told(notice))}", file=sys.stderr)
