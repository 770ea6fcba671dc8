"""Value paths against timm's own blocks, run with the identity in the place of the softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import load, make, pictures
from test_families import (
    DEPTH,
    NAMES,
    RECTANGLE,
    by_timms_rule,
    close,
    counted,
    images,
    sequence,
    small,
    unfused,
)
from test_interventions import INTERVENTIONS, official_input
from torch import Tensor

import harness
from harness.backbone.layout import DenseFacet
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError


@torch.inference_mode()
def timm_with_the_identity(
    backbone: Backbone, pixels: Tensor, layer: int, mlp: bool
) -> tuple[Tensor, Tensor]:
    """Input and output of a block whose attention is the identity, and whose MLP adds nothing
    unless ``mlp``."""
    module: Any = backbone.module
    block, seen = module.blocks[layer], {}
    handles = [
        block.attn.attn_drop.register_forward_hook(
            lambda _m, _i, weights: torch.eye(weights.shape[-1]).expand_as(weights)
        ),
        block.register_forward_pre_hook(lambda _m, inputs: seen.update(input=inputs[0])),
        block.register_forward_hook(lambda _m, _i, output: seen.update(output=output)),
    ]
    if not mlp:
        handles.append(block.mlp.register_forward_hook(lambda _m, _i, output: output * 0))
    try:
        with unfused(module):
            module.forward_features(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen["input"], seen["output"]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_path_is_timms_block_with_the_identity_for_attention(name: str) -> None:
    ours = by_timms_rule(small(name))
    pixels = images(ours, RECTANGLE)
    facets: tuple[DenseFacet, DenseFacet] = ("value-path", "value-written")
    reads = [Read(layer, facet) for layer in range(DEPTH) for facet in facets]
    with counted(ours) as ran:
        tokens = ours(pixels, reads).tokens
    assert ran == list(range(DEPTH - 1)), "the last block need not run"
    for layer in range(DEPTH):
        _, whole = timm_with_the_identity(ours, pixels, layer, mlp=True)
        close(sequence(tokens[Read(layer, "value-path")]), whole, 1e-4)
        entered, without = timm_with_the_identity(ours, pixels, layer, mlp=False)
        close(sequence(tokens[Read(layer, "value-written")]), without - entered, 1e-4)
    last, module = Read(DEPTH - 1, "value-path"), ours.module
    token, normed = Read(DEPTH - 1), Read(DEPTH - 1, "value-path", True)
    again = ours(pixels, [token, last, normed]).tokens
    off = (again[token].patches - again[last].patches).abs().max()
    assert off > 0.01, "attention does something"
    norm: Any = module.fc_norm if isinstance(module.norm, torch.nn.Identity) else module.norm
    with torch.no_grad():
        close(sequence(again[normed]), norm(sequence(tokens[last])))


def test_a_token_that_is_pooled_alone_is_what_the_head_makes_of_it_alone() -> None:
    each = [small(name) for name in NAMES]
    pooling = [one for one in each if one.architecture.global_feature == "attention pooling"]
    assert pooling
    for ours in map(by_timms_rule, pooling):
        pixels, module = images(ours, RECTANGLE), ours.module
        found = ours(pixels, [read := Read(DEPTH - 1, "pooled-alone", True)]).tokens[read].patches
        with torch.inference_mode():
            features: Any = module.forward_features(pixels)  # type: ignore[operator]
            extra = ours.architecture.layout.extra
            front, patches = features[:, :extra], features[:, extra:]
            if getattr(module, "pool_include_prefix", True):
                front = front[
                    :, :0
                ]  # what timm leaves out of the pool is there for it to leave out
            for place in range(patches.shape[1]):
                one = torch.cat((front, patches[:, place : place + 1]), dim=1)
                alone: Any = module.forward_head(one, pre_logits=True)  # type: ignore[operator]
                close(found.flatten(1, 2)[:, place], alone, 1e-4)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_value_path_sees_the_sequence_with_its_test_time_registers(
    name: str, tiny_models: Path
) -> None:
    tiny = harness.load_backbone("tiny", [tiny_models], device="cpu")
    pixels, read = official_input("98x98"), Read(3, "value-path")
    plain = tiny(pixels, [read]).tokens[read]
    with tiny.changed(INTERVENTIONS[name]) as changed:
        tokens = changed(pixels, [read, Read(2)]).tokens
        entered, block = sequence(tokens[Read(2)]), changed.module.blocks[3]  # type: ignore[index]
        assert entered.shape[1] == 1 + 49 + 1
        with torch.no_grad():
            values = block.attn.qkv(block.norm1(entered)).chunk(3, dim=-1)[2]
            entered = entered + block.ls1(block.attn.proj(values))
            expected = entered + block.ls2(block.mlp(block.norm2(entered)))
        close(sequence(tokens[read]), expected)
    assert plain.registers.shape[1] == 0
    assert float((plain.patches - tokens[read].patches).abs().max()) > 1e-3


def test_a_value_path_runs_in_half_precision() -> None:
    backbone = small("clip-vitb16")
    pixels, read = images(backbone, RECTANGLE), Read(2, "value-path", True)
    exact = backbone(pixels, [read]).tokens[read].patches
    half = backbone(pixels, [read], precision="bf16").tokens[read].patches.float()
    assert 0 < float((exact - half).abs().max()) < 0.2


def test_what_has_no_value_path_says_so() -> None:
    model = load(make("vit_small_patch16_224", arguments={"img_size": 80}))
    pixels = pictures((80, 80))
    for read in (Read("embedding", "value-path"), Read(2, "pooled-alone", True)):
        with pytest.raises(ValueError, match=read.facet):
            model(pixels, [read])
    differential = load(
        make("vit_small_patch16_224", arguments={"img_size": 80, "attn_layer": "diff"})
    )
    with pytest.raises(HarnessError, match="DiffAttention has no value path"):
        differential(pixels, [Read(2, "value-path")])
