"""What transformers' config.json beside a checkpoint says that no weight's shape can tell.

Six heads or twelve, another rotary base, another epsilon: the same shapes, other tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from harness.documents import MAX_BYTES

_FAMILIES = {"dinov2", "dinov2_with_registers", "dinov3_vit"}


def differences(checkpoint: Path, module: nn.Module) -> list[str]:
    """Where the config.json beside ``checkpoint`` and a timm ``module`` disagree, in words.

    Empty where there is no such file, or where it is not of a family that is known here.
    """
    config = _config(checkpoint.with_name("config.json"))
    found = []
    for key, ours in _facts(module).items():
        theirs = config.get(key)
        if theirs is not None and theirs != ours:
            found.append(f"config.json beside it: {key} is {theirs}, the entry's model has {ours}")
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict) or config.get("model_type") not in _FAMILIES:
        return {}
    rotary = config.get("rope_parameters")  # where other families of transformers 5 keep the base
    if isinstance(rotary, dict):
        config.setdefault("rope_theta", rotary.get("rope_theta"))
    if config["model_type"] != "dinov3_vit":
        config.pop("hidden_act", None)  # DINOv2's gated MLP does not look at it
    return config


def _facts(module: nn.Module) -> dict[str, object]:
    model: Any = module
    block = model.blocks[0]
    facts: dict[str, object] = {
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": getattr(model.norm, "eps", None),
        "rope_theta": getattr(getattr(model, "rope", None), "temperature", None),
    }
    act = getattr(block.mlp, "act", None)
    if isinstance(act, nn.GELU):
        facts["hidden_act"] = "gelu" if act.approximate == "none" else "gelu_pytorch_tanh"
    elif isinstance(act, nn.SiLU):
        facts["hidden_act"] = "silu"
    return {key: value for key, value in facts.items() if value is not None}
