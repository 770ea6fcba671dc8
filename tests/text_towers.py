"""Small open_clip models of fixed random weights, as folders that open_clip itself can load, and
registry entries with them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import entry

EMBEDDED = 32
SIZE = 64


def config(width: int = 64, patch: int = 16, quick: bool = False, **changes: Any) -> dict[str, Any]:
    """open_clip's configuration of a tiny CLIP."""
    return {
        "embed_dim": EMBEDDED,
        "quick_gelu": quick,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 3,
            "width": width,
            "head_width": 32 if width == 64 else 16,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
        **changes,
    }


def openclip_folder(folder: Path, configuration: dict[str, Any]) -> Any:
    """Write the folder of ``local-dir:FOLDER``; give open_clip's model, as it stands there. Skips
    where open_clip is not installed."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    folder.mkdir(parents=True)
    whole = {"model_cfg": configuration, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    with torch.no_grad():
        for name, weights in sorted(model.named_parameters()):
            weights.copy_(_drawn(name, weights))
    state = {name: each.contiguous() for name, each in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


def _drawn(name: str, weights: torch.Tensor) -> torch.Tensor:
    """Numbers of numpy's generator, which are the same on every machine."""
    if name == "logit_scale":
        return torch.tensor(np.log(20.0), dtype=torch.float32)
    if name == "logit_bias":
        return torch.tensor(-3.0)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = torch.from_numpy(generator.standard_normal(weights.shape).astype(np.float32))
    if weights.ndim == 1:
        return 0.1 * drawn + (1 if name.endswith("weight") else 0)
    return drawn * (0.5 if "embedding" in name else weights.shape[-1] ** -0.5)


def texted_models(folder: Path) -> Path:
    """A registry file with ``tiny`` and ``tiny-reg4`` (width 48) that read texts."""
    openclip_folder(folder / "tower", config(width=48))
    path = folder / "texted.yaml"
    text = '  text: {openclip: "local-dir:tower"}\n'
    path.write_text(f"{entry('tiny', 0)}{text}{entry('tiny-reg4', 4)}  baseline: tiny\n{text}")
    return path


def picture_checkpoint(folder: Path, model: Any, timm_name: str, **arguments: Any) -> str:
    """timm's own conversion of open_clip's weights into ``folder``; a registry file's text with the
    entry ``clip-tiny``."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = timm.create_model(timm_name, num_classes=0, **arguments)
    state = checkpoint_filter_fn(dict(model.state_dict()), module)
    own = {name: each.contiguous() for name, each in state.items() if not name.startswith("head.")}
    save_file(own, folder / "picture.safetensors")
    return (
        f"clip-tiny:\n  timm: {timm_name}\n  checkpoint: picture.safetensors\n"
        f"  arguments: {json.dumps(arguments)}\n"
        '  text: {openclip: "local-dir:."}\n'
        "  position_embedding: {antialias: true, offset: 0.0}\n"
    )
