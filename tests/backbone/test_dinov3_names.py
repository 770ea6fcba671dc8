"""DINOv3 as transformers publishes it, and in the release's own names, through the strict door.

What the tiny models give was computed by transformers 5.24.0 (``dinov3_tiny.py`` beside this file
says how), for a plain and a gated MLP, on a square and a wide grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dinov3_tiny import ARGUMENTS, KINDS, REFERENCE, SIZES, TIMM, pictures, published
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone.sources import load_backbone
from harness.backbone.transformers_names import to_official
from harness.backbone.vit import Backbone, Read
from harness.backbone.weights import load_strictly
from harness.errors import HarnessError
from harness.registry import ModelEntry, Registry

State = dict[str, Tensor]
TOLERANCE = 1e-5


def entry(kind: str, checkpoint: Path, name: str = "mine", **changes: Any) -> ModelEntry:
    arguments = {**ARGUMENTS, **changes.pop("arguments", {})}
    facts = {"timm": TIMM[kind], "registers": 4, "checkpoint": checkpoint, **changes}
    return ModelEntry.model_validate({"name": name, **facts, "arguments": arguments})


def load(folder: Path, kind: str, state: State, **changes: Any) -> Backbone:
    checkpoint = folder / "checkpoint.safetensors"
    save_file({name: value.clone() for name, value in state.items()}, checkpoint)
    return load_backbone(entry(kind, checkpoint, **changes), "cpu")


def message(folder: Path, kind: str, state: State, **changes: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        load(folder, kind, state, **changes)
    assert str(caught.value).startswith(f"{folder / 'checkpoint.safetensors'}: does not fit")
    return str(caught.value)


def own(kind: str) -> State:
    """The same weights as the dinov3 repository names them, and what else its files hold."""
    found: State = {}
    mlp = {"up_proj": "fc1", "down_proj": "fc2"}
    if kind == "gated":
        mlp = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    for name, value in published(kind).items():
        name = name.removeprefix("embeddings.").replace("layer.", "blocks.")
        name = name.replace("register_tokens", "storage_tokens")
        name = name.replace("patch_embeddings", "patch_embed.proj")
        name = name.replace("layer_scale", "ls").replace("lambda1", "gamma")
        name = name.replace("attention.o_proj", "attn.proj").replace("attention.", "attn.")
        for theirs, release in mlp.items():
            name = name.replace(theirs, release)
        found[name] = value
    for block in range(2):
        at = f"blocks.{block}.attn."
        parts = [found.pop(f"{at}{each}_proj.weight") for each in "qkv"]
        found[f"{at}qkv.weight"] = torch.cat(parts)
        if kind == "plain":
            query, value = (found.pop(f"{at}{each}_proj.bias") for each in "qv")
            # The release's key biases are whatever they were: they are masked.
            found[f"{at}qkv.bias"] = torch.cat((query, torch.full_like(query, 0.7), value))
            zeros, ones = torch.zeros(48), torch.ones(48)
            found[f"{at}qkv.bias_mask"] = torch.cat((ones, zeros, ones))
    found["mask_token"] = found["mask_token"][0]
    found["rope_embed.periods"] = (100 ** (torch.arange(4) / 4)).bfloat16()
    return found


LAYOUTS: dict[str, Callable[[str], State]] = {
    "transformers": published,
    "transformers, its module's names": lambda kind: {
        name.replace("layer.", "model.layer.", 1) if name.startswith("layer.") else name: value
        for name, value in published(kind).items()
    },
    "transformers, in a classifier": lambda kind: {
        **{f"dinov3_vit.{name}": value for name, value in published(kind).items()},
        "classifier.weight": torch.zeros(2, 48),
    },
    "release": own,
    "release, in training": lambda kind: {
        **{f"backbone.{name}": value for name, value in own(kind).items()},
        "dino_head.weight": torch.zeros(2),
        "backbone.local_cls_norm.weight": torch.zeros(48),
    },
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_transformers(tmp_path: Path, kind: str, size: str) -> None:
    first, last = Read(0), Read(1, norm=True)
    tokens = load(tmp_path, kind, published(kind))(pictures(size), [first, last]).tokens
    with np.load(REFERENCE) as arrays:
        for read, what in ((first, "first"), (last, "normed")):
            theirs = torch.from_numpy(arrays[f"{kind}/{size}/{what}"])
            ours = tokens[read]
            assert ours.cls is not None and ours.registers.shape[1] == 4
            assert ours.patches.shape[1:3] == tuple(side // 16 for side in SIZES[size])
            parts = (ours.cls[:, None], ours.registers, ours.patches.flatten(1, 2))
            torch.testing.assert_close(torch.cat(parts, 1), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_the_same_weights_are_loaded_from_every_layout(
    tmp_path: Path, kind: str, layout: str
) -> None:
    ours = load(tmp_path, kind, LAYOUTS[layout](kind)).weights_digest
    assert ours == load(tmp_path, kind, published(kind)).weights_digest


@pytest.mark.parametrize("layout", ["transformers", "release"])
def test_biases_that_are_zero_are_left_out_for_a_model_without_them(
    tmp_path: Path, layout: str
) -> None:
    state = LAYOUTS[layout]("plain")
    for name in state:
        if name.endswith(("q_proj.bias", "v_proj.bias", "qkv.bias")):
            state[name] = torch.zeros_like(state[name])
    plain = {"timm": "vit_small_patch16_dinov3"}
    without = load(tmp_path, "plain", state, **plain)
    assert not any("bias" in name and "attn.q" in name for name in without.module.state_dict())
    read = Read(1, norm=True)
    ours, theirs = (
        one(pictures("wide"), [read]).tokens[read].patches
        for one in (without, load(tmp_path, "plain", state))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("part", [0, 2])
def test_biases_that_are_not_zero_need_a_model_that_has_them(tmp_path: Path, part: int) -> None:
    state = own("plain")
    for block in range(2):
        state[f"blocks.{block}.attn.qkv.bias"] *= 0
    state["blocks.1.attn.qkv.bias"][48 * part] = 1e-3
    text = message(tmp_path, "plain", state, timm="vit_small_patch16_dinov3")
    assert "blocks.1.attn.qkv.bias: biases of queries or values that are not zero" in text
    assert "_qkvb" in text


@pytest.mark.parametrize("layout", ["transformers", "release"])
def test_a_key_bias_that_runs_is_an_error(tmp_path: Path, layout: str) -> None:
    state = LAYOUTS[layout]("plain")
    if layout == "transformers":
        for block in range(2):
            state[f"layer.{block}.attention.k_proj.bias"] = torch.full((48,), 0.7)
    else:
        del state["blocks.0.attn.qkv.bias_mask"], state["blocks.1.attn.qkv.bias_mask"]
    text = message(tmp_path, "plain", state)
    assert "blocks.0.attn.qkv.bias and 1 more: biases of keys that are not zero" in text


def test_another_bias_mask_than_the_releases_is_an_error(tmp_path: Path) -> None:
    for wrong in (torch.ones(144), torch.full((144,), torch.nan), torch.ones(3)):
        text = message(tmp_path, "plain", own("plain") | {"blocks.1.attn.qkv.bias_mask": wrong})
        assert "blocks.1.attn.qkv.bias: its bias_mask is not 1 for queries and values" in text


def test_a_mask_without_its_bias_is_an_error(tmp_path: Path) -> None:
    state = own("gated") | {"blocks.1.attn.qkv.bias_mask": torch.ones(144)}
    assert "not in the model: blocks.1.attn.qkv.bias_mask" in message(tmp_path, "gated", state)


@pytest.mark.parametrize("change", [{"num_heads": 6}, {"rope_temperature": 10.0}])
def test_other_rotary_periods_than_the_models_are_an_error(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    text = message(tmp_path, "plain", own("plain"), arguments=change)
    assert "rope_embed.periods: 4 from 1 to 31.62 in the file" in text
    assert "another number of heads, or another rope_temperature" in text


def test_a_norm_of_the_class_token_alone_is_an_error(tmp_path: Path) -> None:
    state = own("plain") | {f"cls_norm.{each}": torch.ones(48) for each in ("weight", "bias")}
    text = message(tmp_path, "plain", state)
    assert "cls_norm: class and register tokens have a norm of their own" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["transformers", "release"])
def test_every_weight_is_missed(tmp_path: Path, kind: str, layout: str) -> None:
    whole = LAYOUTS[layout](kind)
    module = load(tmp_path, kind, whole).module
    checkpoint = tmp_path / "torn.safetensors"
    for name in whole:
        if ".1." in name or name.endswith(("mask_token", "periods")):
            continue
        save_file({other: value for other, value in whole.items() if other != name}, checkpoint)
        what = "biases of keys" if name.endswith("bias_mask") else "missing: "
        with pytest.raises(HarnessError, match=what):
            load_strictly(module, checkpoint, lambda: "")


@pytest.mark.parametrize(
    "name", ["layer.1.surplus", "layer.1.mlp.side_proj.weight", "embeddings.x"]
)
def test_what_is_too_much_is_an_error(tmp_path: Path, name: str) -> None:
    text = message(tmp_path, "plain", published("plain") | {name: torch.zeros(1)})
    assert "not in the model: " in text and name.rpartition(".")[2] in text


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = published("gated") | {"layer.0.mlp.gate_proj.weight": torch.zeros(80, 48)}
    text = message(tmp_path, "gated", state)
    assert "blocks.0.mlp.fc1_g.weight: [80, 48] in the file, [96, 48] in the model" in text


@pytest.mark.parametrize("shape", [(), (1,), (2,), (48, 2)])
@pytest.mark.parametrize("name", ["bias", "weight"])
@pytest.mark.parametrize("layout", ["transformers", "release"])
def test_queries_keys_and_values_of_an_impossible_shape_are_an_error(
    tmp_path: Path, layout: str, name: str, shape: tuple[int, ...]
) -> None:
    at = "layer.1.attention.q_proj" if layout == "transformers" else "blocks.1.attn.qkv"
    state = LAYOUTS[layout]("plain")
    state.pop("blocks.1.attn.qkv.bias_mask", None)
    message(tmp_path, "plain", state | {f"{at}.{name}": torch.zeros(shape)})


def test_registers_of_an_impossible_shape_are_an_error(tmp_path: Path) -> None:
    message(tmp_path, "plain", own("plain") | {"storage_tokens": torch.zeros(48)})


@pytest.mark.parametrize("layout", ["transformers", "release"])
def test_the_other_mlp_is_told_and_its_entry_named(tmp_path: Path, layout: str) -> None:
    files = {kind: tmp_path / f"{kind}.safetensors" for kind in KINDS}
    for kind, file in files.items():
        save_file(LAYOUTS[layout](kind), file)
    wrong = entry("plain", files["gated"], "wrong")
    registry = Registry([wrong, *(entry(kind, file, kind) for kind, file in files.items())])
    with pytest.raises(HarnessError) as caught:
        load_backbone(wrong, "cpu", registry=registry)
    text = str(caught.value)
    assert (
        "it looks like 2 blocks, width 48, patch 16, 4 registers, a class token, gated MLP" in text
    )
    assert "it would fit: gated" in text


def test_registers_under_an_entry_without_them_are_told(tmp_path: Path) -> None:
    text = message(tmp_path, "plain", own("plain"), registers=0, arguments={"num_reg_tokens": 0})
    assert "0 registers, a class token: it looks like 2 blocks, width 48, patch 16, 4 reg" in text


def test_a_model_without_registers_is_loaded_from_an_empty_tensor(tmp_path: Path) -> None:
    state = published("plain") | {"embeddings.register_tokens": torch.zeros(1, 0, 48)}
    none = {"registers": 0, "arguments": {"num_reg_tokens": 0}}
    assert load(tmp_path, "plain", state, **none).architecture.layout.registers == 0


CONFIG: dict[str, Any] = {
    "model_type": "dinov3_vit",
    "num_attention_heads": 3,
    "rope_theta": 100.0,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}


@pytest.mark.parametrize(
    ("key", "theirs", "ours"),
    [
        ("num_attention_heads", 6, "3"),
        ("rope_theta", 10000.0, "100.0"),
        ("layer_norm_eps", 1e-6, "1e-05"),
        ("hidden_act", "silu", "gelu"),
    ],
)
def test_a_config_beside_it_that_says_otherwise_is_an_error(
    tmp_path: Path, key: str, theirs: object, ours: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    load(tmp_path, "plain", published("plain"))
    config.write_text(json.dumps(CONFIG | {key: theirs}))
    text = message(tmp_path, "plain", published("plain"))
    assert f"config.json beside it: {key} is {theirs}, the entry's model has {ours}" in text


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model_type": "vit", "num_attention_heads": 9}', '{"architecture": "x"}']
)
def test_a_config_of_something_else_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    load(tmp_path, "plain", published("plain"))


def test_the_names_of_the_release_are_left_alone() -> None:
    assert to_official(own("plain")) is None
    assert to_official(own("gated")) is None


def test_what_is_kept_of_transformers_is_all_compared() -> None:
    with np.load(REFERENCE) as arrays:
        kept = {f"{k}/{s}/{w}" for k in KINDS for s in SIZES for w in ("first", "normed")}
        assert set(arrays) == kept | {f"{kind}/shapes" for kind in KINDS}
    assert REFERENCE.stat().st_size < 200_000
