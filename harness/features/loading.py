"""Pictures decoded and cut into crops by worker processes, ahead of the device."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from harness.data.dataset import Dataset, Dense
from harness.data.joint import Labelled, look
from harness.data.views import Crop, View
from harness.errors import BadLabels, BadPicture, HarnessError

PREFETCH = 4
_TOGETHER, _RUNS_AHEAD = 4, 2
"""Pictures that a worker hands over at once, and how often it may do so ahead."""
_SHARED_BYTES = 2**32
"""Pictures of 64 million pixels (``MAX_PIXELS``) that eight workers hand over take more, but not
those that anybody has."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Loaded:
    """Picture ``index`` of the data set: its crops, and its labels at their stored size where those
    are wanted; or why it cannot be used, and whether that is for its labels alone."""

    index: int
    crops: tuple[Crop, ...]
    bad: str | None = None
    dense: Dense | None = None
    bad_labels: bool = False

    @property
    def label_bytes(self) -> int:
        """What its labels take in memory."""
        every = [self.dense, *(crop.dense for crop in self.crops)]
        kinds = [(each.semantic, each.instances, each.depth) for each in every if each is not None]
        return sum(labels.nbytes for three in kinds for labels in three if labels is not None)


class _Pictures(TorchDataset[Loaded]):
    def __init__(self, dataset: Dataset, view: View, seed: int, labelled: Labelled | None) -> None:
        self._dataset, self._view, self._seed = dataset, view, seed
        self._labelled = labelled

    def __getitem__(self, reading: tuple[int, int]) -> Loaded:
        index, occurrence = reading
        seed = view_seed(self._seed, occurrence)
        try:
            crops, dense = look(self._dataset, index, self._view, self._labelled, seed)
        except BadPicture as error:
            why = told(error, self._dataset.samples[index].id)
            return Loaded(index, (), why, bad_labels=isinstance(error, BadLabels))
        return Loaded(index, tuple(crops), dense=dense)


def default_workers() -> int:
    """Worker processes where none are asked for: one a core, one core left, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(0, min((cores or 1) - 1, 8))


def processes(asked: int | None) -> int:
    """Worker processes: as many as were asked for, or as suit the machine."""
    return default_workers() if asked is None else asked


def load(
    dataset: Dataset,
    view: View,
    order: Sequence[int],
    seed: int,
    workers: int,
    labelled: Labelled | None = None,
) -> Iterator[Loaded]:
    """Pictures in ``order``, with labels if they are wanted, whatever the number of workers (0: in
    this process). One that comes again is seen through the view with another seed."""
    pictures = _Pictures(dataset, view, seed, labelled)
    readings = occurrences(order, len(dataset.samples))
    if not workers or len(order) < _TOGETHER * workers or not _shared_memory():
        yield from by_workers(pictures, readings, workers, seed, PREFETCH)
        return
    several = _Several(pictures)
    for loaded, pixels in by_workers(several, _runs(readings), workers, seed, _RUNS_AHEAD):
        # Copied: of what is shared each piece holds an open file until it is let go of.
        yield from _unpacked(loaded, pixels.numpy().copy())


class _Several(TorchDataset[tuple[list[Loaded], torch.Tensor]]):
    """Runs of pictures whose pixels come as one piece of shared memory: through a pipe they would
    cost the process that feeds the device more than it has time for."""

    def __init__(self, pictures: _Pictures) -> None:
        self._pictures = pictures

    def __getitem__(self, readings: list[tuple[int, int]]) -> tuple[list[Loaded], torch.Tensor]:
        found = [self._pictures[reading] for reading in readings]
        pixels = [crop.pixels.reshape(-1) for each in found for crop in each.crops]
        whole = np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)
        bare = [
            replace(
                each,
                crops=tuple(
                    replace(crop, pixels=np.empty((0, *crop.pixels.shape), np.uint8))
                    for crop in each.crops
                ),
            )
            for each in found
        ]
        return bare, torch.from_numpy(whole)


def _unpacked(loaded: list[Loaded], pixels: NDArray[np.uint8]) -> Iterator[Loaded]:
    """Pictures with their pixels, which a worker has laid one after the other."""
    start = 0
    for each in loaded:
        crops = []
        for crop in each.crops:
            shape = crop.pixels.shape[1:]
            end = start + math.prod(shape)
            crops.append(replace(crop, pixels=pixels[start:end].reshape(shape)))
            start = end
        yield replace(each, crops=tuple(crops))


def _runs(readings: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    while run := list(itertools.islice(readings, _TOGETHER)):
        yield run


def _shared_memory() -> bool:
    """Whether there is shared memory enough: a container may have 64 MiB."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return False
    return found.f_bavail * found.f_frsize >= _SHARED_BYTES


def occurrences(order: Iterable[int], pictures: int) -> Iterator[tuple[int, int]]:
    """Each index of ``order``, below ``pictures``, with how often it came before."""
    seen = array("i", [0]) * pictures
    for index in order:
        yield index, seen[index]
        seen[index] += 1


def view_seed(seed: int, occurrence: int) -> int:
    """The seed, below 2^63, that a view draws from when a picture is read for the
    ``occurrence``-th time (from 0)."""
    digest = hashlib.sha256(f"{seed} {occurrence}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def by_workers(
    items: TorchDataset[Item], order: Iterable[Any], workers: int, seed: int, prefetch: int
) -> Iterator[Item]:
    """``items[i]`` for each i of ``order``, made by ``workers`` processes (0: this one), each up to
    ``prefetch`` ahead. Raises ``HarnessError`` where a process dies."""
    options: dict[str, Any] = {}
    if workers:
        # Workers keep to one thread and off the device, so a fork after torch has started threads
        # is safe, and it starts at once where a spawn would import torch again in each of them.
        context = "fork" if sys.platform == "linux" else None
        options = {"prefetch_factor": prefetch, "multiprocessing_context": context}
    loader: DataLoader[Item] = DataLoader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        collate_fn=_unchanged,
        # The loader draws a base seed for its workers: not from the caller's random state.
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    if not workers:
        yield from loader
        return
    others = set(multiprocessing.active_children())
    with _deaths_told():
        try:
            read = iter(loader)
            _hold_back()
            while True:
                with _waiting():
                    try:
                        item = next(read)
                    except StopIteration:
                        return
                yield item
        except (RuntimeError, ConnectionError, EOFError):
            # Who keeps this error keeps the loader, which would end them when it is let go of. One
            # that waits for a lock that the dead one held would outlive this process.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


_torchs_handler: Callable[[int, FrameType | None], Any] | None = None
_waits = False


def _hold_back() -> None:
    """torch tells a worker's death by an exception from its handler of SIGCHLD, in the middle of
    whatever the main thread does: writing a record, or ending the other workers. Let it do so
    only where that thread waits for a picture, which nothing else might wake."""
    global _torchs_handler
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    torchs = getattr(handler, "__module__", "").startswith("torch.utils.data.")
    if not (torchs and callable(handler) and threading.current_thread() is threading.main_thread()):
        return
    _torchs_handler = handler

    def held_back(number: int, frame: FrameType | None) -> None:
        if _waits:
            handler(number, frame)

    signal.signal(signal.SIGCHLD, held_back)


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    global _waits
    if _torchs_handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _waits = True
    try:
        _torchs_handler(signal.SIGCHLD, None)  # of one that died since
        yield
    finally:
        _waits = False


@contextlib.contextmanager
def _deaths_told() -> Iterator[None]:
    """The death of a worker process as a ``HarnessError``."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker's own errors come as of their kind too, and say that they were caught there. What
        # was being handed over when a worker died ends in the middle.
        died = "DataLoader worker (pid" in str(error)
        if not died and (isinstance(error, RuntimeError) or "DataLoader worker" in str(error)):
            raise
        raise HarnessError(
            f"a worker process died ({(str(error) or type(error).__name__).splitlines()[0]}): out "
            "of memory? Fewer (--workers 1) need less, --workers 0 reads in this process"
        ) from None


def told(error: BadPicture, identity: str) -> str:
    """What is wrong with a picture, in a sentence that names it."""
    text = str(error)
    return text if identity in text else f"{identity}: {text}"


def _unchanged(loaded: Any) -> Any:
    return loaded
