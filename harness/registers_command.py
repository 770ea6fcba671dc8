"""``harness registers``: the files that test-time registers and replaced registers read.

Imports nothing heavy before a command runs: ``arguments.py`` reads the options off it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.printable import json_text

if TYPE_CHECKING:
    from harness.interventions import NeuronFile

ABOUT = "find the neurons that test-time registers take over, or what trained registers hold"
EXAMPLE = "harness registers find vitl --data imagenet --out vitl.neurons.json"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        choices=("find", "states"),
        help="find: the neurons that make outliers, for test-time registers; states: what trained "
        "registers hold after each block, for replace_registers",
    )
    command.set_defaults(limit=None)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--data", required=True, metavar="NAME", help="a data set; train is read")
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.add_argument(
        "--pictures",
        type=int,
        default=500,
        metavar="N",
        help="at most: those with the smallest sha256 of their id (500)",
    )
    command.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of the pictures (default: the model's)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace FILE")
    found = command.add_argument_group("find")
    found.add_argument(
        "--threshold",
        default="mean+3sd",
        metavar="RULE",
        help="norm above which a patch is an outlier: a number, quantile0.98 or mean+3sd (default)",
    )
    found.add_argument(
        "--detect-layer",
        type=int,
        default=-2,
        metavar="N",
        help="where norms are read, before the final norm (-2)",
    )
    found.add_argument(
        "--top-layer",
        type=int,
        metavar="N",
        help="the last whose neurons are searched (default: where outliers first appear)",
    )
    found.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="how many neurons (default: the fewest of 1, 2, 5 … 200 that leave a hundredth of the "
        "outliers, or else those that leave fewest)",
    )
    found.add_argument(
        "--sparse",
        action="store_true",
        help="only neurons that are below 0.5 at half of a picture's tokens",
    )
    found.add_argument(
        "--rule",
        choices=("shared-scalar", "per-neuron"),
        default="shared-scalar",
        help="of the registers that the curve is measured with (default: shared-scalar)",
    )


def registers(options: argparse.Namespace, machine: Mapping[str, Any]) -> None:
    """Do what was typed and print what came of it; ``machine`` are the fields of ``Options`` that a
    command which runs a model has."""
    from harness.options import Options
    from harness.progress import Silent, for_stream, remember_interrupts
    from harness.register_neurons import Search, find
    from harness.register_states import states

    if machine["compiled"]:
        raise HarnessError("harness registers: not with --compile")
    wanted = Options(
        tasks=["registers"],
        models=[options.model],
        datasets=[options.data],
        overwrite=options.overwrite,
        **machine,
    )
    remember_interrupts()
    with Silent() if options.json else for_stream() as progress:
        if options.action == "states":
            count, size = options.pictures, options.size
            facts = states(count, size, wanted, options.out, progress)
            _print(options, {"states": str(options.out), **facts})
            return
        search = Search(
            threshold=options.threshold,
            detect_layer=options.detect_layer,
            top_layer=options.top_layer,
            top_k=options.top_k,
            sparse=options.sparse,
            rule=options.rule,
            pictures=options.pictures,
            size=options.size,
        )
        found = find(search, wanted, options.out, progress)
    if options.json:
        _print(options, {"file": str(options.out), **found.model_dump(mode="json")})
    else:
        _show(found, options)


def _print(options: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    from harness import terminal

    if options.json:
        print(json_text(facts))
    else:
        terminal.show_facts(facts)


def _show(found: NeuronFile, options: argparse.Namespace) -> None:
    from harness.console import plain_table, standard_output

    columns = "neurons moved", "outliers", "largest patch norm", "largest register norm"
    table = plain_table(*columns, right=columns)
    for point in found.curve:
        register = "" if point.register_norm is None else f"{point.register_norm:.2f}"
        share = f"{100 * point.outlier_fraction:.3f} %"
        table.add_row(str(point.neurons), share, f"{point.largest_norm:.2f}", register)
    console, settings = standard_output(), found.settings
    console.print(table)
    first = ", ".join(f"{layer}:{neuron}" for layer, neuron in found.neurons[:10])
    more = " …" if len(found.neurons) > 10 else ""
    for line in (
        f"outlier: a norm above {settings['threshold_norm']:.2f} after layer "
        f"{settings['detect_layer']}; layers to {settings['top_layer']} were searched, on "
        f"{settings['pictures']} pictures",
        f"register neurons (layer:neuron), the strongest first: {first}{more}",
        f"neuron file: {options.out}",
    ):
        console.print(line, markup=False, soft_wrap=True)
