"""What can be typed after ``harness regress``. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from harness.storage.mirrors import results_folder

FORMATS = ("table", "github", "junit", "json")


def add_gate(add: Callable[[str, str, str], ArgumentParser]) -> ArgumentParser:
    """The command ``regress``, made by ``add`` of a name, what it is about and an example."""
    command = add(
        "regress",
        "hold results against a baseline's, picture by picture; exit status 1 where a score got "
        "worse by more than the gate allows and by more than chance",
        "harness regress --baseline results/baseline --candidate build/demo",
    )
    command.add_argument(
        "--baseline",
        type=results_folder,
        required=True,
        metavar="FOLDER",
        help="records to hold against",
    )
    command.add_argument(
        "--candidate",
        type=results_folder,
        default=Path("results"),
        metavar="FOLDER",
        help="records to judge (default: results)",
    )
    command.add_argument(
        "--gate",
        type=Path,
        metavar="FILE",
        help="tolerances and rules, laid over the shipped ones (docs/ci.md)",
    )
    command.add_argument(
        "--speed",
        type=float,
        metavar="RATIO",
        help="also fail below this share of the baseline's images a second, such as 0.8",
    )
    for name in ("task", "dataset", "model"):
        command.add_argument(f"--{name}", action="append", default=[], metavar="NAME[,NAME]")
    command.add_argument("--format", choices=FORMATS, default="table")
    command.add_argument("--out", type=Path, metavar="FILE", help="write there, not to the screen")
    return command
