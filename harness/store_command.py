"""``harness store``: what is in the feature store, whether it is whole, and making room."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from harness.console import plain_table, size, standard_output
from harness.errors import HarnessError
from harness.features import shared_upkeep, upkeep
from harness.features.shared import SharedStore, kept_in, user_store
from harness.features.store import Store
from harness.printable import json_text


def store(options: argparse.Namespace) -> bool:
    """Do what was typed and print it. False where damage was found and left."""
    store = user_store()
    if options.action == "verify":
        damaged = _verify(store, options.repair)
        if options.json:
            _print_json([{"path": str(one.path), "what": one.what} for one in damaged])
        else:
            _show_damage(damaged, options.repair)
        return options.repair or not damaged
    rows = [key.facts() for key in _keys(options, store)]
    if options.json:
        _print_json(rows)
    else:
        _show_keys(rows, f"{'in' if options.action == 'list' else 'removed from'} {store.place}")
    return True


def _verify(store: Store, repair: bool) -> list[upkeep.Damage]:
    if isinstance(store, SharedStore):
        return shared_upkeep.verify_there(store.remote, repair)
    return upkeep.verify(store.folder, repair)


def _keys(options: argparse.Namespace, store: Store) -> list[upkeep.Kept]:
    """The keys that are there, or that are removed."""
    shared = store if isinstance(store, SharedStore) else None
    if options.action == "list":
        return kept_in(store)
    if options.action == "prune":
        if options.max_size is None:
            raise HarnessError("harness store prune: how much may stay? --max-size 50GB")
        most = upkeep.parse_size(options.max_size)
        if shared is not None:
            return shared_upkeep.prune_there(shared.remote, most)
        return upkeep.prune(store.folder, most)
    if not options.yes:
        raise HarnessError(f"harness store clear: --yes removes all features in {store.place}")
    return shared_upkeep.clear_there(shared.remote) if shared else upkeep.clear(store.folder)


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
