"""How much memory a run may take for vectors, and which cells read them in blocks instead.

Cells of one model and data set run side by side, and keep their vectors till they are done. Where
that is more than the run may take, those that keep most read theirs from the feature store again,
in blocks, if their task can. Which way they go moves no number.
"""

from __future__ import annotations

import os
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.options import Options
    from harness.plan import Cell

VARIABLE = "HARNESS_MEMORY"
SHARE = 0.5
"""Of the memory that is free where a run begins: sorting and joining vectors takes them twice."""
_BLOCKS = 16
"""A block is that part of what a run may take: of the vectors that are searched and the next ones,
of those that ask, with what is computed of them."""
LARGEST_BLOCK = 2**29
"""Bytes; larger ones gain nothing."""
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


class Budget(NamedTuple):
    """Bytes of vectors that may be in memory, and who says so."""

    bytes: int
    told: str

    @property
    def block(self) -> int:
        return min(LARGEST_BLOCK, max(1, self.bytes // _BLOCKS))


def add_memory(command: ArgumentParser) -> None:
    command.add_argument(
        "--memory",
        metavar="SIZE",
        help="of vectors, such as 8GiB: more are read from the feature store in blocks, with the "
        f"same results (${VARIABLE}, else half of what is free)",
    )


def asked_memory(text: str | None) -> int | None:
    """What was typed, in bytes. Raises ``HarnessError``."""
    return None if text is None else _positive(text, "--memory")


def budget(options: Options) -> Budget:
    """Of one run in this process. Raises ``HarnessError`` for a variable that is no size."""
    if options.memory is not None:
        return Budget(options.memory, "--memory")
    if text := os.environ.get(VARIABLE):
        return Budget(_positive(text, VARIABLE), VARIABLE)
    return Budget(int(free() * SHARE), "half of what is free")


def free() -> int:
    """Bytes of memory that this process could take: of the machine, or of its container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        there = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):  # not Linux
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in _CGROUPS:
        try:
            there = min(there, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # none, or without a limit ("max")
            continue
    return max(there, 0)


def settle(cells: Sequence[Cell], options: Options, begins: bool = True) -> None:
    """Say of every cell that is to be done whether it reads its vectors in blocks (``Cell.block``).

    Raises ``HarnessError`` where vectors do not fit and there is no store to read them from, and,
    of a run that ``begins``, where the store's disk has not the room for them.
    """
    from harness.run import groups

    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    if not todo:
        return
    limit = budget(options)
    for _, of_model in groups(todo):
        for group in of_model:
            _settle(group, limit)
    streamed = [cell for cell in todo if cell.block is not None]
    if streamed and begins:
        _check_room(streamed, options)


def _settle(group: Sequence[Cell], limit: Budget) -> None:
    from harness.console import size

    able = [cell for cell in group if _can_stream(cell)]
    for cell in sorted(able, key=lambda cell: -cell.bytes):
        kept = sum(each.bytes for each in group)
        if kept <= limit.bytes:
            return
        if not cell.stored:
            raise HarnessError(
                f"{cell.entry.name} · {cell.dataset.name}: {size(kept)} would be kept in memory, "
                f"most of it by {cell.task.name}, and {size(limit.bytes)} may be ({limit.told}); "
                "without --no-store it would be read from the feature store in blocks; or allow "
                "more with --memory SIZE, or take fewer pictures with --limit N"
            )
        cell.block = limit.block


def _can_stream(cell: Cell) -> bool:
    from harness.features.keys import can_be_keyed

    able = [each for each in cell.requests.values() if each.streamed_bytes is not None]
    return bool(able) and all(each.storable and can_be_keyed(each.view) for each in able)


def _check_room(streamed: Sequence[Cell], options: Options) -> None:
    from harness.console import size
    from harness.features.store import default_folder
    from harness.forecast import forecast

    needed = forecast(streamed, options).stored_by(streamed)
    folder = default_folder()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    room = shutil.disk_usage(there).free
    if needed > room:
        raise HarnessError(
            f"feature store {folder}: {size(needed)} of vectors do not fit in memory and are to be "
            f"stored, and the disk has {size(room)}; HARNESS_CACHE names another folder, `harness "
            "store prune` makes room, --memory SIZE allows more memory"
        )


def _positive(text: str, name: str) -> int:
    from harness.features.upkeep import parse_size

    found = parse_size(text, name)
    if not found:
        raise HarnessError(f"{name} {text}: more than 0 bytes")
    return found
