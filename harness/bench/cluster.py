"""What the engine ``ray`` costs and gains: the same cell with it and without, in one run."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.engine.connection import connected
from harness.errors import HarnessError
from harness.features.store import SHARD
from harness.options import Options
from harness.plan import plan

_PICTURES = 10_000
_MODEL, _TASK, _DATASET = "nano", "knn", "scenes-cluster"
_SMALL = ("scenes-first", "scenes-second")
"""A data set for each of two workers, so that both are up when it is over."""
_PAIRS = 2
_FEW = 100


def cluster(pictures: int | None = None) -> dict[str, Any]:
    """Seconds of one kNN cell over so many painted pictures (9 of 10 train), nothing stored before:

    * by the local engine and by one Ray worker, each with one decoding process, in turns; what a
      pair gives is ``ray_over_local``;
    * by one Ray worker and by two, none with a decoding process: ``times_faster``.

    ``start_seconds`` is from nothing to the end of two small cells: Ray, the workers' imports and
    their model; it is in none of the other figures. Needs two cores.
    """
    count = _PICTURES if pictures is None else pictures
    if count < 2 * SHARD:
        raise HarnessError(f"harness bench cluster --limit {count}: at least {2 * SHARD:,}")
    cores = os.cpu_count() or 1
    if cores < 2:
        raise HarnessError("harness bench cluster: two cores are needed")
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        file = Path(folder) / "datasets.yaml"
        lines = []
        for name, total in ((_DATASET, count), *((name, _FEW) for name in _SMALL)):
            split = f"count: {{train: {total - total // 10}, test: {total // 10}}}"
            lines.append(f"{name}: {{format: scenes, {split}}}\n")
        file.write_text("".join(lines))

        def seconds(cpus: int | None, workers: int, *names: str) -> float:
            return _seconds(file, names or (_DATASET,), cpus, workers)

        seconds(None, 1, *_SMALL)  # libraries set themselves up on their first call
        locals_, rays, starts = [], [], []
        for _ in range(_PAIRS):
            locals_.append(seconds(None, 1))
            with _warm(2, lambda: seconds(2, 1, *_SMALL)) as start:
                starts.append(start)
                rays.append(seconds(2, 1))
        with _warm(1, lambda: seconds(1, 0, *_SMALL)):
            one = seconds(1, 0)
        with _warm(2, lambda: seconds(1, 0, *_SMALL)):
            two = seconds(1, 0)
    pairs = [ray / local for ray, local in zip(rays, locals_, strict=True)]
    return {
        "model": _MODEL,
        "task": _TASK,
        "pictures": count,
        "cores": cores,
        "pairs": _PAIRS,
        "local_images_per_second": round(count / statistics.median(locals_), 3),
        "ray_images_per_second": round(count / statistics.median(rays), 3),
        "ray_over_local": round(statistics.median(pairs), 4),
        "ray_over_local_of_pairs": [round(pair, 4) for pair in pairs],
        "start_seconds": round(max(starts), 3),
        "one_worker_images_per_second": round(count / one, 3),
        "two_workers_images_per_second": round(count / two, 3),
        "times_faster": round(one / two, 3),
    }


@contextmanager
def _warm(cores: int, first: Callable[[], float]) -> Iterator[float]:
    """Ray with so many cores, warmed up by ``first``; how long both took."""
    began = time.perf_counter()
    with connected(None, num_cpus=cores, num_gpus=0):
        first()
        yield time.perf_counter() - began


def _seconds(file: Path, datasets: Sequence[str], cpus: int | None, workers: int) -> float:
    """Of one run that finds nothing stored; ``cpus`` of a Ray task, or None for the local
    engine."""
    from harness import run
    from harness.engine import driver

    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        before = os.environ.get("HARNESS_CACHE")
        os.environ["HARNESS_CACHE"] = str(Path(folder) / "features")
        try:
            options = Options(
                tasks=[_TASK],
                models=[_MODEL],
                datasets=datasets,
                dataset_files=[file],
                settings={"k": [20], "resize": 128, "crop": 128},
                out=Path(folder) / "results",
                device="cpu",
                workers=workers,
            )
            cells = plan(options)
            began = time.perf_counter()
            if cpus is None:
                found = list(run.run(cells, options))
            else:
                found = list(driver.run(cells, options, driver.Engine(cpus=cpus)))
            took = time.perf_counter() - began
        finally:
            if before is None:
                del os.environ["HARNESS_CACHE"]
            else:
                os.environ["HARNESS_CACHE"] = before
    if len(found) != len(datasets):
        raise HarnessError(f"harness bench cluster: {cells[0].told}")
    return took
