"""Every model class of models.yaml, made small, against timm's own forward and the weights.

Weights are drawn anew (``small_models.redraw``): timm's own initial ones leave tokens nearly as
they were, and a swapped row would not show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from small_models import load, make, pictures, shrunk
from torch import Tensor

from harness.backbone import sources
from harness.backbone.layout import TokenLayout, Tokens
from harness.backbone.position import PositionRule
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError
from harness.registry import ModelEntry, Registry

REGISTRY = Registry.load()
# Those of timm's as they are: what changes them has its tests in test_interventions.py, and what a
# factory of ours makes in tests/nano.
SHIPPED = [
    name
    for name in REGISTRY.names()
    if REGISTRY.entry(name).timm and not REGISTRY.entry(name).interventions
]
DEPTH, SQUARE, RECTANGLE = 3, (5, 5), (3, 7)

# Classes and settings beyond models.yaml that a user's entry may name.
EXTRA: dict[str, ModelEntry] = {
    "eva (no rope)": make("eva_giant_patch14_224", arguments={"img_size": 70}),
    "eva02 (qkv in one)": make("eva02_tiny_patch14_224", arguments={"img_size": 70}),
    "eva02 (q, k, v apart)": make("eva02_base_patch14_224", arguments={"img_size": 70}),
    "dinov3 (q and v biases)": make(
        "vit_small_patch16_dinov3_qkvb", 4, arguments={"img_size": 80, "global_pool": "token"}
    ),
    "dinov3 (mean of patches)": make("vit_small_patch16_dinov3", 4, arguments={"img_size": 80}),
    "rope mixed": make("vit_small_patch16_rope_mixed_224", arguments={"img_size": 80}),
    "rope mixed and positions": make(
        "vit_small_patch16_rope_mixed_ape_224", arguments={"img_size": 80}
    ),
    "rope, fewer keys than queries": make(
        "vit_mediumd_patch16_rope_reg1_gap_256",
        1,
        arguments={"img_size": 80, "qkv_fused": False, "num_kv_heads": 2, "attn_type": "rope"},
    ),
    "perception encoder": make("vit_pe_core_tiny_patch16_384", arguments={"img_size": 80}),
    "so150m2": make("vit_so150m2_patch16_reg1_gap_256", 1, arguments={"img_size": 80}),
    "positions over class and registers": make(
        "vit_small_patch16_224",
        2,
        arguments={"img_size": 80, "reg_tokens": 2, "no_embed_class": False},
    ),
    "qk norm": make("vit_small_patch16_224", arguments={"img_size": 80, "qk_norm": True}),
    "no positions": make("vit_small_patch16_224", arguments={"img_size": 80, "pos_embed": "none"}),
    "norm after pooling a class token": make(
        "vit_small_patch16_224", arguments={"img_size": 80, "fc_norm": True}
    ),
    "attention pooling beside a class token": make(
        "vit_small_patch16_224", arguments={"img_size": 80, "global_pool": "map"}
    ),
    "flexivit": make("flexivit_small", arguments={"img_size": 80}),
}
NAMES = [*SHIPPED, *EXTRA]


@cache
def small(name: str) -> Backbone:
    return load(EXTRA[name] if name in EXTRA else shrunk(name, SQUARE[0]))


def by_timms_rule(backbone: Backbone) -> Backbone:
    """The same module with timm's resampling, for a comparison with timm away from its own size."""
    facts = backbone.architecture
    if facts.position is not None:
        facts = replace(facts, position=PositionRule())
    return Backbone(backbone.name, backbone.module, facts, backbone.device)


def images(backbone: Backbone, grid: tuple[int, int]) -> Tensor:
    return pictures([side * backbone.architecture.patch for side in grid])


@dataclass
class Timm:
    """What timm's own, unfused forward of a module computes, seen through hooks."""

    features: Tensor
    pooled: Tensor
    intermediates: list[tuple[Tensor, Tensor | None]]
    attention_input: list[Tensor] = field(default_factory=list)
    qkv_output: dict[int, Tensor] = field(default_factory=dict)
    attention: list[Tensor] = field(default_factory=list)


@contextmanager
def unfused(module: Any) -> Iterator[None]:
    before = [block.attn.fused_attn for block in module.blocks]
    for block in module.blocks:
        block.attn.fused_attn = False
    try:
        yield
    finally:
        for block, fused in zip(module.blocks, before, strict=True):
            block.attn.fused_attn = fused


@torch.inference_mode()
def run_timm(backbone: Backbone, pixels: Tensor) -> Timm:
    module: Any = backbone.module
    seen: dict[str, Any] = {"attention_input": [], "qkv_output": {}, "attention": []}
    handles = []
    for index, block in enumerate(module.blocks):
        attention = block.attn
        handles.append(
            attention.register_forward_pre_hook(
                lambda _, inputs: seen["attention_input"].append(inputs[0])
            )
        )
        handles.append(
            attention.attn_drop.register_forward_hook(
                lambda _m, _i, output: seen["attention"].append(output)
            )
        )
        if getattr(attention, "qkv", None) is not None:
            handles.append(
                attention.qkv.register_forward_hook(
                    lambda _m, _i, output, index=index: seen["qkv_output"].update({index: output})
                )
            )
    try:
        with unfused(module):
            features = module.forward_features(pixels)
    finally:
        for handle in handles:
            handle.remove()
    prefix = module.num_prefix_tokens > 0
    layers = module.forward_intermediates(
        pixels, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=prefix
    )
    pairs = layers if prefix else [(patches, None) for patches in layers]
    return Timm(features, module.forward_head(features, pre_logits=True), pairs, **seen)


def sequence(tokens: Tokens) -> Tensor:
    """In timm's order."""
    classes = None if tokens.cls is None else tokens.cls[:, None]
    layout = TokenLayout(0 if classes is None else 1, tokens.registers.shape[1])
    return layout.join(classes, tokens.registers, tokens.patches.flatten(1, 2))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def projections(attention: Any, inputs: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values from the weights alone."""
    if attention.qkv is None:
        parts = [getattr(attention, f"{letter}_proj") for letter in "qkv"]
        weights = [part.weight for part in parts]
        biases = [part.bias for part in parts]
    else:
        weights = list(attention.qkv.weight.split(attention.qkv.weight.shape[0] // 3))
        biases = [None] * 3
        if attention.qkv.bias is not None:
            biases = list(attention.qkv.bias.split(len(weights[0])))
        elif getattr(attention, "q_bias", None) is not None:
            biases = [attention.q_bias, None, attention.v_bias]  # there is no key bias
    result = {}
    for facet, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        result[facet] = inputs @ weight.T + (0 if bias is None else bias)
    return result


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return small(request.param)


def test_every_kind_of_token_has_its_shape_at_a_rectangular_size(backbone: Backbone) -> None:
    facts = backbone.architecture
    layout, (rows, columns) = facts.layout, RECTANGLE
    facets: tuple[Literal["token", "query", "key", "value"], ...]
    facets = ("token", "query", "key", "value")
    reads = [Read(layer, facet) for layer in range(DEPTH) for facet in facets]
    reads += [Read("embedding"), Read(1, norm=True), Read(2, norm=True)]
    result = backbone(images(backbone, RECTANGLE), reads, attention=range(DEPTH))
    assert result.tokens.keys() == set(reads)
    for read, tokens in result.tokens.items():
        width = tokens.patches.shape[-1]
        assert tokens.patches.shape == (2, rows, columns, width)
        if read.facet == "token":
            assert width == facts.width == 48
        assert bool(torch.isfinite(tokens.patches).all())
        if read.layer == "embedding":
            assert tokens.cls is None
            assert tokens.registers.shape == (2, 0, width)
        else:
            assert tokens.registers.shape == (2, layout.registers, width)
            assert (tokens.cls is None) == (layout.classes == 0)
            assert tokens.cls is None or tokens.cls.shape == (2, width)
        is_final = read == Read(2, norm=True)
        pools = facts.global_feature != "class token"
        assert (tokens.pooled is not None) == (is_final and pools)
    shape = (2, facts.heads, layout.extra, rows, columns)
    assert [result.attention[layer].shape for layer in range(DEPTH)] == [shape] * DEPTH


@pytest.mark.parametrize("grid", [SQUARE, RECTANGLE])
def test_tokens_equal_timms_own_at_every_layer(backbone: Backbone, grid: tuple[int, int]) -> None:
    ours = backbone if grid == SQUARE else by_timms_rule(backbone)
    pixels = images(backbone, grid)
    theirs = run_timm(backbone, pixels)
    reads = [Read(layer) for layer in range(DEPTH)]
    result = ours(pixels, reads)
    for read, (patches, prefix) in zip(reads, theirs.intermediates, strict=True):
        whole = patches if prefix is None else torch.cat((prefix, patches), dim=1)
        close(sequence(result.tokens[read]), whole, 1e-4)
    first = theirs.intermediates[0][0]
    assert (first - theirs.intermediates[-1][0]).abs().max() > 0.1, "the blocks do something"


@pytest.mark.parametrize("grid", [SQUARE, RECTANGLE])
def test_normed_tokens_and_the_global_feature_equal_timms_own(
    backbone: Backbone, grid: tuple[int, int]
) -> None:
    ours = backbone if grid == SQUARE else by_timms_rule(backbone)
    pixels, module = images(backbone, grid), backbone.module
    theirs = run_timm(backbone, pixels)
    tokens = ours(pixels, [Read(DEPTH - 1, norm=True)]).tokens[Read(DEPTH - 1, norm=True)]
    features = theirs.features
    if isinstance(module.norm, torch.nn.Identity):  # the model norms after pooling
        with torch.inference_mode():
            features = module.fc_norm(features)  # type: ignore[operator]
    close(sequence(tokens), features, 1e-4)
    close(tokens.global_, theirs.pooled, 1e-4)


@pytest.mark.parametrize("grid", [SQUARE, RECTANGLE])
def test_queries_keys_and_values_are_the_projection_of_the_normed_block_input(
    backbone: Backbone, grid: tuple[int, int]
) -> None:
    ours = backbone if grid == SQUARE else by_timms_rule(backbone)
    pixels = images(backbone, grid)
    theirs = run_timm(backbone, pixels)
    facets: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value")
    reads = [Read(layer, facet) for layer in range(DEPTH) for facet in facets]
    result = ours(pixels, reads)
    for layer in range(DEPTH):
        attention: Any = backbone.module.blocks[layer].attn  # type: ignore[index,union-attr]
        by_hand = projections(attention, theirs.attention_input[layer])
        for facet in facets:
            close(sequence(result.tokens[Read(layer, facet)]), by_hand[facet], 1e-4)
        if layer in theirs.qkv_output:
            three = [sequence(result.tokens[Read(layer, facet)]) for facet in facets]
            close(torch.cat(three, dim=-1), theirs.qkv_output[layer], 1e-4)


@pytest.mark.parametrize("grid", [SQUARE, RECTANGLE])
def test_attention_rows_equal_timms_unfused_attention(
    backbone: Backbone, grid: tuple[int, int]
) -> None:
    ours = backbone if grid == SQUARE else by_timms_rule(backbone)
    pixels, extra = images(backbone, grid), backbone.architecture.layout.extra
    theirs = run_timm(backbone, pixels)
    result = ours(pixels, (), attention=range(DEPTH))
    for layer in range(DEPTH):
        rows = theirs.attention[layer][:, :, :extra, extra:]
        close(result.attention[layer], rows.reshape(*rows.shape[:3], *grid))
        if extra:
            assert rows.std() > 1e-3, "attention is not uniform"


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Which blocks run, in order."""
    ran: list[int] = []
    blocks: Any = backbone.module.blocks
    handles = [
        block.register_forward_pre_hook(lambda _m, _i, index=index: ran.append(index))
        for index, block in enumerate(blocks)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("reads", "attention", "expected"),
    [
        ([Read("embedding")], [], []),
        ([Read(0, "key")], [], []),
        ([], [0], []),
        ([Read(0)], [], [0]),
        ([Read(1, "value"), Read(0)], [], [0]),
        ([Read(0)], [2], [0, 1]),
        ([Read(2, "query")], [1], [0, 1]),
        ([Read(1, norm=True), Read(1, "key")], [], [0, 1]),
        ([Read(2)], [2], [0, 1, 2]),
        ([], [], []),
    ],
)
def test_the_pass_ends_at_the_deepest_thing_asked_for(
    backbone: Backbone, reads: list[Read], attention: list[int], expected: list[int]
) -> None:
    with counted(backbone) as ran:
        backbone(images(backbone, SQUARE), reads, attention)
    assert ran == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_an_entry_has_the_registers_that_it_says_in_front_of_the_patches(name: str) -> None:
    entry, layout = Registry.load().entry(name), small(name).architecture.layout
    module: Any = small(name).module
    assert layout.registers == entry.registers
    assert layout.register_position == "prefix"
    assert layout.extra == module.num_prefix_tokens


@pytest.mark.parametrize("name", SHIPPED)
def test_an_entrys_registers_are_the_modules_own_register_tokens(name: str) -> None:
    # Seen through the pass itself: a changed register token must show there, and there alone,
    # in what block 0 reads.
    backbone = small(name)
    module: Any = backbone.module
    if backbone.architecture.layout.registers == 0:
        assert getattr(module, "reg_token", None) is None
        return
    pixels, read = images(backbone, RECTANGLE), Read(0, "key")
    before = backbone(pixels, [read]).tokens[read]
    with torch.no_grad():
        module.reg_token.neg_()
    after = backbone(pixels, [read]).tokens[read]
    with torch.no_grad():
        module.reg_token.neg_()
    assert torch.equal(after.patches, before.patches)
    assert (after.registers - before.registers).abs().amax(dim=(0, 2)).min() > 1e-3
    if before.cls is not None:
        assert torch.equal(after.cls, before.cls)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_facts_of_an_entry_are_read_without_its_weights(name: str) -> None:
    entry = Registry.load().entry(name)
    facts = sources.architecture(entry)
    small_facts = small(name).architecture
    kept = ("layout", "patch", "global_feature", "position", "mean", "std", "interpolation")
    assert [getattr(facts, key) for key in kept] == [getattr(small_facts, key) for key in kept]
    if entry.checkpoint is not None:  # nano and nano-reg4, shipped with the harness
        assert facts.patch == 8 and facts.parameters < 2_500_000
        return
    digits = re.search(r"(\d+)$", re.split("-reg|-rope", name)[0])  # DINOv2's names have none
    assert facts.patch == (int(digits[1]) if digits else 14)
    assert facts.parameters > 5_000_000


def test_differential_attention_gives_tokens_but_refuses_rows() -> None:
    entry = make("vit_dwee_patch16_reg1_gap_256", 1, arguments={"img_size": 80})
    backbone = load(entry)
    pixels = images(backbone, SQUARE)
    theirs = run_timm(backbone, pixels)
    reads = [Read(DEPTH - 1), Read(1, "key")]
    result = backbone(pixels, reads)
    close(result.tokens[reads[0]].patches.flatten(1, 2), theirs.intermediates[-1][0], 1e-4)
    with pytest.raises(HarnessError, match="DiffAttention has no attention rows"):
        backbone(pixels, [], attention=[0])
