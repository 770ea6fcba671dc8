"""Training DINOv2's 52 linear heads together, against one after another and against bare matrix
products: ratios of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import choose_device
from harness.bench.clock import timed
from harness.linear_grid import StoredLinearProtocol
from harness.probes.linear import Descent, Head, LinearHeads

_SIDE = 2048  # of the square product that the machine's rate is measured by
_WARM_UP = 1
_MULTIPLIED_AND_ADDED = 2


def linear(
    device: str = "auto",
    width: int = 384,
    classes: int = 1000,
    batch: int = 1024,
    repeats: int = 5,
) -> dict[str, Any]:
    """Seconds of a step of the whole grid on features of ``width`` a block (ViT-S: 384), and of
    the same 52 heads one after another, each an ``nn.Linear`` with autograd and ``optim.SGD``:
    medians of interleaved runs. The share of the rate of a square product is that of the products
    that a step cannot do without: logits and gradients of the weights."""
    place = choose_device(device)
    protocol = StoredLinearProtocol.model_validate({})
    blocks = max(protocol.n_last_blocks)
    ends = [width * number for number in range(blocks + 2)]
    heads = [point.head(ends, blocks, batch) for point in protocol.points()]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, ends[-1], generator=generator).to(place)
    labels = torch.randint(classes, (batch,), generator=generator).to(place)
    square = torch.randn(_SIDE, _SIDE, generator=generator).to(place)
    steps = _WARM_UP + repeats
    together = LinearHeads(heads, classes, Descent(steps), device=place)
    one_by_one = _OneByOne(heads, together, steps)

    works: tuple[Callable[[], object], ...] = (
        lambda: square @ square,
        lambda: together.step(features, labels),
        lambda: one_by_one.step(features, labels),
    )
    with exact_float32():
        for work in works:
            for _ in range(_WARM_UP):
                timed(work, place)
        runs = [[timed(work, place) for work in works] for _ in range(repeats)]
    product, ours, theirs = (statistics.median(column) for column in zip(*runs, strict=True))
    rate = _MULTIPLIED_AND_ADDED * _SIDE**3 / product
    seen = sum(head.stop - head.start for head in heads)
    needed = 2 * _MULTIPLIED_AND_ADDED * batch * classes * seen
    return {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "heads": len(heads),
        "batch": batch,
        "classes": classes,
        "width": width,
        "repeats": repeats,
        "gemm_gflops": round(rate / 1e9, 1),
        "together_ms": round(ours * 1e3, 3),
        "one_by_one_ms": round(theirs * 1e3, 3),
        "one_by_one_over_together": round(theirs / ours, 3),
        "share_of_gemm_rate": round(needed / ours / rate, 3),
        "greatest_difference": one_by_one.difference(together),
    }


class _OneByOne:
    """The same heads as plain torch trains them, each with its own optimiser."""

    def __init__(self, heads: Sequence[Head], like: LinearHeads, steps: int) -> None:
        self._heads = heads
        self._layers: list[torch.nn.Linear] = []
        for place in range(len(heads)):
            weight, bias = like.weights(place)
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self._layers.append(layer)
        self._optimisers = [
            torch.optim.SGD(layer.parameters(), head.learning_rate, momentum=0.9)
            for layer, head in zip(self._layers, heads, strict=True)
        ]
        self._schedules = [
            torch.optim.lr_scheduler.CosineAnnealingLR(each, steps) for each in self._optimisers
        ]

    def step(self, features: Tensor, labels: Tensor) -> None:
        every = zip(self._heads, self._layers, self._optimisers, self._schedules, strict=True)
        for head, layer, optimiser, schedule in every:
            logits = layer(features[:, head.start : head.stop])
            loss = torch.nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()

    def difference(self, other: LinearHeads) -> float:
        """The greatest between a weight of ours and the other's: both trained the same heads."""
        return max(
            float((layer.weight.detach() - other.weights(place)[0]).abs().max())
            for place, layer in enumerate(self._layers)
        )
