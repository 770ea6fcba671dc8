"""Which pictures are shown, under which names, and for which results of a run there are any."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.errors import HarnessError
from harness.pictured.contract import PicturedTask
from harness.schema import pictures_folder
from harness.task_names import find_task, task_names

if TYPE_CHECKING:
    from harness.plan import Cell

_ID_LENGTH = 80  # of a file name that may have 255 bytes, with room for a temporary one


class Choice(NamedTuple):
    """One picture that is to be shown: the ``number``-th (from 1) of the worst, of those round the
    median from below, or of the best; ``place`` is its rank among all, from the worst, from 1."""

    kind: Literal["worst", "median", "best"]
    number: int
    place: int
    id: str

    @property
    def file_name(self) -> str:
        """``worst-1-ID.png``. The id is a stranger's text: what is no plain letter, digit or one of
        ``. + -`` becomes ``_``, and of a long one the end is kept, where most differ."""
        safe = re.sub(r"[^A-Za-z0-9.+-]+", "_", self.id)[-_ID_LENGTH:]
        return f"{self.kind}-{self.number}-{safe}.png"


FILE_NAME = re.compile(r"(worst|median|best)-[0-9]+-[A-Za-z0-9._+-]*\.png")
"""What ``Choice.file_name`` gives."""


def choose(standing: Mapping[str, float], count: int) -> list[Choice]:
    """The worst, median and best ``count`` of the pictures in ``standing``, none of them twice.

    Equal ones are ranked by id. Where there are fewer than three times ``count``, each kind has a
    third of them; of what is left over the worst has the first and the best the second.
    """
    ranked = sorted((value, name) for name, value in standing.items() if not math.isnan(value))
    whole = len(ranked)
    worst, median, best = (min(count, (whole + more) // 3) for more in (2, 0, 1))
    middle = worst + (whole - worst - median - best) // 2
    places: list[tuple[Literal["worst", "median", "best"], Sequence[int]]] = [
        ("worst", range(worst)),
        ("median", range(middle, middle + median)),
        ("best", range(whole - 1, whole - 1 - best, -1)),
    ]
    return [
        Choice(kind, number, place + 1, ranked[place][1])
        for kind, chosen in places
        for number, place in enumerate(chosen, start=1)
    ]


def notices(cells: Sequence[Cell], count: int) -> list[str]:
    """What is to be said where pictures are wanted and will not be made.

    Raises ``HarnessError`` where no task of the run can show any.
    """
    if not count:
        return []
    tasks = {cell.task.name: cell.task for cell in cells}
    unable = [name for name, task in tasks.items() if not isinstance(task, PicturedTask)]
    if len(unable) == len(tasks):
        able = [name for name in task_names() if isinstance(find_task(name), PicturedTask)]
        raise HarnessError(
            f"--save-predictions: {', '.join(unable)} says nothing of single pixels that could be "
            f"shown (of the tasks, {', '.join(able) or 'none'} can)"
        )
    told = []
    if unable:
        told.append(
            f"--save-predictions: not for {', '.join(unable)}, which says nothing of single pixels"
        )
    for cell in cells:
        if cell.done is None or not isinstance(cell.task, PicturedTask):
            continue
        folder = pictures_folder(cell.path)
        there = f"its pictures of then are in {folder}; " if folder.is_dir() else ""
        told.append(f"{cell.path}: done already: {there}--overwrite makes its pictures anew")
    return told
