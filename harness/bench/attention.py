"""Attention rows and what each token receives, against the whole softmax of a block."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.backbone.attention import attention_rows, received
from harness.backbone.layout import TokenLayout
from harness.backbone.sources import choose_device
from harness.bench.memory import check_measurable, measured

_REPEATS = 5
_SIDE, _WIDTH, _HEADS, _BATCH = 37, 384, 6, 8
_LAYOUT = TokenLayout(1, 4)
_MIB = 2**20


@torch.no_grad()
def attention(device: str = "auto") -> dict[str, Any]:
    """Of one block of a ViT-S with four registers (fused attention, random weights), 37×37 patches,
    eight pictures: medians of the seconds and of the extra memory of the block itself, of its rows
    of class and register tokens, of what each token receives (share, norm and rank), and of the
    whole softmax, which would give both; and by how much they differ from that. Raises
    ``HarnessError`` where memory cannot be measured."""
    from timm.models.vision_transformer import Block

    place = choose_device(device)
    check_measurable(place, "attention")
    grid = _SIDE, _SIDE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block: Any = Block(_WIDTH, _HEADS, qkv_bias=True).eval().to(place)
        tokens = torch.randn(_BATCH, _LAYOUT.extra + _SIDE * _SIDE, _WIDTH).to(place)
    block.attn.qkv.weight.mul_(4)  # torch's first weights leave attention all but even

    def whole() -> Tensor:
        attn = block.attn
        shape = *tokens.shape[:2], 3, _HEADS, attn.head_dim
        query, key, _ = attn.qkv(tokens).reshape(shape).permute(2, 0, 3, 1, 4)
        softmax: Tensor = (query * attn.scale @ key.transpose(-2, -1)).softmax(-1)
        return softmax

    works: dict[str, Callable[[], Any]] = {
        "block": lambda: block(tokens),
        "rows": lambda: attention_rows(block.attn, tokens, _LAYOUT, grid, None),
        "received": lambda: received(block, tokens, _LAYOUT, grid, None),
        "whole": whole,
    }
    with exact_float32():
        softmax = works["whole"]()
        rows = softmax[:, :, : _LAYOUT.extra, _LAYOUT.extra :].flatten(3)
        columns = softmax.mean(2).transpose(1, 2)
        shares = works["received"]().share.patches.flatten(1, 2)
        apart = {
            "rows": float((works["rows"]().flatten(3) - rows).abs().max()),
            "received": float((shares - columns[:, _LAYOUT.extra :]).abs().max()),
        }
        del softmax, rows, columns, shares
        for work in works.values():
            work()
        runs = [
            {name: measured(work, place) for name, work in works.items()} for _ in range(_REPEATS)
        ]
    told: dict[str, Any] = {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "patches": _SIDE * _SIDE,
        "heads": _HEADS,
        "batch": _BATCH,
        "repeats": _REPEATS,
    }
    for name in works:
        told[f"{name}_ms"] = round(statistics.median(run[name].seconds for run in runs) * 1e3, 2)
    for name in works:
        extra = statistics.median(run[name].extra for run in runs)
        told[f"{name}_mib"] = round(extra / _MIB, 1)
    for name in ("rows", "received"):
        told[f"{name}_share_of_memory"] = round(told[f"{name}_mib"] / told["whole_mib"], 4)
        told[f"{name}_apart"] = float(f"{apart[name]:.1e}")
    return told
