"""What can be typed after ``harness tasks``. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable


def add_tasks(add: Callable[[str, str, str], ArgumentParser]) -> ArgumentParser:
    """The command ``tasks``, made by ``add`` of a name, what it is about and an example."""
    tasks = add(
        "tasks",
        "list the tasks and their protocols, or check that one keeps the contract",
        "harness tasks check lost",
    )
    tasks.add_argument("action", nargs="?", choices=("list", "check"), default="list")
    tasks.add_argument("name", nargs="?", help="the task to check")
    tasks.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="check: these alone (default: all of the task)",
    )
    tasks.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="check: change a setting, so that few small pictures do; repeatable",
    )
    tasks.add_argument(
        "--model", default="nano-reg4", metavar="NAME", help="check: with this one (nano-reg4)"
    )
    tasks.add_argument(
        "--weights",
        choices=("released", "random"),
        default="released",
        help="check: random, where the model's are not here",
    )
    tasks.add_argument(
        "--dataset",
        metavar="NAME",
        help="check: on this one (default: a few pictures that are painted, with every label)",
    )
    tasks.add_argument(
        "--limit",
        type=int,
        default=24,
        metavar="N",
        help="check: of --dataset the first N pictures of each split (24)",
    )
    return tasks
