"""How long passes and fits take on this machine, from a little of each.

Passes are those of a run (``run_pass``: decoding, forward passes, folds that are fed), stopped
after some seconds; heads are fitted on the pictures that came. Nothing is written: the feature
store is neither read nor filled, and no record is made.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from harness.backbone.arithmetic import exact_float32
from harness.backbone.vit import Backbone
from harness.data.dataset import ROLES, First, Role
from harness.errors import HarnessError
from harness.features.cutoffs import resolve
from harness.features.keys import RunningModel
from harness.features.loading import processes
from harness.features.outliers import ESTIMATED_ON
from harness.options import Options
from harness.passes import Running, context_of, run_pass, that_share
from harness.plan import Cell, scored_role
from harness.progress import Progress, Silent
from harness.recording import Scored, gigaflops_of, metrics_of
from harness.registry import Registry
from harness.run import groups, load_model
from harness.task import Batch, Evaluation, Outcome

PASS_SECONDS = 3.0
"""After which a pass is stopped, once it has given two batches."""
FIT_SECONDS = 10.0
"""After which a fit is stopped: it then counts as that long at least."""
_CUTOFF_PICTURES = 16
_SHORT = 0.05
"""Seconds of a fit below which it is taken to grow as the pictures do, and not tried again."""

Key = tuple[str, str, Role, Hashable]


class _Enough(BaseException):
    """Not an ``Exception``: what a task does about its own errors is not to catch it."""


@dataclass(frozen=True)
class PassTime:
    """Seconds of one pass: until its first picture, for each, and how many were read."""

    startup: float
    each: float
    read: int

    def of(self, pictures: float) -> float:
        return self.startup + self.each * pictures if pictures else 0.0


@dataclass(frozen=True)
class FitTime:
    """Seconds of what a repeat of a cell does between and after its passes: fits, scores and their
    intervals. ``how``: ``measured``,
    ``extrapolated`` (from fits on fewer pictures), ``at least`` (it was stopped), or
    ``unknown`` with the reason in ``why``."""

    seconds: float
    how: str
    why: str = ""


@dataclass
class Measured:
    """Passes by ``key_of``, fits by the cell's path, seconds to load by model."""

    passes: dict[Key, list[PassTime]] = field(default_factory=dict)
    fits: dict[Path, FitTime] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)


def key_of(cell: Cell, role: Role) -> Key:
    """Passes in which this agrees take alike, whatever their seed."""
    pictures = cell.dataset.fingerprints[role]
    return cell.entry.name, cell.dataset.name, role, (pictures, *cell.requests[role].sharing)


def measure(cells: Sequence[Cell], options: Options, progress: Progress) -> Measured:
    """Of the cells that are to be done, model by model."""
    found = Measured()
    registry = Registry.load(options.model_files, options.allow_code)
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    for entry, of_model in groups(todo):
        began = time.perf_counter()
        backbone = load_model(entry, options, registry)
        gigaflops_of(entry)  # which every record has
        found.loads[entry.name] = time.perf_counter() - began
        for group in of_model:
            progress.note(f"measuring {entry.name} on {group[0].dataset.name}")
            with exact_float32():
                _group(found, backbone, group, options)
        del backbone
    return found


@dataclass
class _Fitting:
    """A cell in one round. ``pictures`` that it has seen, of ``wanted``."""

    place: int
    seconds: float = 0.0
    pictures: int = 0
    wanted: int = 0
    cutoffs: float = 0.0  # seconds to estimate them in the run
    stopped: bool = False
    failed: str = ""


def _group(found: Measured, backbone: Backbone, group: list[Cell], options: Options) -> None:
    first = _round(found, backbone, group, options, None)
    cut_short = [
        each
        for each in first
        if each.pictures < each.wanted
        and each.seconds > _SHORT
        and not (each.failed or each.stopped)
    ]
    # What grows with the pictures, and what is the same for any number, two sizes tell apart.
    again: dict[int, _Fitting] = {}
    if cut_short:
        chosen = [group[each.place] for each in cut_short]
        half = {
            key: max(1, timed[-1].read // 2)
            for key, timed in found.passes.items()
            if key[:2] == (backbone.name, group[0].dataset.name)
        }
        second = _round(Measured(), backbone, chosen, options, half)
        again = {one.place: other for one, other in zip(cut_short, second, strict=True)}
    for each in first:
        found.fits[group[each.place].path] = _fit_time(each, again.get(each.place))


def _fit_time(one: _Fitting, half: _Fitting | None) -> FitTime:
    if one.failed:
        return FitTime(0.0, "unknown", one.failed)
    if one.stopped:
        return FitTime(one.cutoffs + one.seconds, "at least")
    if one.pictures >= one.wanted:
        return FitTime(one.cutoffs + one.seconds, "measured")
    if one.pictures and one.seconds <= _SHORT:
        return FitTime(one.cutoffs + one.seconds / one.pictures * one.wanted, "extrapolated")
    if half is None or half.failed or half.stopped or half.pictures >= one.pictures:
        return FitTime(0.0, "unknown", f"only {one.pictures} of {one.wanted} pictures were read")
    slope = max(0.0, (one.seconds - half.seconds) / (one.pictures - half.pictures))
    seconds = one.seconds + slope * (one.wanted - one.pictures)
    return FitTime(one.cutoffs + seconds, "extrapolated")


def _round(
    found: Measured,
    backbone: Backbone,
    group: list[Cell],
    options: Options,
    most: dict[Key, int] | None,
) -> list[_Fitting]:
    """The first repeat of every cell, as the run has it, each pass cut short; ``most`` pictures of
    each, or as many as some seconds give."""
    fitting = [_Fitting(place) for place in range(len(group))]
    running: list[tuple[_Fitting, Running]] = []
    estimated: dict[Hashable, float] = {}
    for each, cell in zip(fitting, group, strict=True):
        with _timed(each):
            running.append((each, _begin(backbone, cell, options, each)))
        _shared_cutoffs(estimated, each, cell)
        if each.failed:
            running.append((each, _unheard(backbone, cell)))
    for role in ROLES:
        listeners = [(each, one) for each, one in running if role in one.cell.repeats[0].requests]
        for each, one in listeners:
            one.folds = not (each.failed or each.stopped)
        for sharing in that_share([one for _, one in listeners], role):
            timed = _pass(backbone, role, sharing, options, most)
            for each, one in listeners:
                if any(one is other for other in sharing):
                    each.pictures += timed.read
                    each.wanted += _pictures(one.cell, role)
            found.passes.setdefault(key_of(sharing[0].cell, role), []).append(timed)
        for each, one in listeners:
            if one.folds:
                with _timed(each):
                    one.evaluation.end(role)
    for each, one in running:
        if not (each.failed or each.stopped):
            with _timed(each):
                outcome = one.evaluation.finish()
                metrics_of(outcome, one.cell.dataset.fingerprints[scored_role(one.cell.dataset)])
    return fitting


def _pictures(cell: Cell, role: Role) -> int:
    return cell.requests[role].pictures or len(cell.dataset.roles[role].samples)


def _shared_cutoffs(estimated: dict[Hashable, float], fitting: _Fitting, cell: Cell) -> None:
    """Those of one rule are estimated once and kept in the store."""
    role = next(role for role in ROLES if role in cell.requests)
    key = key_of(cell, role), cell.requests[role].ruled
    if cell.stored and key in estimated:
        fitting.cutoffs = 0.0
    estimated[key] = fitting.cutoffs


def _begin(backbone: Backbone, cell: Cell, options: Options, fitting: _Fitting) -> Running:
    """As ``passes.begin``, with cut-offs for outliers that a few pictures give."""
    if cell.base is not None:
        raise HarnessError("the head that it judges is not there yet")
    repeat = cell.repeats[0]
    role = next(role for role in ROLES if role in repeat.requests)
    pictures = len(cell.dataset.roles[role].samples)
    few = min(pictures, _CUTOFF_PICTURES)
    began = time.perf_counter()
    cutoffs, passes = resolve(
        backbone,
        RunningModel.of(backbone, cell.entry, cell.weights_from),
        First(cell.dataset.roles[role], few),
        cell.source(role, repeat.seed),
        repeat.requests[role].ruled,
        None,
        options.batch_size,
        processes(options.workers),
        options.on_bad_picture == "skip",
    )
    if passes:
        spent = time.perf_counter() - began
        fitting.seconds -= spent
        fitting.cutoffs = spent / few * min(pictures, ESTIMATED_ON)
    context = context_of(backbone.architecture, cell, repeat, cutoffs, str(backbone.device))
    return Running(cell, repeat, cell.task.start(context), context, Scored())


def _unheard(backbone: Backbone, cell: Cell) -> Running:
    """A cell whose pass is measured and whose fold is not: it is fed nothing."""
    repeat = cell.repeats[0]
    ruled = {rule: 0.0 for request in repeat.requests.values() for _, rule in request.ruled}
    context = context_of(backbone.architecture, cell, repeat, ruled)
    return Running(cell, repeat, _Deaf(), context, Scored(), folds=False)


class _Deaf(Evaluation):
    def update(self, role: Role, batch: Batch) -> None:
        raise NotImplementedError

    def finish(self) -> Outcome:
        raise NotImplementedError

    def state(self) -> object:
        raise NotImplementedError

    def load(self, state: object) -> None:
        raise NotImplementedError

    def merge(self, other: Evaluation) -> None:
        raise NotImplementedError


class _Clock(Silent):
    """Stops a pass when it has been read for long enough, or enough of it."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self.marks: list[tuple[float, int]] = []

    def start(self, what: str, pictures: int) -> None:
        self.began, self.total, self.read = time.perf_counter(), pictures, 0

    def advance(self, pictures: int) -> None:
        super().advance(pictures)
        now = time.perf_counter()
        self.read += pictures
        self.marks.append((now, self.read))
        if self.read >= self.total or len(self.marks) < 2:
            return
        if now - self.began > PASS_SECONDS or (self._most is not None and self.read >= self._most):
            raise _Enough


def _pass(
    backbone: Backbone,
    role: Role,
    sharing: list[Running],
    options: Options,
    most: dict[Key, int] | None,
) -> PassTime:
    clock = _Clock(None if most is None else most.get(key_of(sharing[0].cell, role)))
    with contextlib.suppress(_Enough):
        run_pass(backbone, role, sharing, options, clock, None)
    seconds = time.perf_counter() - clock.began
    if clock.read >= clock.total or len(clock.marks) < 2:
        return PassTime(0.0, seconds / max(1, clock.read), clock.read)
    (first, some), (last, read) = clock.marks[0], clock.marks[-1]
    each = (last - first) / (read - some)
    return PassTime(max(0.0, first - clock.began - each * some), each, read)


@contextlib.contextmanager
def _timed(fitting: _Fitting) -> Iterator[None]:
    """Adds what happens inside to a fit, and stops it when it has taken its time."""
    began = time.perf_counter()
    try:
        with _at_most(FIT_SECONDS - fitting.seconds):
            yield
    except _Enough:
        fitting.stopped = True
    except Exception as error:  # of a few pictures only, a task may fail in any way
        fitting.failed = str(error) or type(error).__name__
    fitting.seconds += time.perf_counter() - began


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Where the system has such a timer, and in the main thread alone."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def enough(number: int, frame: FrameType | None) -> None:
        raise _Enough

    before: Callable[..., object] | int | None = signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
