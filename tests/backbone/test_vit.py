"""Wrong use, precision, devices, factories: a backbone as its caller meets it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import load, make, pictures
from torch import nn

from harness.backbone.arithmetic import exact_float32
from harness.backbone.vit import Backbone, Read

IMAGE = {"img_size": 70}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load(make("vit_small_patch14_reg4_dinov2", 4, arguments=IMAGE))


# -------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize("size", [(71, 70), (70, 69), (13, 14)])
def test_a_size_that_the_patch_does_not_divide_is_an_error(
    backbone: Backbone, size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels are no multiple .* 14"):
        backbone(pictures(size), [Read(0)])


@pytest.mark.parametrize("layer", [-1, 3, 99])
def test_a_layer_that_the_model_does_not_have_is_an_error(backbone: Backbone, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layer {layer} of a model with 3 blocks"):
        backbone(pictures((70, 70)), [Read(layer)])
    with pytest.raises(ValueError, match=rf"attention of \[{layer}\] of a model with 3 blocks"):
        backbone(pictures((70, 70)), [], attention=[layer])


@pytest.mark.parametrize(
    "read",
    [Read(0, "key", norm=True), Read("embedding", "value"), Read("embedding", "query", True)],
)
def test_only_tokens_are_normed_and_only_blocks_have_keys(backbone: Backbone, read: Read) -> None:
    with pytest.raises(ValueError, match="only tokens are normed, only blocks have"):
        backbone(pictures((70, 70)), [read])


def test_a_facet_that_there_is_not_is_an_error(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="facet 'keys' is none of"):
        backbone(pictures((70, 70)), [Read(0, "keys")])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- what a pass gives


def test_the_embedding_is_the_patch_embeddings_own_output(backbone: Backbone) -> None:
    pixels, read = pictures((42, 98)), Read("embedding")
    tokens = backbone(pixels, [read]).tokens[read]
    module: Any = backbone.module
    assert torch.equal(tokens.patches, module.patch_embed(pixels))  # [B, H, W, D]
    assert tokens.patches.shape == (2, 3, 7, 48)
    normed = Read("embedding", norm=True)
    assert torch.equal(
        backbone(pixels, [normed]).tokens[normed].patches, module.norm(tokens.patches)
    )


def test_each_patch_token_stands_where_its_patch_stands(backbone: Backbone) -> None:
    pixels, read = pictures((42, 98), batch=1), Read("embedding")
    before = backbone(pixels, [read]).tokens[read].patches
    pixels[:, :, 14:28, 70:84] += 1  # row 1, column 5
    changed = (backbone(pixels, [read]).tokens[read].patches - before).abs().amax(-1) > 0
    assert changed.nonzero().tolist() == [[0, 1, 5]]


def test_attention_rows_are_shares_of_the_attention_to_all_tokens(backbone: Backbone) -> None:
    rows = backbone(pictures((42, 98)), [], attention=[0, 1, 2]).attention
    for layer in range(3):
        assert rows[layer].shape == (2, 4, 5, 3, 7)
        sums = rows[layer].sum(dim=(-1, -2))
        assert bool((rows[layer] >= 0).all())
        assert bool((sums < 1).all()), "some goes to the class token and the registers"
        assert bool((sums > 0.1).all())


@pytest.mark.parametrize("size", [(70, 70), (28, 112)])
def test_fp32_results_do_not_depend_on_the_batch(backbone: Backbone, size: tuple[int, int]) -> None:
    pixels = pictures(size, batch=7)
    reads = [Read(2, norm=True), Read(1), Read(2, "key")]
    together = backbone(pixels, reads, attention=[2])
    alone = [backbone(one[None], reads, attention=[2]) for one in pixels]
    for read in reads:
        for kind in ("cls", "registers", "patches"):
            stacked = torch.cat([getattr(one.tokens[read], kind) for one in alone])
            whole = getattr(together.tokens[read], kind)
            torch.testing.assert_close(whole, stacked, rtol=1e-5, atol=1e-5)
    rows = torch.cat([one.attention[2] for one in alone])
    torch.testing.assert_close(together.attention[2], rows, rtol=1e-5, atol=1e-5)


def test_what_else_is_asked_for_does_not_change_an_answer(backbone: Backbone) -> None:
    pixels, read = pictures((42, 98)), Read(1)
    alone = backbone(pixels, [read]).tokens[read]
    everything = [Read(n, f) for n in range(3) for f in ("token", "query", "key", "value")]  # type: ignore[arg-type]
    among = backbone(pixels, [*everything, Read(1, norm=True)], attention=[0, 1, 2]).tokens[read]
    assert torch.equal(alone.patches, among.patches)
    assert torch.equal(alone.registers, among.registers)


def test_the_model_is_frozen_and_in_evaluation_mode() -> None:
    entry = make("vit_small_patch14_dinov2", arguments={**IMAGE, "drop_path_rate": 0.9})
    backbone = load(entry)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert not any(module.training for module in backbone.module.modules())
    pixels, read = pictures((70, 70)), Read(2)
    first, second = (backbone(pixels, [read]).tokens[read].patches for _ in range(2))
    assert torch.equal(first, second), "no drop path"
    assert not first.requires_grad


# -------------------------------------------------------------------------------------- precision


def test_fp16_on_a_cpu_runs_in_fp32_and_says_so(backbone: Backbone) -> None:
    assert backbone.precision("fp16") == "fp32"
    assert [backbone.precision(kind) for kind in ("fp32", "bf16")] == ["fp32", "bf16"]
    pixels, read = pictures((42, 98)), Read(2, norm=True)
    exact = backbone(pixels, [read]).tokens[read].patches
    halves = backbone(pixels, [read], precision="fp16").tokens[read].patches
    assert halves.dtype == torch.float32
    assert torch.equal(halves, exact)


def test_bf16_on_a_cpu_is_close_to_fp32_and_is_not_fp32(backbone: Backbone) -> None:
    pixels, reads = pictures((42, 98)), [Read(2, norm=True), Read(2, "key")]
    exact = backbone(pixels, reads)
    coarse = backbone(pixels, reads, precision="bf16")
    for read in reads:
        ours, theirs = coarse.tokens[read].patches.float(), exact.tokens[read].patches
        similarity = torch.cosine_similarity(ours, theirs, dim=-1)
        assert similarity.min() > 0.995
        assert not torch.equal(ours, theirs)
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}


def precision_flags() -> dict[str, object]:
    """Everything that says how exact float32 is, by torch's old names and its new ones."""

    def read(get: Callable[[], object]) -> object:
        try:
            return get()
        except RuntimeError:
            return "torch refuses to say"

    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    flags: dict[str, object] = {
        "float32_matmul_precision": read(torch.get_float32_matmul_precision),
        "matmul": read(lambda: matmul.allow_tf32),
        "cudnn": read(lambda: cudnn.allow_tf32),
        "benchmark": cudnn.benchmark,
    }
    new = {"matmul": matmul, "conv": getattr(cudnn, "conv", None), "mkldnn": mkldnn}
    new |= {"rnn": getattr(cudnn, "rnn", None), "mkldnn matmul": getattr(mkldnn, "matmul", None)}
    for name, operation in new.items():
        if hasattr(operation, "fp32_precision"):
            flags[f"new {name}"] = operation.fp32_precision
    return flags


@pytest.fixture
def flags_put_back() -> Any:
    before = torch.backends.cudnn.benchmark
    yield
    for operation in (torch.backends.cuda.matmul, torch.backends.mkldnn):
        for part in (operation, getattr(operation, "matmul", None)):
            if hasattr(part, "fp32_precision"):
                part.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = before


def old_way(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = True


def oldest_way() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = False


def new_way() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old way only")
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.usefixtures("flags_put_back")
@pytest.mark.parametrize(
    "set_flags",
    [
        lambda: None,
        lambda: old_way("high"),
        lambda: old_way("medium"),
        oldest_way,
        new_way,
    ],
    ids=["as torch comes", "high", "medium", "allow_tf32", "fp32_precision"],
)
def test_float32_is_exact_within_a_pass_and_the_flags_are_as_before_after_it(
    backbone: Backbone, set_flags: Callable[[], None]
) -> None:
    set_flags()
    before = precision_flags()
    within: list[dict[str, object]] = []
    blocks: Any = backbone.module.blocks
    handle = blocks[0].register_forward_pre_hook(lambda *_: within.append(precision_flags()))
    try:
        backbone(pictures((70, 70)), [Read(0)])
    finally:
        handle.remove()
    assert precision_flags() == before
    inside = within[0]
    assert inside["float32_matmul_precision"] == "highest"
    assert [inside[name] for name in ("matmul", "cudnn", "benchmark")] == [False, False, False]
    assert not {value for name, value in inside.items() if "new" in name} & {"tf32", "bf16"}


@pytest.mark.usefixtures("flags_put_back")
def test_the_flags_are_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = precision_flags()
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert precision_flags() == before


# --------------------------------------------------------------------------------------- compiled


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_blocks_give_what_eager_blocks_give_at_two_sizes() -> None:
    entry = make("vit_small_patch14_reg4_dinov2", 4, arguments={**IMAGE, "depth": 2})
    eager, compiled = load(entry), load(entry, compiled=True)
    assert eager.weights_digest == compiled.weights_digest
    reads = [Read(1, norm=True), Read(0), Read(1, "key")]
    for size in ((70, 70), (42, 98)):
        ours, theirs = (one(pictures(size), reads, [1]) for one in (compiled, eager))
        for read in reads:
            for kind in ("cls", "registers", "patches"):
                torch.testing.assert_close(
                    getattr(ours.tokens[read], kind),
                    getattr(theirs.tokens[read], kind),
                    rtol=1e-4,
                    atol=1e-4,
                )
        torch.testing.assert_close(ours.attention[1], theirs.attention[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_means_that_blocks_are_compiled_for_any_size(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    calls: list[dict[str, object]] = []

    def compile_(block: nn.Module, **options: object) -> nn.Module:
        calls.append(options)
        return block

    monkeypatch.setattr(torch, "compile", compile_)
    load(make("vit_small_patch14_dinov2", arguments=IMAGE), compiled=compiled)
    assert calls == ([{"dynamic": True}] * 3 if compiled else [])


def test_a_head_can_be_trained_on_tokens() -> None:
    """Tokens of torch's inference mode could not be saved for the backward pass."""
    read = Read(2, norm=True)
    backbone = load(make("vit_small_patch14_dinov2"))
    tokens = backbone(pictures((70, 70)), [read]).tokens[read]
    head = torch.nn.Linear(tokens.patches.shape[-1], 2)
    head(tokens.patches).square().mean().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.any()
