"""The normalised cut of TokenCut against the dense eigenproblem that the official code solves."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.bench.clock import timed
from harness.discovery import component_box
from harness.probes.normalised_cut import cosines, normalised_cut

_REPEATS = 5
_SIDE, _PATCH, _CHANNELS = 37, 14, 1024
_TAU, _EPSILON, _TOLERANCE = 0.2, 1e-5, 1e-8


def tokencut(device: str = "auto") -> dict[str, Any]:
    """The box from the cosines of 37×37 patches of 1,024 channels, against the same box by way of
    the whole matrix: medians of interleaved runs, and their ratio, without the cosines, which both
    need, and with them. The patches are smooth noise: near ones are alike, as in a picture."""
    from harness.backbone.sources import choose_device

    place = choose_device(device)
    patches = _smooth_noise().to(place)
    boxes: dict[str, tuple[int, ...]] = {}

    def graph() -> Tensor:
        return cosines(patches)

    def cut() -> None:
        found = normalised_cut(similarity, _TAU, _EPSILON, _TOLERANCE)
        boxes["cut"] = _box(found.foreground, found.seed)

    def dense() -> None:
        boxes["dense"] = _box(*_densely(similarity))

    with exact_float32():
        similarity = graph()
        works = graph, cut, dense
        for work in works:
            timed(work, place)
        runs = [[timed(work, place) for work in works] for _ in range(_REPEATS)]
    both, fast, slow = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "patches": _SIDE * _SIDE,
        "channels": _CHANNELS,
        "repeats": _REPEATS,
        "cosines_ms": round(both * 1e3, 3),
        "tokencut_ms": round(fast * 1e3, 3),
        "dense_ms": round(slow * 1e3, 3),
        "times_faster": round(slow / fast, 2),
        "times_faster_with_cosines": round((both + slow) / (both + fast), 2),
        "same_box": boxes["cut"] == boxes["dense"],
    }


def _smooth_noise() -> Tensor:
    """``[37 * 37, 1024]``; a quarter of all pairs have a cosine above 0.2."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, _CHANNELS, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (_SIDE, _SIDE), mode="bilinear")[0]
    noise = torch.randn(_CHANNELS, _SIDE, _SIDE, generator=generator)
    return (smooth + noise / 2).flatten(1).T.contiguous()


def _densely(similarity: Tensor) -> tuple[NDArray[np.bool_], int]:
    """As one would write it down, and as object_discovery.py of YangtaoWANG95/TokenCut does."""
    from scipy.linalg import eigh

    weights = np.where((similarity > _TAU).cpu().numpy(), 1.0, _EPSILON)
    degrees = np.diag(weights.sum(1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 2])
    vector = vectors[:, 0]
    seed = int(np.argmax(np.abs(vector)))
    above: NDArray[np.bool_] = vector > vector.mean()
    return (above if above[seed] else ~above), seed


def _box(mask: NDArray[np.bool_], seed: int) -> tuple[int, int, int, int]:
    side = _SIDE * _PATCH
    return component_box(mask.reshape(_SIDE, _SIDE), seed, _PATCH, (side, side))
