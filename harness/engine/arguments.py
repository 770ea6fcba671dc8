"""What can be typed of the engine. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.engine.driver import Engine


def add_engine(command: ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: pieces of passes and cells on all devices of this machine or of a cluster "
        "(needs vit-harness[cluster])",
    )
    command.add_argument(
        "--address",
        metavar="ADDRESS",
        help="ray: a cluster that is there (auto, or HOST:PORT); default: this machine alone",
    )
    command.add_argument(
        "--cpus-per-task", type=int, metavar="N", help="ray: default: 1, or a GPU's share of them"
    )
    command.add_argument(
        "--gpus-per-task", type=float, metavar="SHARE", help="ray: default: 1; 0.5: two share one"
    )


def engine(options: Namespace) -> Engine | None:
    """The cluster that was typed, or None for the local engine."""
    where = options.address, options.cpus_per_task, options.gpus_per_task
    if options.engine == "local":
        for name, value in zip(("address", "cpus-per-task", "gpus-per-task"), where, strict=True):
            if value is not None:
                raise HarnessError(f"--{name}: only with --engine ray")
        return None
    for name, value in (("--cpus-per-task", where[1]), ("--gpus-per-task", where[2])):
        if value is not None and not value > 0:
            raise HarnessError(f"{name} {value}: more than 0")
    from harness.engine.driver import Engine

    return Engine(*where)
