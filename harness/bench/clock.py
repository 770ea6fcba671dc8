"""The clock of the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(work: Callable[[], object], place: torch.device) -> float:
    """How many seconds ``work`` takes until the device at ``place`` has done it."""
    began = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - began
