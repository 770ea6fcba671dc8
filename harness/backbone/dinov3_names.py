"""DINOv3 checkpoints in the release's own names -> timm's ``Eva``.

timm's models lack three things that the release's files have: a key bias (the release masks its
own to zero), rotary periods among the weights, and, but for the ``_qkvb`` models, biases of queries
and values (zero in every released weight). Each is looked at before it is left out: what would
change a token is a problem, and not dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_BIAS = ".attn.qkv.bias"
_MASK = ".attn.qkv.bias_mask"
_PERIODS = "rope_embed.periods"
_NAMES = (
    (r"storage_tokens", "reg_token"),
    (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),
    (r"(blocks\.\d+\.mlp)\.w1\.(.+)", r"\1.fc1_g.\2"),
    (r"(blocks\.\d+\.mlp)\.w2\.(.+)", r"\1.fc1_x.\2"),
    (r"(blocks\.\d+\.mlp)\.w3\.(.+)", r"\1.fc2.\2"),
)
# Neither runs at inference; the local norm is that of the small crops of training.
_UNUSED = ("mask_token", "head.", "local_cls_norm.")


def is_own(state: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether ``state`` is in the release's names and ``module`` one of timm's that take them."""
    from timm.models.eva import Eva

    marks = ("storage_tokens", _PERIODS)
    ends = (".ls1.gamma", _MASK)
    return isinstance(module, Eva) and any(n in marks or n.endswith(ends) for n in state)


def to_timm(state: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` in timm's names, and in words what of it the ``module`` cannot run.

    Names that are not known stay, so that the strict loader finds them.
    """
    converted: dict[str, Tensor] = {}
    keys: list[str] = []
    others: list[str] = []
    problems: list[str] = []
    own = module.state_dict()
    for name, value in state.items():
        if name.startswith(_UNUSED):
            continue
        if name == _PERIODS:
            problems += _compare_periods(value, module)
        elif name.endswith(_MASK) and name.removesuffix("_mask") in state:
            continue  # read with its bias
        elif name.endswith(_BIAS) and value.ndim == 1 and len(value) and len(value) % 3 == 0:
            bias = _masked(value, state.get(f"{name}_mask"))
            if bias is None:
                problems.append(
                    f"{name}: its bias_mask is not 1 for queries and values, 0 for keys"
                )
                continue
            query, key, value_ = bias.chunk(3)
            if _matters(key):
                keys.append(name)
            attention = name.removesuffix("qkv.bias")
            if f"{attention}q_bias" in own:
                converted[f"{attention}q_bias"] = query
                converted[f"{attention}v_bias"] = value_
            elif _matters(query) or _matters(value_):
                others.append(name)
        else:
            converted[_renamed(name)] = value
    if keys:
        problems.append(
            f"{_several(keys)}: biases of keys that are not zero; timm's model has none"
        )
    if others:
        problems.append(
            f"{_several(others)}: biases of queries or values that are not zero, and the entry's "
            f"model has none; its timm twin with _qkvb at the end of its name has"
        )
    if any(name.startswith("cls_norm.") for name in state):
        problems.append(
            "cls_norm: class and register tokens have a norm of their own; timm's "
            "model has one norm for all tokens"
        )
    return converted, problems


def _renamed(name: str) -> str:
    for pattern, own in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, own, name)
    return name


def _masked(bias: Tensor, mask: Tensor | None) -> Tensor | None:
    """The bias that runs, ``[3 D]``; None where the mask is another than the release's."""
    if mask is None:
        return bias
    expected = torch.ones_like(bias)
    expected.chunk(3)[1].zero_()
    if mask.shape != bias.shape or not torch.equal(mask.to(bias.dtype), expected):
        return None
    return bias * expected


def _matters(bias: Tensor) -> bool:
    return bool((bias != 0).any())  # a NaN does


def _compare_periods(periods: Tensor, module: nn.Module) -> list[str]:
    """The release keeps them in bfloat16, timm computes them in float32: equal up to that."""
    rope: Any = getattr(module, "rope", None)
    own = getattr(rope, "periods", None)
    if own is None:
        return [f"{_PERIODS}: the entry's model has no rotary periods"]
    ours, theirs = own.detach().float().cpu(), periods.float()
    if ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=2**-8, atol=0):
        return []
    return [
        f"{_PERIODS}: {_range(theirs)} in the file, {_range(ours)} in the model: another number of "
        f"heads, or another rope_temperature"
    ]


def _range(periods: Tensor) -> str:
    if periods.ndim != 1 or not len(periods):
        return str(list(periods.shape))
    return f"{len(periods)} from {float(periods[0]):.4g} to {float(periods[-1]):.4g}"


def _several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
