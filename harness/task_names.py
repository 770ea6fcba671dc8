"""Tasks by name: ours and a stranger's, through the entry-point group ``harness.tasks``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from harness.documents import unknown
from harness.errors import HarnessError
from harness.task import Protocol, Task


@cache
def task_names() -> tuple[str, ...]:
    return tuple(sorted(point.name for point in entry_points(group="harness.tasks")))


def find_task(name: str) -> Task[Any]:
    """The task of that name, ours or a stranger's. Raises ``HarnessError`` with a suggestion."""
    points = {point.name: point for point in entry_points(group="harness.tasks")}
    if name not in points:
        raise unknown("task", name, points, "harness tasks")
    try:
        task = points[name].load()
    except Exception as error:  # a stranger's package may fail in any way
        raise HarnessError(
            f"task {name!r} ({points[name].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(task, Task):
        raise HarnessError(f"task {name!r} ({points[name].value}) is no harness.task.Task")
    if lacking := [each for each in ("name", "summary", "protocols") if not hasattr(task, each)]:
        raise HarnessError(
            f"task {name!r} ({points[name].value}) has no {' and no '.join(lacking)}"
        )
    known = task.protocols
    if not (isinstance(known, Mapping) and known) or not all(
        isinstance(protocol, Protocol) for protocol in known.values()
    ):
        raise HarnessError(
            f"task {name!r} ({points[name].value}): `protocols` is no mapping of names to "
            "harness.task.Protocol objects, at least one"
        )
    return task
