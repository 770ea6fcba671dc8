"""The most memory that a piece of work takes, of the process or of a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from harness.errors import HarnessError

_MEMORY = Path("/proc/self/statm")
_EVERY = 0.002  # seconds between two looks at the memory

T = TypeVar("T")


class Measured(NamedTuple, Generic[T]):
    """How long the work took, the bytes that it took beyond those in use before, what it gave."""

    seconds: float
    extra: int
    result: T


def check_measurable(place: torch.device, what: str) -> None:
    """Raises ``HarnessError`` where memory cannot be measured: on a CPU that needs Linux."""
    if place.type == "cpu" and not _MEMORY.exists():
        raise HarnessError(f"bench {what}: {_MEMORY} is needed to measure memory on a CPU")


def measured(work: Callable[[], T], place: torch.device) -> Measured[T]:
    """The most bytes in use meanwhile: of the process, or of the GPU as its driver counts them,
    because not all (faiss) allocate through torch."""
    _let_go(place)
    before = peak = in_use(place)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_EVERY):
            peak = max(peak, in_use(place))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.perf_counter()
        result = work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds = time.perf_counter() - began
    finally:
        done.set()
        watcher.join()
    return Measured(seconds, max(peak, in_use(place)) - before, result)


def _let_go(place: torch.device) -> None:
    """What was freed goes back to the system: else it would serve again, and not be counted."""
    if place.type == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def in_use(place: torch.device) -> int:
    """Bytes: of the process, or of the GPU."""
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return total - free
    return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
