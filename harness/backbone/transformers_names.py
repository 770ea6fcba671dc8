"""DINOv2 checkpoints in the names of Hugging Face transformers -> DINOv2's own names.

``Dinov2Model`` and ``Dinov2WithRegistersModel``, and both inside a classifier; the reverse of
convert_dinov2_with_registers_to_hf.py of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PATCHES = "embeddings.patch_embeddings.projection.weight"
_PREFIX = re.compile(r"(dinov2\.|dinov2_with_registers\.)?")
_NAMES = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)
_QUERY = re.compile(r"(encoder\.layer\.\d+\.)attention\.attention\.query\.(weight|bias)")


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The same weights in DINOv2's names; None for a state dict that is not in these.

    Queries, keys and values come back into one matrix. Names that are not known stay, so that the
    strict loader finds them.
    """
    prefix = next((n.removesuffix(PATCHES) for n in state if n.endswith(PATCHES)), None)
    if prefix is None or not _PREFIX.fullmatch(prefix):
        return None
    left = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    found: dict[str, Tensor] = {}
    for query in [name for name in left if _QUERY.fullmatch(name)]:
        names = [query.replace(".query.", f".{each}.") for each in ("query", "key", "value")]
        if all(name in left for name in names):
            fused = query.replace("attention.attention.query", "attn.qkv")
            left[fused] = torch.cat([left.pop(name) for name in names])
    for name, value in left.items():
        for pattern, own in _NAMES:
            renamed, count = re.subn(f"^{pattern}", own, name)
            if count:
                name = renamed
                break
        found[name] = value
    return found
