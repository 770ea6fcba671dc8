"""What ``harness bench`` measures, by name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from harness.bench.anatomy import anatomy
from harness.bench.attention import attention
from harness.bench.cluster import cluster
from harness.bench.dense import dense
from harness.bench.grid import grid
from harness.bench.knn import knn
from harness.bench.linear import linear
from harness.bench.logistic import logistic
from harness.bench.pipeline import extract, lost, paint
from harness.bench.registers import registers
from harness.bench.stored import stored
from harness.bench.streamed import memory
from harness.bench.tables import tables
from harness.bench.tokencut import tokencut
from harness.errors import HarnessError
from harness.options import Options

_LEAST = 1_000
"""Pictures: 200 neighbours and 10 clusters want some to choose among."""


def measure(options: argparse.Namespace, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of ``options.what``; ``machine`` are the fields of ``Options`` that a command
    which runs a model has. Raises ``HarnessError`` for wrong use."""
    limit, device = options.limit, options.device
    if options.what in {"knn", "logistic"} and limit is not None and limit < _LEAST:
        raise HarnessError(f"harness bench {options.what} --limit {limit}: at least {_LEAST:,}")
    match options.what:
        case "paint":
            return paint(limit)
        case "cluster":
            return cluster(limit)
        case "grid":
            return grid()
        case "attention":
            return attention(device)
        case "lost":
            return lost(device)
        case "memory":
            return memory(device)
        case "registers":
            return registers(device)
        case "tables":
            return tables()
        case "tokencut":
            return tokencut(device)
        case "linear":
            return linear(device)
        case "logistic":
            return logistic(device) if limit is None else logistic(device, limit)
        case "knn":
            return knn(device) if limit is None else knn(device, limit)
    if options.what == "anatomy":
        models = [options.model or "nano-reg4"]
        return anatomy(Options(tasks=["bench"], models=models, datasets=[], **machine))
    if not options.model or not options.dataset:
        raise HarnessError(f"harness bench {options.what}: name a --model and a --dataset")
    wanted = Options(tasks=["bench"], models=[options.model], datasets=[options.dataset], **machine)
    match options.what:
        case "dense":
            return dense(wanted)
        case "stored":
            return stored(wanted)
    return extract(wanted, options.precision)
