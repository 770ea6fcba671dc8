"""A grid of many small cells: what planning those that are done takes, and whether the driver of
the engine ``ray`` grows with the grid."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import records
from harness.bench.memory import in_use
from harness.engine.connection import connected
from harness.errors import HarnessError
from harness.options import Options
from harness.plan import Cell, plan
from harness.run import run

_TASK, _BASE = "lost", "pixels"
_FINISHED = 100, 100
"""Models and data sets: 10,000 cells."""
_GRID = 50, 20
_PICTURES = 4
_SETTLED = 0.1
"""Of the grid: by then the driver has imported and opened what it needs."""


def grid() -> dict[str, Any]:
    """Two grids of ``pixels`` under many names on as many data sets of four painted pictures.

    Of 50 × 20 cells, run by the engine ``ray`` with two workers: seconds, and the memory of the
    driver's process when a tenth of the records were written and when all were. Of 100 × 100 cells
    that are done (one is run, the others are its record under their names): the seconds in which a
    run finds that out; it reads every record and hashes its table.
    """
    with _options(*_GRID) as options, connected(None, num_cpus=2, num_gpus=0):
        cells = plan(options)
        held, began = _run_on_ray(cells, options)
        seconds = time.perf_counter() - began
    with _options(*_FINISHED) as options:
        first = replace(options, models=options.models[:1], datasets=options.datasets[:1])
        ((path, _),) = run(plan(first), first)
        _copy(path, options)
        began = time.perf_counter()
        done = sum(cell.done is not None for cell in plan(options))
        looked = time.perf_counter() - began
    if done != _FINISHED[0] * _FINISHED[1]:
        raise HarnessError(f"harness bench grid: only {done} cells are done")
    settled = held[int(len(held) * _SETTLED)]
    return {
        "cells": len(held),
        "workers": 2,
        "cells_per_second": round(len(held) / seconds, 3),
        "driver_mib_after_a_tenth": round(settled, 1),
        "driver_mib_at_the_end": round(held[-1], 1),
        "driver_kib_per_cell": round(1024 * (held[-1] - settled) / (len(held) * (1 - _SETTLED)), 2),
        "finished_cells": done,
        "finished_cells_seconds": round(looked, 3),
    }


@contextmanager
def _options(models: int, datasets: int) -> Iterator[Options]:
    """A run over so many names of models and data sets, in a folder that goes when it is over."""
    names = [f"model-{number}" for number in range(models)]
    sets = [f"set-{number}" for number in range(datasets)]
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        files = Path(folder) / "models.yaml", Path(folder) / "datasets.yaml"
        files[0].write_text("".join(f"{name}: {{like: {_BASE}}}\n" for name in names))
        line = f"{{format: scenes, count: {{test: {_PICTURES}}}}}\n"
        files[1].write_text("".join(f"{name}: {line}" for name in sets))
        yield Options(
            tasks=[_TASK],
            models=names,
            datasets=sets,
            out=Path(folder) / "results",
            model_files=files[:1],
            dataset_files=files[1:],
            device="cpu",
            workers=0,
            store=False,
        )


def _run_on_ray(cells: list[Cell], options: Options) -> tuple[list[float], float]:
    """MiB that this process held as each record came, and when the run began."""
    from harness.engine.driver import Engine
    from harness.engine.driver import run as run_on_ray

    began = time.perf_counter()
    here = torch.device("cpu")
    held = [in_use(here) / 2**20 for _ in run_on_ray(cells, options, Engine(cpus=1))]
    if len(held) != len(cells):
        raise HarnessError(f"harness bench grid: {len(held)} of {len(cells)} cells came back")
    return held, began


def _copy(path: Path, options: Options) -> None:
    """The record at ``path`` under the name of every cell of ``options``."""
    files, record = records.files(path), json.loads(path.read_text())
    for model in options.models:
        for dataset in options.datasets:
            record["model"]["name"], record["dataset"]["name"] = model, dataset
            folder = options.out / dataset / _TASK / model
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (folder / name).write_bytes(data)
            (folder / path.name).write_text(json.dumps(record))
