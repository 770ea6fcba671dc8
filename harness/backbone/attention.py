"""Queries, keys, values and attention of one timm attention module, computed by hand.

A hook on ``attn.qkv`` never fires for EVA-02 and the ``qkvb`` DINOv3 models, which call
``F.linear`` on its weight, and timm's own attention extraction returns nothing with fused
attention. So the projection is read off the module's weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import AttentionRope, EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from harness.backbone.layout import Facet, TokenLayout, Tokens

_WEIGHTS = 2**21
"""Of the softmax that are in memory at a time: 8 MiB."""
_ROW = {"query": 0, "key": 1, "value": 2}
_QUERY_KEY: tuple[Facet, Facet] = ("query", "key")


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


def has_rows(attention: nn.Module | None) -> bool:
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
    query, key = _queries_and_keys(attention, tokens, layout, rope)
    rows = torch.cat((query[:, :, : layout.classes], query[:, :, layout.register_slice]), dim=2)
    result = (rows @ key.transpose(-2, -1)).softmax(dim=-1)[..., layout.patch_slice]
    return result.reshape(*result.shape[:3], *grid)


class Received(NamedTuple):
    """What the heads of one layer make of each token as a key.

    ``share`` is how much of the attention of all queries it draws, the column mean of the softmax:
    the shares of a head sum to 1. ``norm`` is the length of what the head writes to a token that
    attends to it alone: its value through the head's part of the output projection and the layer
    scale. Of both the last dimension are the heads: ``cls [B, heads]`` and so on. ``rank [B,
    heads]`` is the stable rank of what the head writes to all tokens but the one that draws most:
    the sum of the squared singular values over the largest (Rudelson and Vershynin, "Sampling from
    large matrices", 2007, section 1.2); 1 where all of them are written multiples of one vector, 0
    where nothing is written.
    """

    share: Tokens
    norm: Tokens
    rank: Tensor


def received(
    block: nn.Module,
    tokens: Tensor,
    layout: TokenLayout,
    grid: tuple[int, int],
    rope: Tensor | None,
) -> Received:
    """What each token is as a key to the heads of ``block``, of normed ``tokens [B, N, D]``.

    N x N is never held: queries come in runs of rows. A norm or a gate that stands between the
    heads and their projection (EVA-02) belongs to no head, and is left out.
    """
    module: Any = getattr(block, "attn")  # noqa: B009 (a module's attributes have no types)
    query, key = _queries_and_keys(module, tokens, layout, rope)
    value = _in_heads(module, project(module, tokens, "value"))
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
    value = value @ _written_to(block, module.head_dim).transpose(-2, -1)
    key = key.transpose(-2, -1)
    batch, heads, length = query.shape[:3]
    share = torch.zeros(batch, heads, length, device=tokens.device)
    written = []
    for rows in torch.split(query, max(1, _WEIGHTS // (batch * heads * length)), dim=2):
        weights = (rows @ key).softmax(dim=-1).float()
        share += weights.sum(dim=2)
        written.append((weights @ value).float())
    share /= length
    output = torch.cat(written, dim=2)
    most = share.argmax(dim=-1)[..., None, None]
    output.scatter_(2, most.expand(-1, -1, 1, output.shape[-1]), 0)
    # The squared singular values, from the small Gram matrix of a head.
    squares = torch.linalg.eigvalsh((output.transpose(-2, -1) @ output).float())
    tiny = torch.finfo(squares.dtype).tiny
    rank = squares.clamp_min(0).sum(-1) / squares[..., -1].clamp_min(tiny)
    norm = value.float().norm(dim=-1)
    return Received(
        layout.split(share.transpose(1, 2), grid), layout.split(norm.transpose(1, 2), grid), rank
    )


def _written_to(block: Any, width: int) -> Tensor:
    """``[heads, d, d]``: what gives the values ``[d]`` of a head the lengths and angles that they
    have in the residual stream. A small factor of the head's part of the output projection."""
    weight = block.attn.proj.weight
    scale = getattr(block, "gamma_1", None)
    if scale is None:
        scale = getattr(getattr(block, "ls1", None), "gamma", None)
    if scale is not None:
        weight = scale[:, None] * weight
    parts = weight.reshape(len(weight), -1, width).transpose(0, 1)
    factor: Tensor = torch.linalg.qr(parts.float(), mode="r").R
    return factor


def _queries_and_keys(
    attention: nn.Module, tokens: Tensor, layout: TokenLayout, rope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``[B, heads, N, d]`` each, the queries scaled: the softmax of their products is attention."""
    module: Any = attention
    query, key = (_in_heads(module, project(module, tokens, f)) for f in _QUERY_KEY)
    query, key = module.q_norm(query), module.k_norm(key)
    if rope is not None:
        half = getattr(module, "rotate_half", False)
        query, key = (_rotate(part, layout, rope, half) for part in (query, key))
    return query * module.scale, key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


def _in_heads(module: Any, flat: Tensor) -> Tensor:
    """``[B, N, A]`` -> ``[B, heads, N, d]``."""
    count = flat.shape[-1] // module.head_dim
    return flat.reshape(*flat.shape[:2], count, module.head_dim).transpose(1, 2)


def _rotate(part: Tensor, layout: TokenLayout, rope: Tensor, half: bool) -> Tensor:
    # Rotary models keep registers in front (vit.py refuses others), so patches are the rest.
    front = part[:, :, : layout.extra]
    patches = apply_rot_embed_cat(part[:, :, layout.extra :], rope, half=half)
    return torch.cat((front, patches), dim=2).type_as(part)
