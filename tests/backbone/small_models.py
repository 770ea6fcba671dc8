"""Small models with weights that matter: a fresh timm model is nearly the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone import sources
from harness.backbone.vit import Backbone
from harness.registry import ModelEntry, Registry

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 4}


def make(timm: str, registers: int = 0, **facts: Any) -> ModelEntry:
    arguments = {**SMALL, **facts.pop("arguments", {})}
    return ModelEntry.model_validate(
        {"name": "x", "timm": timm, "registers": registers, "arguments": arguments, **facts}
    )


def shrunk(name: str, grid: int = 5) -> ModelEntry:
    """An entry of models.yaml, its class and its own arguments kept, made small."""
    entry = Registry.load().entry(name)
    arguments = {**entry.arguments, **SMALL}
    # The patch of the small one is that of the whole, which has dozens of blocks to build.
    patch = sources.architecture(entry.model_copy(update={"arguments": arguments})).patch
    return entry.model_copy(update={"arguments": {**arguments, "img_size": grid * patch}})


def redraw(module: nn.Module, seed: int = 0) -> None:
    """Give every weight a size at which it shows: released biases and scales are not 0 and 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "periods" in name or "freqs" in name:
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1 and not name.endswith("bias"):
                weight.copy_(1 + 0.2 * noise)  # norms and layer scales
            elif weight.ndim == 1:
                weight.copy_(0.2 * noise)
            elif weight.ndim == 3:
                weight.copy_(0.5 * noise)  # tokens and positions
            else:
                weight.copy_(noise * weight[0].numel() ** -0.5)


def load(entry: ModelEntry, compiled: bool = False) -> Backbone:
    """``entry`` on the CPU with random weights, all of which matter."""
    own = entry.factory is not None  # a factory draws its weights itself
    backbone = sources.load_backbone(
        entry, "cpu", "released" if own else "random", compiled=compiled
    )
    redraw(backbone.module)
    return backbone


def pictures(size: Sequence[int], batch: int = 2, seed: int = 1) -> Tensor:
    """Noise ``[batch, 3, *size]``, as normalised pictures are: about 0, about 1."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
