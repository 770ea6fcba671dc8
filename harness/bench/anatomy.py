"""What ``anatomy`` costs beside the forward pass that it rides on."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Read
from harness.bench.clock import timed
from harness.options import Options
from harness.registry import Registry

_PAIRS = 20
_INTERVAL = 5, 14  # places among 20 sorted: the binomial interval of a median


def anatomy(options: Options) -> dict[str, Any]:
    """A forward pass that reads every layer, with all that the protocol ``anatomy`` does with a
    batch, against the bare pass, which gives the last layer alone: medians of interleaved pairs,
    and the median ratio of a pair with its interval (the 6th and the 15th of 20: 95.9 %).

    The first model of ``options``, at the size that its position embedding was stored for;
    pictures are noise, already on the device.
    """
    from harness.task_names import find_task

    registry = Registry.load(options.model_files, options.allow_code)
    entry = registry.entry(options.models[0])
    loading = options.device, options.weights, options.seed, options.compiled, registry
    backbone = load_backbone(entry, *loading)
    facts, place = backbone.architecture, backbone.device
    generator = torch.Generator().manual_seed(0)
    shape = options.batch_size, 3, *facts.default_size
    pixels = torch.randn(shape, generator=generator).to(place)
    embedding, layers = Read("embedding"), [Read(layer) for layer in range(facts.depth)]
    task: Any = find_task("anatomy")
    norms = backbone(pixels, layers[-1:]).tokens[layers[-1]].patches.norm(dim=-1)
    fold = task.fold(facts.depth, float(norms.float().quantile(0.98)))

    def bare() -> object:
        return backbone(pixels, layers[-1:])

    def whole() -> object:
        tokens = backbone(pixels, [embedding, *layers]).tokens
        return fold.add([tokens[read] for read in layers], tokens[embedding].patches)

    with exact_float32():
        for work in (bare, whole):
            timed(work, place)
        pairs = [(timed(bare, place), timed(whole, place)) for _ in range(_PAIRS)]
    alone, together = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(second / first for first, second in pairs)
    return {
        "model": entry.name,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "patches": int(norms[0].numel()),
        "pairs": _PAIRS,
        "bare_ms": round(alone * 1e3, 3),
        "anatomy_ms": round(together * 1e3, 3),
        "anatomy_over_bare": round(statistics.median(ratios), 4),
        "interval": [round(ratios[place], 4) for place in _INTERVAL],
    }
