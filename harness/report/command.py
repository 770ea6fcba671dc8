"""``harness report``: read records, write the page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.atomic import publish
from harness.console import size
from harness.errors import HarnessError
from harness.printable import json_text, printable
from harness.registry import Registry
from harness.report.contents import contents
from harness.report.page import page
from harness.tables.rows import Chosen, read_results

Names = Callable[[str, Sequence[str]], list[str]]


def report(
    options: argparse.Namespace, names: Names, folders: Sequence[Path], tell: Callable[[str], None]
) -> None:
    """Do what was typed; ``names`` reads comma lists. Raises ``HarnessError``."""
    if not 0 <= options.pictures < math.inf:
        raise HarnessError(f"--pictures {options.pictures}: MiB of the page, 0 or more")
    chosen = Chosen(
        tasks=names("task", options.task),
        datasets=names("dataset", options.dataset),
        models=names("model", options.model),
        families=names("family", options.family),
        random=options.everything,
    )
    registry = Registry.load(options.models)
    results = read_results(folders, chosen, tell)
    there = {each.model for each in results}
    if absent := [name for name in chosen.models if name not in there]:
        told = ", ".join(map(str, folders))
        raise HarnessError(f"no result of {' or '.join(absent)} in {told}")
    out: Path = options.out
    made = contents(
        results,
        registry,
        out.parent,
        options.everything,
        int(options.pictures * 2**20),
        tell,
    )
    data = page(made)
    publish(out, data)
    if made.left_out:
        tell(f"{made.left_out} saved pictures had no room (--pictures {options.pictures:g} MiB)")
    count = len(made.origins)
    if options.json:
        print(json_text({"out": str(out), "bytes": len(data), "records": count}))
    else:
        print(printable(f"{out}: {count:,} records, {size(len(data))}"))
