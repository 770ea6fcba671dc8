"""What a test-time register costs: the forward pass with one against the same without."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.backbone.arithmetic import exact_float32
from harness.backbone.interventions import Intervention
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone, Read
from harness.bench.clock import timed
from harness.registry import Registry

_PAIRS = 20
_MODEL, _SIDE, _BATCH = "vits", 518, 1
_NEURONS = tuple((layer, neuron) for layer in range(6) for neuron in (10, 700))
"""A dozen over six layers, about as many as the paper moves in OpenCLIP's B/16."""
_DRAWS = 2_000


def registers(device: str = "auto") -> dict[str, Any]:
    """Passes of ViT-S/14 (random weights, which move no time) over a picture of 518 pixels: as
    it is, with the extra token alone, and with the token and its neurons. Each ratio is the median
    over interleaved pairs, with the 95 % interval of that median (bootstrap over pairs).
    """
    plain = load_backbone(Registry.load().entry(_MODEL), device, "random")
    place, module, facts = plain.device, plain.module, plain.architecture
    noise = torch.randn(_BATCH, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    pixels, read = noise.to(place), Read(facts.depth - 1, norm=True)

    def work(change: Intervention) -> float:
        backbone = Backbone(_MODEL, module, facts, place, intervention=change)
        seconds = timed(lambda: backbone(pixels, [read]), place)
        backbone.undo()
        return seconds

    changes = Intervention(), Intervention(1), Intervention(1, _NEURONS)
    with exact_float32():
        for change in changes:
            work(change)
        runs = [[work(change) for change in changes] for _ in range(_PAIRS)]
    bare, token, whole = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "model": _MODEL,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "pixels": _SIDE,
        "pictures": _BATCH,
        "neurons": len(_NEURONS),
        "pairs": _PAIRS,
        "forward_ms": round(bare * 1e3, 3),
        "with_zero_token_ms": round(token * 1e3, 3),
        "with_register_ms": round(whole * 1e3, 3),
        "zero_token_over_forward": _ratio([(one, other) for one, other, _ in runs]),
        "register_over_forward": _ratio([(one, other) for one, _, other in runs]),
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The second over the first: the median, and its interval."""
    ratios = np.array([other / one for one, other in pairs])
    drawn = np.random.default_rng(0).integers(0, len(ratios), (_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return {
        "median": round(float(np.median(ratios)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }
