"""``harness store``: what is in the feature store, whether it is whole, and making room."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness.console import plain_table, size, standard_output
from harness.errors import HarnessError
from harness.features import upkeep
from harness.features.store import default_folder
from harness.printable import json_text


def store(options: argparse.Namespace) -> bool:
    """Do what was typed and print it. False where damage was found and left."""
    folder = default_folder()
    if options.action == "verify":
        damaged = upkeep.verify(folder, options.repair)
        if options.json:
            _print_json([{"path": str(one.path), "what": one.what} for one in damaged])
        else:
            _show_damage(damaged, options.repair)
        return options.repair or not damaged
    rows = [key.facts() for key in _keys(options, folder)]
    if options.json:
        _print_json(rows)
    else:
        _show_keys(rows, f"{'in' if options.action == 'list' else 'removed from'} {folder}")
    return True


def _keys(options: argparse.Namespace, folder: Path) -> list[upkeep.Kept]:
    """The keys that are there, or that are removed."""
    if options.action == "list":
        return upkeep.kept(folder)
    if options.action == "prune":
        if options.max_size is None:
            raise HarnessError("harness store prune: how much may stay? --max-size 50GB")
        return upkeep.prune(folder, upkeep.parse_size(options.max_size))
    if not options.yes:
        raise HarnessError(f"harness store clear: --yes removes all features in {folder}")
    return upkeep.clear(folder)


def _show_keys(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    console = standard_output()
    if rows:
        numbers = ("pictures", "size")
        columns = ("model", "data set", "token", *numbers, "complete", "last used (UTC)", "key")
        table = plain_table(*columns, right=numbers)
        for row in rows:
            table.add_row(
                escape(row["model"] or "(damaged)"),
                escape(f"{row['dataset']} {row['split']}" if row["dataset"] else ""),
                escape(row["token"] or ""),
                f"{row['pictures']:,} of {row['of']:,}",
                size(row["bytes"]),
                "yes" if row["complete"] else "no",
                row["last_used"].replace("T", " ").rstrip("Z"),
                row["key"][:12],
            )
        console.print(table)
    text = f"{len(rows)} keys, {size(sum(row['bytes'] for row in rows))}, {where}"
    console.print(text, markup=False, soft_wrap=True)


def _show_damage(damaged: Sequence[upkeep.Damage], removed: bool) -> None:
    console = standard_output()
    for one in damaged:
        console.print(f"{one.path}: {one.what}", markup=False, soft_wrap=True)
    done = "removed; made again when wanted" if removed else "--repair removes what is damaged"
    text = f"{len(damaged)} damaged files ({done})" if damaged else "every shard is whole"
    console.print(text, markup=False, soft_wrap=True)


def _print_json(facts: object) -> None:
    print(json_text(facts))
