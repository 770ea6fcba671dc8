"""``make faults SECONDS=60 TARGET=run,report``: commands that are disturbed, and what is left.

A case is a target and a seed, from which the fault and its moment are drawn: ``make faults
TARGET=run SEED=17`` runs one again and shows what the command said. Ctrl-C ends the campaign with
the table of what has run. After the fault whatever is
there has to be whole and as an undisturbed run has it; what had been there before has to be there
still; and the same command has to end with everything. Exit status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults import s3
from faults.cases import FAULTS, Case, faults_of, run_case
from faults.cluster import started
from faults.command import end_all
from faults.place import in_a_namespace
from faults.targets import OF_RAY, TARGETS, RayRuns, Target, make
from faults.urls import UrlRuns
from faults.world import World, make_world

Told = tuple[str, int, Case]
"""The target's name, the seed, and what came of it."""
KINDS = {
    "lost": "lost results",
    "wrong": "wrong results",
    "traceback": "tracebacks",
    "untidy": "untidy",
}


def warm() -> None:
    """Import what commands import, once for all that are forked from here."""
    import faiss  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import timm  # noqa: F401

    import harness.cli
    import harness.further
    import harness.look.command
    import harness.report.command
    import harness.run  # noqa: F401
    from harness.task_names import find_task, task_names

    for name in task_names():
        find_task(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--target", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--runs", type=int, help="so many for each target, not so many seconds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one case, and show what it said")
    parser.add_argument("--fault", help="this fault, not the one that the seed draws")
    options = parser.parse_args()
    names = options.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}: {', '.join(TARGETS)}")
    if options.fault is not None and options.fault not in FAULTS:
        parser.error(f"no fault {options.fault!r}: {', '.join(FAULTS)}")
    in_a_namespace()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warm()
    cases: list[Told] = []
    here = [name for name in names if name not in OF_RAY]
    there = [name for name in names if name in OF_RAY]
    cut_short = False
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            for of_ray, some in ((False, here), (True, there)):
                if some:
                    world = make_world(folder / f"world{of_ray:d}", of_ray)
                    stack.callback(world.place.close)
                    stack.callback(end_all)
                    for name in some:
                        target = _ready(name, world, stack)
                        for case in _campaign(target, options):
                            cases.append(case)
    except KeyboardInterrupt:
        pass
    except SystemExit as error:  # what has run is told all the same
        print(error.code, file=sys.stderr)
        cut_short = True
    return max(summary(cases), int(cut_short))


def _ready(name: str, world: World, stack: contextlib.ExitStack) -> Target:
    """The target with the servers that it needs, which end with ``stack``."""
    world.place.environment = {}
    target = make(name, world)
    if isinstance(target, UrlRuns):
        target.server = stack.enter_context(s3.started())
    if name == "ray":
        assert isinstance(target, RayRuns)
        target.cluster = stack.enter_context(started(world.root.parent / "nodes"))
    return target


def _campaign(target: Target, options: argparse.Namespace) -> Iterator[Told]:
    count = 0
    if options.fault is not None and options.fault not in (there := faults_of(target)):
        raise SystemExit(f"{target.name}: no fault {options.fault!r}: {', '.join(there)}")
    target.measure()
    end, seed = time.monotonic() + options.seconds, options.first
    if options.seed is not None:
        seed, options.runs = options.seed, 1
    while count < options.runs if options.runs else time.monotonic() < end:
        case = run_case(target, seed, options.fault)
        state = "; ".join(f"{one.kind}: {one.what}" for one in case.wrong[:3])
        state = state or ("ok" if case.landed else "came too late each time")
        print(f"{target.name} {seed} {case.fault}: {state}", file=sys.stderr, flush=True)
        if options.seed is not None:
            print(target.world.place.log.read_text(errors="replace"))
        yield target.name, seed, case
        count, seed = count + 1, seed + 1


def summary(cases: Sequence[Told]) -> int:
    """Print what came of all; 1 where there are findings."""
    if not any(case.landed for _, _, case in cases):
        print("no fault landed")
        return 1
    columns = ["runs", "landed", *KINDS.values()]
    print(f"{'command, fault':<30}" + "".join(f"{column:>15}" for column in columns))
    rows: dict[str, list[Case]] = {}
    for name, _, case in cases:
        rows.setdefault(f"{name}, {case.fault}", []).append(case)
    rows["all"] = [case for _, _, case in cases]
    for name, of_row in rows.items():
        landed = [case for case in of_row if case.landed]
        tries = sum(case.tries for case in of_row)
        counts = Counter(kind for case in landed for kind in {one.kind for one in case.wrong})
        shown = [str(len(landed)), f"{len(landed) / tries:.0%}"]
        shown += [str(counts[kind]) for kind in KINDS]
        print(f"{name:<30}" + "".join(f"{each:>15}" for each in shown))
    for name, seed, case in cases:
        for one in case.wrong[:3]:
            again = f"make faults TARGET={name} SEED={seed}"
            print(f"{again} ({case.fault}): {one.kind}: {one.what}")
    return 1 if any(case.wrong for _, _, case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
