"""Checkpoints in the names of Hugging Face transformers -> the names of their release.

``Dinov2Model``, ``Dinov2WithRegistersModel`` and ``DINOv3ViTModel``, each also inside a classifier;
the reverse of transformers' conversion scripts (convert_dinov2_with_registers_to_hf.py,
convert_dinov3_vit_to_hf.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
_Names = tuple[tuple[str, str], ...]

_DINOV2 = "embeddings.patch_embeddings.projection.weight"
_DINOV2_PREFIX = re.compile(r"(dinov2\.|dinov2_with_registers\.)?")
_DINOV2_QUERY = re.compile(r"(encoder\.layer\.\d+\.)attention\.attention\.query\.(weight|bias)")
_DINOV2_NAMES: _Names = (
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

_DINOV3 = "embeddings.patch_embeddings.weight"
_DINOV3_PREFIX = re.compile(r"(dinov3_vit\.)?")
_DINOV3_QUERY = re.compile(r"(layer\.\d+\.)attention\.q_proj\.(weight|bias)")
_DINOV3_GATE = re.compile(r"(layer\.\d+\.)mlp\.gate_proj\.weight")
_DINOV3_NAMES: _Names = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", "storage_tokens"),
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layer\.(\d+)\.attention\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"layer\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"layer\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.w1."),
    (r"layer\.(\d+)\.(norm[12]|mlp)\.", r"blocks.\1.\2."),
)
_PLAIN_MLP: _Names = ((r"up_proj\.", "fc1."), (r"down_proj\.", "fc2."))
_GATED_MLP: _Names = ((r"up_proj\.", "w2."), (r"down_proj\.", "w3."))


def to_official(state: Mapping[str, Tensor]) -> State | None:
    """The same weights in their release's names; None for a state dict that is not in these.

    Queries, keys and values come back into one matrix. Names that are not known stay, so that the
    strict loader finds them.
    """
    left = _within(state, _DINOV2, _DINOV2_PREFIX)
    if left is not None:
        return _dinov2(left)
    left = _within(state, _DINOV3, _DINOV3_PREFIX)
    return None if left is None else _dinov3(left)


def _within(state: Mapping[str, Tensor], patches: str, prefixes: re.Pattern[str]) -> State | None:
    """The backbone's part of ``state``, which ``patches`` tells from others."""
    prefix = next((n.removesuffix(patches) for n in state if n.endswith(patches)), None)
    if prefix is None or not prefixes.fullmatch(prefix):
        return None
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _dinov2(left: State) -> State:
    for query in [name for name in left if _DINOV2_QUERY.fullmatch(name)]:
        names = [query.replace(".query.", f".{each}.") for each in ("query", "key", "value")]
        if _alike([left.get(name) for name in names]):
            fused = query.replace("attention.attention.query", "attn.qkv")
            left[fused] = torch.cat([left.pop(name) for name in names])
    return {_renamed(name, _DINOV2_NAMES): value for name, value in left.items()}


def _dinov3(left: State) -> State:
    # What save_pretrained writes as layer.N is model.layer.N in the module since transformers 5.
    left = {re.sub(r"^model\.layer\.", "layer.", name): value for name, value in left.items()}
    for query in [name for name in left if _DINOV3_QUERY.fullmatch(name)]:
        names = [query.replace(".q_proj.", f".{each}_proj.") for each in "qkv"]
        if query.endswith("bias") and names[1] not in left and names[2] in left:
            left[names[1]] = torch.zeros_like(left[query])  # the release masks that of its keys
        if _alike([left.get(name) for name in names]):
            fused = query.replace(".q_proj.", ".qkv.")
            left[fused] = torch.cat([left.pop(name) for name in names])
    gated = {match[1] for match in map(_DINOV3_GATE.fullmatch, left) if match}
    found: State = {}
    for name, value in left.items():
        block, mlp, matrix = name.partition("mlp.")
        if mlp:
            name = block + mlp + _renamed(matrix, _GATED_MLP if block in gated else _PLAIN_MLP)
        found[_renamed(name, _DINOV3_NAMES)] = value
    registers = found.get("storage_tokens")
    if registers is not None and not registers.numel():
        del found["storage_tokens"]  # transformers keeps an empty tensor where there are none
    return found


def _alike(parts: list[Tensor | None]) -> bool:
    """Whether all are there, as parts of one matrix or bias; what is torn stays as it is."""
    shapes = {None if part is None else part.shape for part in parts}
    return len(shapes) == 1 and bool(next(iter(shapes)))


def _renamed(name: str, names: _Names) -> str:
    for pattern, own in names:
        renamed, count = re.subn(f"^{pattern}", own, name)
        if count:
            return renamed
    return name
