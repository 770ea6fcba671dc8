"""Vectors that are read from the feature store in blocks, against the same ones kept in memory: the
most memory that either takes, and the ratio of their times, as the bank grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import choose_device
from harness.bench.memory import check_measurable, measured
from harness.features.keys import Key
from harness.features.store import SHARD, Rows, Store
from harness.features.vectors import StoredVectors, Vectors
from harness.probes.blocked_neighbours import BlockedIndex
from harness.probes.logistic import LogisticHead, logistic_path
from harness.probes.neighbours import Approximate, NeighbourIndex

BANKS = (50_000, 100_000, 200_000, 400_000)
_CLASSES = 10
_STRENGTHS = (1e-6, 1e-5)
_FITTED = 2  # banks
_K = 200
_MIB = 2**20
_PROBES = 32


class _Bank(NamedTuple):
    """The first vectors of the store, their labels, and vectors that ask."""

    vectors: Vectors
    labels: Tensor
    queries: Tensor


def memory(
    device: str = "auto",
    banks: Sequence[int] = BANKS,
    width: int = 384,
    queries: int = 64,
    block_mib: int = 16,
) -> dict[str, Any]:
    """Of each bank the extra memory and the seconds of kNN, and of the first two those of a
    logistic path of two C, with vectors in blocks of ``block_mib`` and with all of them in memory
    (loading them is in both). In the first bank the share of the exact neighbours that an inverted
    file finds; of the last how fast its blocks are read. Raises ``HarnessError`` where memory
    cannot be measured."""
    place = choose_device(device)
    check_measurable(place, "memory")
    facts: dict[str, Any] = {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "width": width,
        "queries": queries,
        "k": _K,
        "block_mib": block_mib,
        "banks": list(banks),
        "bank_mib": [round(4 * width * count / _MIB, 1) for count in banks],
    }
    block = max(1, block_mib * _MIB // (4 * width))
    with TemporaryDirectory(prefix="harness-") as folder, exact_float32():
        whole = _painted(Path(folder), max(banks), width, queries)
        few = _first(whole, min(2_000, max(banks)))
        for way in (_knn_blocked(block, str(place)), _knn_kept(str(place))):
            way(few)  # libraries set themselves up on their first call
        for name, ways in (
            ("knn", (_knn_blocked(block, str(place)), _knn_kept(str(place)))),
            ("logistic", (_fit_blocked(str(place)), _fit_kept(str(place)))),
        ):
            some = banks[:_FITTED] if name == "logistic" else banks
            of_banks = [_compared(ways, _first(whole, count), place) for count in some]
            for key in of_banks[0]:
                facts[f"{name}_{key}"] = [each[key] for each in of_banks]
        facts |= _recall(_first(whole, banks[0]), block, str(place))
        began = time.perf_counter()
        for _ in whole.vectors.blocks(block):
            pass
        read = 4 * width * max(banks) / (time.perf_counter() - began)
        facts["read_mib_per_second"] = round(read / _MIB, 1)
    return facts


def _painted(folder: Path, count: int, width: int, queries: int) -> _Bank:
    """Overlapping clusters, written shard by shard."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(_CLASSES, width, generator=generator)
    labels = torch.randint(_CLASSES, (count,), generator=generator)
    feature = Store(folder).feature(Key({"shard": SHARD, "painted": count}, {}), count)
    for shard, own in enumerate(torch.split(labels, SHARD)):
        values = torch.randn(len(own), width, generator=generator).mul_(3).add_(centres[own])
        there, geometry = torch.ones(len(own), dtype=torch.bool), torch.zeros(len(own), 13).int()
        feature.write(shard, Rows(values, there, geometry, {}))
        feature.whole(shard)  # as a pass that reads it has looked
    asked = torch.randn(queries, width, generator=generator)
    vectors = StoredVectors(feature, np.arange(count), width)
    return _Bank(vectors, labels, torch.nn.functional.normalize(asked, out=asked))


def _first(bank: _Bank, count: int) -> _Bank:
    return _Bank(bank.vectors.of(np.arange(count)), bank.labels[:count], bank.queries)


_Work = Callable[[_Bank], Tensor]


def _compared(ways: tuple[_Work, _Work], bank: _Bank, place: torch.device) -> dict[str, Any]:
    blocked, kept = (measured(partial(way, bank), place) for way in ways)
    return {
        "streamed_seconds": round(blocked.seconds, 3),
        "kept_seconds": round(kept.seconds, 3),
        "times_as_long": round(blocked.seconds / kept.seconds, 2),
        "streamed_extra_mib": round(blocked.extra / _MIB, 1),
        "kept_extra_mib": round(kept.extra / _MIB, 1),
        "apart_at_most": float(f"{float((blocked.result - kept.result).abs().max()):.1e}"),
    }


def _knn_blocked(block: int, device: str) -> _Work:
    def work(bank: _Bank) -> Tensor:
        return BlockedIndex(bank.vectors.unit(), block, device).search(bank.queries, _K).places

    return work


def _knn_kept(device: str) -> _Work:
    def work(bank: _Bank) -> Tensor:
        vectors = _loaded(bank.vectors.unit())
        return NeighbourIndex(vectors, device).search(bank.queries, _K).places

    return work


def _fit_blocked(device: str) -> _Work:
    return lambda bank: _weights(logistic_path(bank.vectors, bank.labels, _STRENGTHS, device))


def _fit_kept(device: str) -> _Work:
    return lambda bank: _weights(
        logistic_path(_loaded(bank.vectors), bank.labels, _STRENGTHS, device)
    )


def _loaded(vectors: Vectors) -> Tensor:
    whole, start = torch.empty(len(vectors), vectors.width), 0
    for block in vectors.blocks(SHARD):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole


def _weights(heads: Any) -> Tensor:
    found: list[LogisticHead] = list(heads)
    return torch.stack([head.weights.cpu() for head in found])


def _recall(bank: _Bank, block: int, device: str) -> dict[str, Any]:
    """Of the exact neighbours, how many an inverted file filled in blocks finds too."""
    unit = bank.vectors.unit()
    cells = Approximate(round(len(unit) ** 0.5), _PROBES)
    began = time.perf_counter()
    index = BlockedIndex(unit, block, device, cells)
    built = time.perf_counter()
    near = index.search(bank.queries, _K).places
    done = time.perf_counter()
    exact = BlockedIndex(unit, block, device).search(bank.queries, _K).places
    found = (near[:, :, None] == exact[:, None, :]).any(2).double().mean()
    return {
        "ivf_lists": cells.lists,
        "ivf_probes": cells.probes,
        "ivf_build_seconds": round(built - began, 3),
        "ivf_search_seconds": round(done - built, 3),
        "ivf_recall": round(float(found), 4),
    }
