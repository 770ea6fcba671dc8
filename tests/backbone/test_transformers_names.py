"""DINOv2 as Hugging Face transformers publishes it, through the same strict door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import REFERENCE, entry
from torch import Tensor

import harness
from harness.backbone.transformers_names import to_official
from harness.errors import HarnessError

State = dict[str, Tensor]


def published(registers: int, prefix: str = "") -> State:
    """The tiny model in the names of transformers, as its conversion script writes them."""
    names = {
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
    }
    found: State = {}
    for name, value in load_file(REFERENCE / f"dinov2_tiny_reg{registers}.safetensors").items():
        if name.startswith("blocks."):
            name = name.replace("blocks.", "encoder.layer.")
            for scale in "12":
                name = name.replace(f".ls{scale}.gamma", f".layer_scale{scale}.lambda1")
            name = name.replace(".attn.proj.", ".attention.output.dense.")
            if ".attn.qkv." in name:
                for part, kind in zip(value.chunk(3), ("query", "key", "value"), strict=True):
                    whole = name.replace(".attn.qkv.", f".attention.attention.{kind}.")
                    found[prefix + whole] = part.clone()
                continue
        else:
            own = next(each for each in names if name.startswith(each))
            name = names[own] + name.removeprefix(own)
        found[prefix + name] = value
    return found


def weights_digest(folder: Path, checkpoint: Path, registers: int) -> str:
    file = folder / "mine.yaml"
    file.write_text(entry("mine", registers, checkpoint))
    return harness.load_backbone("mine", [file], device="cpu").weights_digest


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
def test_the_same_weights_are_loaded_as_from_dinov2s_own_file(
    tmp_path: Path, registers: int, prefix: str
) -> None:
    state = published(registers, prefix)
    if prefix:
        state["classifier.weight"] = torch.zeros(2, 96)
    save_file(state, tmp_path / "hub.safetensors")
    ours = weights_digest(tmp_path, tmp_path / "hub.safetensors", registers)
    own = REFERENCE / f"dinov2_tiny_reg{registers}.safetensors"
    assert ours == weights_digest(tmp_path, own, registers)


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.1.attention.attention.key.bias", "layernorm.weight", "embeddings.cls_token"],
)
def test_what_is_missing_is_an_error(tmp_path: Path, name: str) -> None:
    state = published(4)
    del state[name]
    save_file(state, tmp_path / "torn.safetensors")
    with pytest.raises(HarnessError, match="does not fit the entry"):
        weights_digest(tmp_path, tmp_path / "torn.safetensors", 4)


def test_what_is_too_much_is_an_error(tmp_path: Path) -> None:
    state = published(4) | {"encoder.layer.1.surplus": torch.zeros(1)}
    save_file(state, tmp_path / "more.safetensors")
    with pytest.raises(HarnessError, match=r"not in the model: blocks.1.surplus"):
        weights_digest(tmp_path, tmp_path / "more.safetensors", 4)


def test_a_config_beside_it_with_other_heads_is_an_error(tmp_path: Path) -> None:
    save_file(published(4), tmp_path / "hub.safetensors")
    config = tmp_path / "config.json"
    facts = {"model_type": "dinov2_with_registers", "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    config.write_text(json.dumps(facts | {"num_attention_heads": 3}))
    weights_digest(tmp_path, tmp_path / "hub.safetensors", 4)
    config.write_text(json.dumps(facts | {"num_attention_heads": 6}))
    with pytest.raises(HarnessError, match="num_attention_heads is 6, the entry's model has 3"):
        weights_digest(tmp_path, tmp_path / "hub.safetensors", 4)


def test_registers_under_an_entry_without_them_are_told(tmp_path: Path) -> None:
    save_file(published(4), tmp_path / "hub.safetensors")
    with pytest.raises(HarnessError, match="4 registers"):
        weights_digest(tmp_path, tmp_path / "hub.safetensors", 0)


def test_a_gated_mlp_has_its_two_matrices_renamed() -> None:
    state = {
        "embeddings.patch_embeddings.projection.weight": torch.zeros(1),
        "encoder.layer.3.mlp.weights_in.weight": torch.zeros(1),
        "encoder.layer.3.mlp.weights_out.bias": torch.zeros(1),
    }
    found = to_official(state)
    assert found is not None
    assert set(found) == {
        "patch_embed.proj.weight",
        "blocks.3.mlp.w12.weight",
        "blocks.3.mlp.w3.bias",
    }


def test_other_names_are_left_alone() -> None:
    assert to_official(load_file(REFERENCE / "dinov2_tiny_reg4.safetensors")) is None
    assert (
        to_official({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(1)}) is None
    )
