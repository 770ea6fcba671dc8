"""``make fuzz SECONDS=20 TARGET=voc,coco``: every reader against damaged and hostile files.

A case is a target and a seed, from which all of it is drawn: ``make fuzz TARGET=voc SEED=17`` runs
one again, with its traceback, and leaves its files. A case that takes more than 5 seconds, kills
its process or wants 3 GiB more than the process had is a finding, as is any exception but
``HarnessError``. Exit status 1 where there are findings.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

CASE_SECONDS = 5.0
MORE_BYTES = 3 * 2**30
MOST_FINDINGS = 20


class Finding(NamedTuple):
    seed: int
    what: str


def _work(target: str, first: int, pipe: Connection, folder: Path) -> None:
    """Say each seed before it runs and what became of it after, until nobody listens."""
    from fuzz.targets import parse_ours_once, run_case

    parse_ours_once()
    warnings.simplefilter("ignore")
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders talk
    run_case(target, 0, folder)  # imports and valid folders are no case's time or memory
    with Path("/proc/self/statm").open() as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_BYTES, resource.RLIM_INFINITY))
    seed = first
    while True:
        pipe.send((seed, None))
        try:
            run_case(target, seed, folder)
            pipe.send((seed, ""))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            pipe.send((seed, f"{type(error).__name__}: {str(error)[:150]} ({where})"))
        seed += 1


def fuzz(target: str, seconds: float, first: int, folder: Path) -> tuple[int, list[Finding]]:
    """How many cases ran in that time, and the findings, one a kind of exception and place."""
    end = time.monotonic() + seconds
    cases, seed, found = 0, first, dict[str, Finding]()
    while time.monotonic() < end and len(found) < MOST_FINDINGS:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=_work, args=(target, seed, theirs, folder), daemon=True
        )
        child.start()
        theirs.close()
        limit = 120.0  # the imports
        while time.monotonic() < end or limit > CASE_SECONDS:
            try:
                if not ours.poll(limit):
                    found["hang"] = Finding(seed, f"still running after {limit:g} s")
                    break
                seed, what = ours.recv()
            except EOFError:
                child.join()
                found["died"] = Finding(seed, f"the process died (exit code {child.exitcode})")
                break
            limit = CASE_SECONDS
            if what is None:
                continue
            cases += 1
            if what:
                place = what.partition(":")[0] + what.rpartition("(")[2]
                found.setdefault(place, Finding(seed, what))
        child.kill()
        child.join()
        if limit > CASE_SECONDS:
            raise SystemExit(f"make fuzz: {target}: no case could be begun")
        seed += 1
    return cases, list(found.values())


def main() -> int:
    from fuzz.targets import TARGETS, run_case

    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--target", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each target")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one case, and leave its files")
    options = parser.parse_args()
    names = options.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}: {', '.join(TARGETS)}")
    if options.seed is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        print(f"{names[0]} {options.seed}: its files are in {folder}/case")
        run_case(names[0], options.seed, folder / "case")
        print("reads, or is refused as it should be")
        return 0
    rows, findings = [], []
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            cases, found = fuzz(name, options.seconds, options.first, Path(folder) / "case")
        spent = f"{time.monotonic() - began:.0f}"
        rows.append([name, f"{cases:,}", spent, str(len(found))])
        findings += [(name, one) for one in found]
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(f"{'target':<12}{'cases':>10}{'seconds':>10}{'findings':>10}")
    for name, count, spent, bad in rows:
        print(f"{name:<12}{count:>10}{spent:>10}{bad:>10}")
    for name, one in findings:
        print(f"make fuzz TARGET={name} SEED={one.seed}: {one.what}")
    return 1 if findings or not all(row[1] != "0" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
