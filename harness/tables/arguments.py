"""What can be typed after ``harness compare``, ``leaderboard`` and ``report``. Imports nothing
heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from harness.storage.mirrors import results_folder

Add = Callable[[str, str, str], ArgumentParser]


def add_tables(add: Add) -> list[ArgumentParser]:
    """The commands, made by ``add`` of a name, what it is about and an example."""
    compare = add(
        "compare",
        "hold a model against another on the same pictures: differences, intervals, tests, costs",
        "harness compare vitl vitl-reg4",
    )
    compare.add_argument("first", nargs="?", metavar="A", help="the model that B is compared with")
    compare.add_argument("second", nargs="?", metavar="B")
    compare.add_argument(
        "--pairs", action="store_true", help="every model with its baseline, in place of A and B"
    )
    compare.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="default: those that a run's table shows",
    )
    compare.add_argument(
        "--all", action="store_true", dest="everything", help="also runs with random weights"
    )
    _add_results(compare)
    compare.add_argument("--format", choices=("table", "markdown", "csv", "json"), default="table")
    leaderboard = add(
        "leaderboard",
        "rank models on every data set, task and protocol",
        "harness leaderboard --task lost --format markdown",
    )
    _add_family(leaderboard)
    leaderboard.add_argument(
        "--pairs",
        action="store_true",
        help="only models with their baselines, together, the gain with its paired interval",
    )
    _add_everything(leaderboard)
    _add_results(leaderboard)
    leaderboard.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    leaderboard.add_argument(
        "--out", type=Path, metavar="FILE", help="write there; links to records start from there"
    )
    return [compare, leaderboard, _add_report(add)]


def _add_report(add: Add) -> ArgumentParser:
    report = add(
        "report",
        "one web page of tables, plots and pictures, which needs no other file",
        "harness report --task lost,anatomy --out report.html",
    )
    report.add_argument("--model", action="append", default=[], metavar="NAME[,NAME]")
    _add_family(report)
    _add_everything(report)
    _add_results(report)
    report.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    report.add_argument(
        "--pictures",
        type=float,
        default=7.0,
        metavar="MIB",
        help="of the page, at most, for pictures that runs saved (default: 7; 0: none)",
    )
    return report


def _add_family(command: ArgumentParser) -> None:
    command.add_argument(
        "--family",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="what a model's name begins with, up to a hyphen; vits … vitg: dinov2",
    )


def _add_everything(command: ArgumentParser) -> None:
    command.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="also changed protocols, parts of a data set and random weights",
    )


def _add_results(command: ArgumentParser) -> None:
    command.add_argument(
        "--results",
        action="append",
        default=[],
        type=results_folder,
        metavar="FOLDER",
        help="where records are (default: results); repeatable",
    )
    command.add_argument("--task", action="append", default=[], metavar="NAME[,NAME]")
    command.add_argument("--dataset", action="append", default=[], metavar="NAME[,NAME]")
