"""Queries, keys, values and attention rows of one timm attention module, computed by hand.

A hook on ``attn.qkv`` never fires for EVA-02 and the ``qkvb`` DINOv3 models, which call
``F.linear`` on its weight, and timm's own attention extraction returns nothing with fused
attention. So the projection is read off the module's weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import AttentionRope, EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from harness.backbone.layout import Facet, TokenLayout

_ROW = {"query": 0, "key": 1, "value": 2}


def project(attention: nn.Module, tokens: Tensor, facet: Facet) -> Tensor:
    """Normed block input ``[B, N, D]`` -> query, key or value ``[B, N, A]``, heads side by side.

    Before rotary embedding and before q/k-norm. Only the facet asked for is computed.
    """
    module: Any = attention
    row = _ROW[facet]
    if getattr(module, "qkv", None) is None:
        separate = (module.q_proj, module.k_proj, module.v_proj)[row]
        result: Tensor = separate(tokens)
        return result
    bias = module.qkv.bias
    if getattr(module, "q_bias", None) is not None:
        bias = torch.cat((module.q_bias, module.k_bias, module.v_bias))
    weight = module.qkv.weight.chunk(3)[row]
    return F.linear(tokens, weight, None if bias is None else bias.chunk(3)[row])


def has_rows(attention: nn.Module) -> bool:
    """Whether a row is one softmax a head: not so in timm's differential attention."""
    return isinstance(attention, Attention | AttentionRope | EvaAttention)


def attention_rows(
    attention: nn.Module,
    tokens: Tensor,
    layout: TokenLayout,
    grid: tuple[int, int],
    rope: Tensor | None,
) -> Tensor:
    """Attention of the class and register tokens to the patches: ``[B, heads, C+R, H, W]``.

    The softmax runs over all tokens, so a row sums to at most 1 over the patches. N x N is never
    formed: only the rows asked for.
    """
    module: Any = attention

    def heads(facet: Facet) -> Tensor:
        flat = project(attention, tokens, facet)
        count = flat.shape[-1] // module.head_dim
        return flat.reshape(*flat.shape[:2], count, module.head_dim).transpose(1, 2)

    query, key = module.q_norm(heads("query")), module.k_norm(heads("key"))
    if rope is not None:
        half = getattr(module, "rotate_half", False)
        query, key = (_rotate(part, layout, rope, half) for part in (query, key))
    rows = torch.cat((query[:, :, : layout.classes], query[:, :, layout.register_slice]), dim=2)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    weights = (rows * module.scale @ key.transpose(-2, -1)).softmax(dim=-1)
    result: Tensor = weights[..., layout.patch_slice]
    return result.reshape(*result.shape[:3], *grid)


def _rotate(part: Tensor, layout: TokenLayout, rope: Tensor, half: bool) -> Tensor:
    # Rotary models keep registers in front (vit.py refuses others), so patches are the rest.
    front = part[:, :, : layout.extra]
    patches = apply_rot_embed_cat(part[:, :, layout.extra :], rope, half=half)
    return torch.cat((front, patches), dim=2).type_as(part)
