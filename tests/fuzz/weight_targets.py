"""Damaged and contradictory checkpoints and text towers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import torch

from fuzz.mutations import altered, damaged
from harness.backbone.weights import read_checkpoint, signature
from harness.language.nano_tower import TowerFacts, Towers, load_nano_tower, tower_bytes


def checkpoint(draw: random.Random, folder: Path) -> None:
    from safetensors.torch import save

    state = {
        "cls_token": torch.zeros(1, 1, 8),
        "patch_embed.proj.weight": torch.ones(8, 3, 2, 2),
        "blocks.0.mlp.fc1.weight": torch.ones(16, 8),
        "reg_token": torch.zeros(1, 4, 8),
    }
    kind = draw.randrange(4)
    if kind == 0:
        path = folder / "a.safetensors"
        path.write_bytes(damaged(draw, save(state)))
    elif kind == 1:
        path = folder / "a.pth"
        saved = io.BytesIO()
        legacy = draw.random() < 0.3
        torch.save({"model": state}, saved, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(damaged(draw, saved.getvalue()))
    elif kind == 2:
        import pickle

        path = folder / "a.pth"
        path.write_bytes(damaged(draw, pickle.dumps({"model": {"x": [1, 2.5, "y"]}})))
    else:
        path = folder / "a.safetensors.index.json"
        (folder / "a-1.safetensors").write_bytes(save(state))
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "a-1.safetensors")}
        data = json.dumps(index).encode()
        if draw.random() < 0.6:
            data = json.dumps(altered(draw, index)).encode("utf-8", "surrogatepass")
        else:
            data = damaged(draw, data)
        path.write_bytes(data)
    signature(read_checkpoint(path))


def text_tower(draw: random.Random, folder: Path) -> None:
    from safetensors.torch import save

    sizes = {"width": 8, "depth": 1, "heads": 2, "context": 4, "shared": 4, "picture": 8}
    facts = TowerFacts(**sizes, vocabulary=("a", "b"))
    torch.manual_seed(0)  # a case is drawn from its seed alone
    path = folder / "a.safetensors"
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, tower_bytes(facts, Towers(facts))))
    else:
        told = json.dumps(altered(draw, facts.model_dump(mode="json")))
        path.write_bytes(save(Towers(facts).state_dict(), {"nano text tower": told}))
    tower = load_nano_tower(path, "")
    assert tower.encode(["a b", ""]).shape == (2, tower.width)
