"""kNN against a plain implementation that votes with one-hot vectors: ratios of time and memory."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import choose_device
from harness.bench.clock import timed
from harness.bench.memory import check_measurable, measured
from harness.probes.neighbours import NeighbourIndex, judge

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_BATCH = 256  # of the plain implementation, as DINOv2's

_Hits = dict[int, tuple[Tensor, Tensor]]  # k -> hits among the first and the first five, [q] each


class _Case(NamedTuple):
    """Unit vectors in clusters, one a class, that overlap."""

    train: Tensor
    labels: Tensor
    queries: Tensor
    truth: Tensor
    classes: int


def knn(
    device: str = "auto",
    train: int = 100_000,
    queries: int = 10_000,
    classes: int = 1_000,
    width: int = 384,
) -> dict[str, Any]:
    """Seconds and extra memory (beyond the features on the CPU) of the search and vote at k = 10,
    20, 100, 200, and of the plain way; also the seconds of the matrix product of queries and train
    alone, which no exact search goes below. Raises ``HarnessError`` where memory cannot be
    measured: on a CPU that needs Linux."""
    place = choose_device(device)
    check_measurable(place, "knn")
    case = _case(train, queries, classes, width)
    few = _Case(case.train[:1_000], case.labels[:1_000], case.queries[:8], case.truth[:8], classes)
    with exact_float32():
        for way in (_ours, _plain):  # libraries set themselves up on their first call
            way(few, place)
        ours, plain = (measured(partial(way, case, place), place) for way in (_ours, _plain))
        product = _product(case, place)
    return {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "train": train,
        "queries": queries,
        "classes": classes,
        "width": width,
        "k": list(KS),
        "harness_seconds": round(ours.seconds, 3),
        "plain_seconds": round(plain.seconds, 3),
        "product_seconds": round(product, 3),
        "times_faster": round(plain.seconds / ours.seconds, 2),
        "harness_extra_mib": round(ours.extra / 2**20, 1),
        "plain_extra_mib": round(plain.extra / 2**20, 1),
        "memory_share": round(ours.extra / plain.extra, 4),
        "top1_agreement": min(
            float((ours.result[k][0] == plain.result[k][0]).double().mean()) for k in KS
        ),
    }


def _case(train: int, queries: int, classes: int, width: int) -> _Case:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (train,), generator=generator)
    truth = torch.randint(classes, (queries,), generator=generator)
    vectors = []
    for of in (labels, truth):
        features = torch.randn(len(of), width, generator=generator).mul_(2).add_(centres[of])
        vectors.append(torch.nn.functional.normalize(features, out=features))
    return _Case(vectors[0], labels, vectors[1], truth, classes)


def _ours(case: _Case, place: torch.device) -> _Hits:
    index = NeighbourIndex(case.train, str(place))
    judged = judge(index, case.labels, case.classes, case.queries, case.truth, KS, TEMPERATURE)
    return {k: (each.rank < 1, each.rank < 5) for k, each in judged.items()}


def _plain(case: _Case, place: torch.device) -> _Hits:
    """As one would write it down, and as DINOv2's evaluation does: every neighbour's weight is
    multiplied with the one-hot vector of its class, and the products are summed up for each k."""
    train, labels = case.train.to(place), case.labels.to(place)
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {k: [] for k in KS}
    for start in range(0, len(case.queries), _BATCH):
        queries, truth = (each[start : start + _BATCH] for each in (case.queries, case.truth))
        similarities, places = (queries.to(place) @ train.T).topk(max(KS))
        weights = (similarities / TEMPERATURE).softmax(1)
        one_hot = torch.nn.functional.one_hot(labels[places], case.classes)
        weighted = one_hot * weights[:, :, None]
        for k in KS:
            first = weighted[:, :k].sum(1).topk(min(5, case.classes)).indices.cpu()
            right = first == truth[:, None]
            parts[k].append((right[:, 0], right.any(1)))
    return {
        k: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
        for k, pairs in parts.items()
    }


def _product(case: _Case, place: torch.device) -> float:
    """Seconds of the matrix product of all queries and train, in the plain way's batches."""
    train, queries = case.train.to(place), case.queries.to(place)

    def products() -> None:
        for start in range(0, len(queries), _BATCH):
            queries[start : start + _BATCH] @ train.T

    return timed(products, place)
