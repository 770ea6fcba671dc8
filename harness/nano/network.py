"""The ViT that a recipe names, and how any objective runs it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.nano.recipe import ARCHITECTURE, MEAN, STD, Recipe


def build_vit(recipe: Recipe) -> nn.Module:
    """A timm ViT with random weights. Whatever the number of registers, the same seed draws the
    same values for all other parameters: registers are added to the ViT without them."""
    import timm

    def build(registers: int) -> nn.Module:
        arguments = {**recipe.arguments, "reg_tokens": registers}
        vit: nn.Module = timm.create_model(
            ARCHITECTURE, pretrained=False, num_classes=0, dynamic_img_size=True, **arguments
        )
        return vit

    with seeded(recipe.seed, 0):
        vit = build(0)
        nn.init.normal_(vit.get_parameter("cls_token"), std=recipe.token_std)
    if not recipe.registers:
        return vit
    shared = vit.state_dict()
    with seeded(recipe.seed, 1):
        vit = build(recipe.registers)
        registers = nn.init.normal_(vit.get_parameter("reg_token"), std=recipe.token_std)
    vit.load_state_dict({**shared, "reg_token": registers.detach()}, strict=True)
    return vit


def normalised(crops: Tensor, device: torch.device) -> Tensor:
    """uint8 ``[B, 3, S, S]`` -> what the ViT is given, on ``device``."""
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    return (crops.to(device).float() / 255 - mean) / std


@contextmanager
def mixed(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Forward passes under ``autocast``; None is fp32."""
    exact = _ExactAttention() if device.type == "cpu" and autocast else nullcontext()
    with exact, torch.autocast(device.type, autocast, enabled=autocast is not None):
        yield


class _ExactAttention(TorchFunctionMode):
    """Attention in fp32 under autocast. On a CPU its bf16 kernel is the slower one: 3.3 against 2.1
    seconds for a step of 32 pictures with width 128 on one AMD EPYC core (torch 2.15)."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return function(*(each.float() for each in args), **(kwargs or {}))


@contextmanager
def seeded(seed: int, part: int) -> Iterator[None]:
    """Draw from ``seed`` and ``part``, and leave the caller's random state as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(random.Random(f"{seed} {part}").getrandbits(62))
    try:
        yield
    finally:
        torch.set_rng_state(before)
