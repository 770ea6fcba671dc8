"""A block whose attention is the identity: every token attends to itself alone.

Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (ECCV 2022, section 3.2): what the last
attention of CLIP mixes belongs to the picture as a whole; its value path keeps patches apart.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.backbone.attention import project


def value_written(block: nn.Module, normed: Tensor) -> Tensor:
    """What attention adds to the residual stream where each token attends to itself alone:
    ``[B, N, D]`` of the normed block input ``[B, N, D]``.

    Values through the output projection and the layer scale. A norm or a gate between the two is
    of one token, and is applied; positions and q/k-norm have no part in it.
    """
    module: Any = block
    attention = module.attn
    value = project(attention, normed, "value")
    groups = attention.num_heads * attention.head_dim // value.shape[-1]
    if groups > 1:  # several heads of queries share one of values
        value = value.reshape(*value.shape[:-1], -1, attention.head_dim)
        value = value.repeat_interleave(groups, dim=-2).flatten(-2)
    value = attention.norm(value)
    gate = getattr(attention, "gate", None)
    if gate is not None:
        value = value * gate(normed).sigmoid()
    return _scaled(module, "1", attention.proj(value))


def value_path(block: nn.Module, sequence: Tensor, normed: Tensor) -> Tensor:
    """The block's output ``[B, N, D]`` with that in the place of its attention: the residual
    connection and the MLP are as they were.

    So does MaskCLIP's code (``mmseg/models/backbones/vit.py``, ``return_qkv``), of which the paper
    speaks for attention pooling alone.
    """
    module: Any = block
    sequence = sequence + value_written(block, normed)
    return sequence + _scaled(module, "2", module.mlp(module.norm2(sequence)))


def pooled_alone(pool: nn.Module, tokens: Tensor) -> Tensor:
    """Every one of the tokens ``[..., D]`` through attention pooling as if it were the only one:
    ``[..., D']``. Attention to a single token is its value, so this is the pool's value path, which
    is how the paper reads a ResNet's (section 3.2)."""
    pooled: Tensor = pool(tokens.flatten(0, -2)[:, None])
    return pooled.reshape(*tokens.shape[:-1], -1)


def _scaled(block: Any, number: str, written: Tensor) -> Tensor:
    """By the block's layer scale: ``gamma_1`` of timm's Eva blocks, ``ls1`` of its ViT blocks."""
    if hasattr(block, f"ls{number}"):
        scaled: Tensor = getattr(block, f"ls{number}")(written)
        return scaled
    gamma = getattr(block, f"gamma_{number}", None)
    return written if gamma is None else gamma * written
