"""What can be typed after ``harness results``. Imports nothing heavy."""

from __future__ import annotations

import argparse

from harness.storage.mirrors import results_folder

ABOUT = "look folders of results over, bring them together, or print the record's schema"
EXAMPLE = "harness results check results"


def add_results(command: argparse.ArgumentParser) -> None:
    """The actions of the command."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name, help=about, description=about, epilog=f"example: {example}", allow_abbrev=False
        )
        # Suppressed: `harness results --json check` holds too.
        action.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print JSON for a program",
        )
        return action

    check = add(
        "check",
        "whether every record is whole, in its place, and says what its table says",
        "harness results check results",
    )
    check.add_argument(
        "folders", nargs="*", type=results_folder, metavar="FOLDER", help="default: results"
    )
    merge = add(
        "merge",
        "copy the records of several folders, with what lies beside them, into one",
        "harness results merge gpu1/results gpu2/results --into results",
    )
    merge.add_argument("sources", nargs="+", type=results_folder, metavar="SOURCE")
    merge.add_argument(
        "--into",
        type=results_folder,
        required=True,
        metavar="FOLDER",
        help="made where it is missing",
    )
    merge.add_argument(
        "--prefer",
        choices=("first", "last"),
        help="which of results that differ is kept; what is in FOLDER comes before all sources "
        "(default: nothing is copied)",
    )
    merge.add_argument("--dry-run", action="store_true", help="print what would be done and stop")
    add(
        "schema",
        "print the JSON Schema of a record (docs/record.schema.json)",
        "harness results schema > record.schema.json",
    )


def results(options: argparse.Namespace) -> int:
    """Do what was typed; the exit status."""
    from harness.results.command import run

    return 0 if run(options) else 2
