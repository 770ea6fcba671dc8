"""Attention sinks: tokens that draw much of the attention of all queries, told apart by mechanism.

Fesser et al., "A Unifying View of Attention Sinks: Two Algorithms, Two Solutions" (arXiv
2606.08105): a head that has nothing to add attends to a token whose value is next to nothing
(null-like), and a head that spreads a summary has all tokens attend to the one that holds it
(broadcast-like). The figures and cut-offs are those of their released code
(KempnerInstitute/attention_sink, vit_causal), but for the rule that makes a token a sink.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.backbone.attention import Received
from harness.backbone.layout import Tokens

KINDS = "class", "register", "patch"
MECHANISMS = "null-like", "broadcast-like", "neither"


class Sinks(NamedTuple):
    """The sinks of B pictures in the heads of one layer.

    ``counts [B, heads, kinds, mechanisms]`` int64, in the order of ``KINDS`` and ``MECHANISMS``.
    ``norm [B, heads]``: of the token that draws most the length of its value over the median of all
    tokens'; ``drawn [B, heads]``: its share of the attention; ``rank [B, heads]``: the stable rank
    of what the head writes to the others.
    """

    counts: Tensor
    norm: Tensor
    drawn: Tensor
    rank: Tensor


def sinks(
    received: Received, share: float, null_norm: float, broadcast_norm: float, broadcast_rank: float
) -> Sinks:
    """Tokens that draw more than ``share`` of all queries' attention.

    Null-like: a value of at most ``null_norm`` times the median length. Broadcast-like: one of at
    least ``broadcast_norm`` times, where what the head writes to the other tokens has a stable rank
    of at most ``broadcast_rank``. One that is null-like writes nothing, whatever the rank.
    """
    parts = [_by_kind(tokens) for tokens in (received.share, received.norm)]
    drawn, norm = (torch.cat(part, dim=1) for part in parts)
    middle = norm.median(dim=1, keepdim=True).values
    relative = norm / middle.clamp_min(torch.finfo(norm.dtype).tiny)
    beyond = drawn > share
    null = relative <= null_norm
    low = (received.rank <= broadcast_rank)[:, None]
    broadcast = ~null & (relative >= broadcast_norm) & low
    mechanisms = torch.stack((null, broadcast, ~null & ~broadcast), dim=-1) & beyond[..., None]
    lengths = [part.shape[1] for part in parts[0]]
    counts = [kind.sum(dim=1) for kind in torch.split(mechanisms, lengths, dim=1)]
    most = drawn.argmax(dim=1, keepdim=True)
    return Sinks(
        torch.stack(counts, dim=2),
        relative.gather(1, most)[:, 0],
        drawn.gather(1, most)[:, 0],
        received.rank,
    )


def _by_kind(tokens: Tokens) -> list[Tensor]:
    """``[B, n, heads]`` of each of ``KINDS``."""
    patches = tokens.patches.flatten(1, 2)
    cls = patches[:, :0] if tokens.cls is None else tokens.cls[:, None]
    return [cls, tokens.registers, patches]
