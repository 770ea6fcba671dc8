"""The engine ``ray``: pieces of passes and cells that are ready, dealt out to workers.

The driver holds the plan, and no pixel or token: what pieces give stays in Ray's object store
until the cell that needs it is finished, and of that the driver gets the result's files, which it
writes. Groups with the most work are opened first, and no more of them than their states have
memory for. A worker or node that is lost costs the work that it had in hand, which Ray does again;
a cell that fails is told at the end, and the rest is done.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import records, schema
from harness.backbone.sources import choose_device, inspect
from harness.engine.connection import connected
from harness.engine.pieces import Piece, cut, units
from harness.engine.worker import Finished
from harness.errors import HarnessError, after_failures
from harness.options import Options
from harness.pictured.saving import clear
from harness.plan import Cell
from harness.progress import Progress, Silent
from harness.run import HEAD_LOST, failure, groups
from harness.storage.mirrors import push, told

RETRIES = 5
"""How often a task that a dying worker or node has taken along is begun again."""
_IN_FLIGHT = 2
"""Tasks for each worker that Ray is given at once: one that runs and one that waits."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Engine:
    """Where tasks run. ``address`` of a cluster that is there (``auto``), or None for one of this
    machine alone. A task takes ``cpus`` cores and ``gpus`` of a GPU (a share, where several fit on
    one); None is one core, or one GPU with its share of the cores."""

    address: str | None = None
    cpus: int | None = None
    gpus: float | None = None


@dataclass
class _Group:
    """Cells of one model and data set. ``units`` are those that one process has to finish,
    ``failed`` says why cells will not be, ``to_see`` counts pictures of each pass (``Reading.key``)
    that nobody has read."""

    cells: list[Cell]
    work: float
    kept: float
    reference: Any = None
    pieces: list[tuple[Piece, Any]] = field(default_factory=list)
    waiting: int = 0
    units: list[list[int]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    to_see: dict[Hashable, int] = field(default_factory=dict)

    def seen_in(self, piece: Piece) -> int:
        """Pictures that ``piece`` was the first to read."""
        cell = self.cells[piece.cells[0]]
        asked = piece.role, cell.repeats[piece.repeat].seed
        key = next(read.key for read in cell.reads() if (read.role, read.seed) == asked)
        some = min(len(piece.places), self.to_see.get(key, 0))
        self.to_see[key] = self.to_see.get(key, 0) - some
        return some

    def seen_by(self, places: Iterable[int]) -> int:
        """Pictures that no piece had read when these cells were done."""
        keys = [read.key for place in places for read in self.cells[place].reads()]
        return sum(self.to_see.pop(key, 0) for key in keys)


@dataclass(frozen=True)
class _Job:
    group: _Group
    piece: Piece | None = None
    places: tuple[int, ...] = ()


def run(
    cells: Sequence[Cell], options: Options, engine: Engine, progress: Progress | None = None
) -> Iterator[tuple[Path, schema.Record]]:
    """As ``harness.run.run``, on Ray."""
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    if not todo:
        records.tidy(options.out)
        return
    records.check_writable(options.out)
    with connected(engine.address) as ray:
        driver = _Driver(ray, todo, options, engine, progress or Silent())
        try:
            yield from driver.results()
        finally:
            driver.stop()
    if driver.failures:
        raise after_failures(driver.failures, any(cell.done for cell in cells))


class _Driver:
    def __init__(
        self, ray: Any, todo: list[Cell], options: Options, engine: Engine, progress: Progress
    ) -> None:
        self._ray, self._progress = ray, progress
        self.failures: list[str] = []
        resources, self._workers = _share(ray.cluster_resources(), engine, options)
        decoding = resources["num_cpus"] - 1 if options.workers is None else options.workers
        self._options = replace(options, workers=int(decoding))
        remote = ray.remote(max_retries=RETRIES, **resources)
        self._piece = remote(_piece).options(num_returns=2)
        self._finish = remote(_finish)
        self._memory = ray.cluster_resources().get("object_store_memory", 2**30) / 2
        self._here = (
            str(Path.cwd()),
            {
                name: value
                for name, value in os.environ.items()
                if name.startswith(("HARNESS_", "HF_"))
            },
        )
        self._closed = sorted(_groups(todo), key=lambda group: -group.work)
        self._queue: deque[_Job] = deque()
        self._running: dict[Any, tuple[_Job, Any]] = {}
        self._open: list[_Group] = []
        self._cells, self._done = len(todo), 0
        pictures = sum(sum(group.to_see.values()) for group in self._closed)
        self._progress.start(f"{self._cells} cells on {self._workers} workers", pictures)

    def results(self) -> Iterator[tuple[Path, schema.Record]]:
        while True:
            self._fill()
            if not self._running:
                return
            ready, _ = self._ray.wait(list(self._running), timeout=_LOOK_SECONDS)
            self._progress.advance(0)  # where Ctrl-C is seen
            for reference in ready:
                job, payload = self._running.pop(reference)
                if job.piece is not None:
                    self._read(job, reference, payload)
                else:
                    yield from self._finished(job, reference)

    def stop(self) -> None:
        for reference in self._running:
            with contextlib.suppress(Exception):  # it may have ended with its node
                self._ray.cancel(reference, force=True)

    def _fill(self) -> None:
        """Give Ray work while it can take some."""
        while len(self._running) < _IN_FLIGHT * self._workers:
            if not self._queue and not self._open_next():
                return
            if self._queue:
                self._submit(self._queue.popleft())

    def _open_next(self) -> bool:
        """Cut the largest group that may begin; False where none may."""
        held = sum(group.kept for group in self._open)
        for group in self._closed:
            bases = [cell.base for cell in group.cells if cell.base is not None]
            if any(self._to_come(base) for base in bases):
                continue
            if self._open and held + group.kept > self._memory:
                return False
            self._closed.remove(group)
            if any(base.done is None for base in bases):
                self._fail_all(group, HEAD_LOST)
                return True
            try:
                parts = cut(group.cells, self._options, self._workers)
            except HarnessError as error:
                self._fail_all(group, str(error))
                return True
            group.reference = self._ray.put(group.cells)
            group.units = units(group.cells, parts)
            group.waiting = len(parts)
            self._open.append(group)
            self._queue.extend(_Job(group, part) for part in parts)
            self._close(group)
            return True
        return False

    def _to_come(self, base: Cell) -> bool:
        groups = [*self._closed, *self._open]
        return base.done is None and any(base is cell for group in groups for cell in group.cells)

    def _submit(self, job: _Job) -> None:
        group = job.group
        if job.piece is not None and group.failed.keys() >= set(job.piece.cells):
            group.waiting -= 1  # the pass has failed: its other pieces are in vain
            self._close(group)
            return
        whole = [group.reference]  # in a list, which Ray does not look into: read once a worker
        if job.piece is not None:
            status, payload = self._piece.remote(whole, job.piece, self._options, self._here)
            self._running[status] = job, payload
            return
        parts = [each for each in group.pieces if set(each[0].cells) & set(job.places)]
        bases = {}
        for cell in (group.cells[place] for place in job.places):
            if cell.base is not None:
                path = cell.base.path
                bases[str(path.relative_to(self._options.out))] = records.files(path)
        arguments = whole, job.places, parts, bases, self._options, self._here
        self._running[self._finish.remote(*arguments)] = job, None

    def _read(self, job: _Job, reference: Any, payload: Any) -> None:
        group = job.group
        assert job.piece is not None
        try:
            why = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            why = _told(error)
        group.waiting -= 1
        if why is None:
            self._progress.advance(group.seen_in(job.piece))
            group.pieces.append((job.piece, payload))
        else:
            group.failed.update(dict.fromkeys(job.piece.cells, why))
        self._close(group)

    def _close(self, group: _Group) -> None:
        """When all its pieces are there: what is left of its cells comes before anything else."""
        if group.waiting:
            return
        for why in dict.fromkeys(group.failed.values()):
            self._fail(group, [p for p, each in group.failed.items() if each == why], why)
        left = [[place for place in unit if place not in group.failed] for unit in group.units]
        group.units = [unit for unit in left if unit]
        self._queue.extendleft(_Job(group, places=tuple(unit)) for unit in reversed(group.units))
        self._let_go(group)

    def _let_go(self, group: _Group) -> None:
        if not group.units:
            group.pieces.clear()
            group.reference = None
            self._open.remove(group)

    def _finished(self, job: _Job, reference: Any) -> Iterator[tuple[Path, schema.Record]]:
        group = job.group
        try:
            finished: Finished = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            finished = Finished(failed=_told(error))
        left = set(job.places)
        self._progress.advance(group.seen_by(left))
        for place, name, files in finished.results:
            cell, path = group.cells[place], self._options.out / name
            left.remove(place)
            clear(schema.pictures_folder(path), self._options.out)
            cell.path, cell.done = path, records.adopt(path, files)
            self._done += 1
            self._progress.note(f"{told(path)}: done ({self._done} of {self._cells})")
            try:
                push(path)
            except HarnessError as error:
                self._fail(group, [place], str(error))
            yield cell.path, cell.done
        if finished.failed is not None:
            self._fail(group, sorted(left) or job.places, finished.failed)
        group.units.remove(list(job.places))
        self._let_go(group)

    def _fail_all(self, group: _Group, why: str) -> None:
        self._fail(group, range(len(group.cells)), why)

    def _fail(self, group: _Group, places: Sequence[int], why: str) -> None:
        self.failures.append(failure([group.cells[place] for place in places], why))
        self._progress.note(f"failed: {self.failures[-1]}")


def _share(
    there: dict[str, float], engine: Engine, options: Options
) -> tuple[dict[str, float], int]:
    """What a task is given, and how many of them fit on the cluster. On a GPU a task that says
    nothing else gets one, and the cores that fall to it decode its pictures."""
    if options.device.startswith("cuda:"):
        raise HarnessError(f"--device {options.device}: the engine ray chooses among GPUs itself")
    cores, devices = int(there.get("CPU", 1)), there.get("GPU", 0.0)
    if options.device == "cpu" or not devices:
        cpus = engine.cpus or 1
        if cpus > cores:
            raise HarnessError(f"--cpus-per-task {cpus}: the cluster has {cores} cores")
        if options.device not in ("auto", "cpu"):
            choose_device(options.device)  # it says that there is none
        return {"num_cpus": cpus, "num_gpus": 0}, cores // cpus
    gpus = engine.gpus or 1.0
    workers = int(devices / gpus + 1e-9)
    if not workers:
        raise HarnessError(f"--gpus-per-task {gpus:g}: the cluster has {devices:g} GPUs")
    cpus = engine.cpus or max(1, cores // workers)
    return {"num_cpus": cpus, "num_gpus": gpus}, max(1, min(workers, cores // cpus))


def _groups(todo: Sequence[Cell]) -> list[_Group]:
    found = []
    for _, of_model in groups(todo):
        for cells in of_model:
            facts = inspect(cells[0].entry)[0]
            passes = {key: count for cell in cells for key, count in cell.passes.items()}
            work = float(sum(passes.values())) * facts.depth * facts.width**2
            to_see = {
                read.key: read.request.pictures or len(cell.dataset.roles[read.role].samples)
                for cell in cells
                for read in cell.reads()
            }
            kept = float(sum(cell.bytes for cell in cells))
            found.append(_Group(cells, work, kept, to_see=to_see))
    return found


def _told(error: Exception) -> str:
    return f"lost {RETRIES + 1} times over: {str(error).splitlines()[0]}"


_held: dict[Any, list[Cell]] = {}


def _group(reference: Any, here: tuple[str, dict[str, str]]) -> list[Cell]:
    """In a worker: the cells of a group, read once and held until another comes."""
    import ray

    folder, environment = here
    os.environ.update(environment)
    with contextlib.suppress(OSError):  # another machine may not have it
        os.chdir(folder)
    if reference not in _held:
        _held.clear()
        _held[reference] = ray.get(reference)
    return _held[reference]


def _piece(
    whole: list[Any], part: Piece, options: Options, here: tuple[str, dict[str, str]]
) -> tuple[str | None, Any]:
    import traceback

    from harness.engine.worker import piece

    try:
        seen = piece(_group(whole[0], here), part, options)
    except HarnessError as error:
        return str(error), None
    except Exception:  # of a stranger's task or network: the other groups go on
        return traceback.format_exc(), None
    return None, seen


def _finish(
    whole: list[Any],
    places: tuple[int, ...],
    parts: list[tuple[Piece, Any]],
    bases: dict[str, dict[str, bytes]],
    options: Options,
    here: tuple[str, dict[str, str]],
) -> Finished:
    import copy

    import ray

    from harness.engine.worker import finish

    elsewhere: dict[Any, list[Any]] = {}
    parts = sorted(parts, key=lambda each: (each[0].repeat, each[0].role, each[0].places.start))
    for (part, _), seen in zip(parts, ray.get([each for _, each in parts]), strict=True):
        for place, its in seen.items():
            elsewhere.setdefault((part.repeat, part.role, place), []).append(its)
    group = [copy.copy(cell) for cell in _group(whole[0], here)]  # their paths will be set
    for cell in group:
        cell.base = copy.copy(cell.base)
    return finish(group, places, elsewhere, bases, options)
