"""Two tiny DINOv3s: their weights, drawn from a seed, and what transformers computes with them.

Only names, shapes and outputs are kept, in ``tests/reference/dinov3_tiny_reference.npz``; numpy
keeps the stream of ``RandomState`` for good. Made by transformers 5.24.0 and torch 2.14.1, where
transformers is installed, with ``python tests/backbone/dinov3_tiny.py``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "dinov3_tiny_reference.npz"
SIZES = {"square": (64, 64), "wide": (48, 112)}
SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_register_tokens": 4,
    "image_size": 64,
}
# As the releases are configured: a plain MLP with biases of queries and values (S, B, L), a gated
# one without (7B).
KINDS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "gated": SMALL
    | {"use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
}
TIMM = {"plain": "vit_small_patch16_dinov3_qkvb", "gated": "vit_small_plus_patch16_dinov3"}
ARGUMENTS: dict[str, Any] = {
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2,
    "img_size": 64,
    "global_pool": "token",
}


def draw(shapes: dict[str, list[int]], seed: int = 0) -> State:
    """Weights that all matter: norms and scales about 1, no bias of 0, no two tokens alike."""
    random = np.random.RandomState(seed)
    state: State = {}
    for name, shape in sorted(shapes.items()):
        value = random.standard_normal(shape)
        if len(shape) == 1:
            value = 0.2 * value + (0 if name.endswith("bias") else 1)
        elif len(shape) != 3:
            value = value / np.prod(shape[1:]) ** 0.5
        state[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


def pictures(size: str) -> Tensor:
    drawn = np.random.RandomState(1).standard_normal((2, 3, *SIZES[size]))
    return torch.from_numpy(drawn.astype(np.float32))


def published(kind: str) -> State:
    """The weights of one of ``KINDS`` as ``save_pretrained`` of transformers names them."""
    with np.load(REFERENCE) as arrays:
        return draw(json.loads(str(arrays[f"{kind}/shapes"])))


def _main() -> None:
    from safetensors.torch import load_file, save_file
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    found: dict[str, Any] = {}
    for kind, settings in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            DINOv3ViTModel(DINOv3ViTConfig(**settings)).save_pretrained(folder)
            shapes = {name: list(value.shape) for name, value in load_file(file).items()}
            save_file(draw(shapes), file, metadata={"format": "pt"})
            model = DINOv3ViTModel.from_pretrained(folder).eval()
        found[f"{kind}/shapes"] = json.dumps(shapes)
        for size in SIZES:
            with torch.no_grad():
                out = model(pictures(size), output_hidden_states=True)
            found[f"{kind}/{size}/normed"] = out.last_hidden_state.numpy()
            found[f"{kind}/{size}/first"] = out.hidden_states[1].numpy()
    np.savez_compressed(REFERENCE, **found)


if __name__ == "__main__":
    _main()
