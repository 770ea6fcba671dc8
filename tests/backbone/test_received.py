"""What every token receives as a key, against timm's own unfused softmax and plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import load, make, pictures
from test_families import (
    DEPTH,
    NAMES,
    RECTANGLE,
    SQUARE,
    by_timms_rule,
    close,
    images,
    run_timm,
    sequence,
    small,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.backbone import attention
from harness.backbone.attention import Received
from harness.backbone.vit import Backbone, Read
from harness.data.dataset import Target
from harness.data.views import Geometry
from harness.features.order import Steps
from harness.task import Batch

EXTRA = 5


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """With a class token and four registers."""
    return load(make("vit_small_patch14_reg4_dinov2", 4, arguments={"img_size": 70}))


def parts(received: Received) -> list[Tensor]:
    """Its numbers: of tokens ``[B, N, heads]``, in timm's order; and the rank."""
    by_head = [
        sequence(type(each)(each.cls, each.registers, each.patches))
        for each in (received.share, received.norm)
    ]
    return [*by_head, received.rank]


@torch.no_grad()
def by_hand(block: Any, softmax: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Norms ``[B, N, heads]`` and ranks ``[B, heads]``, head by head: values through the head's
    columns of the projection, and the singular values of what is written to all but one."""
    attn = block.attn
    if attn.qkv is None:
        values = attn.v_proj(inputs)
    else:
        values = inputs @ attn.qkv.weight.chunk(3)[2].T
        bias = attn.v_bias if getattr(attn, "q_bias", None) is not None else None
        if attn.qkv.bias is not None:
            bias = attn.qkv.bias.chunk(3)[2]
        values = values if bias is None else values + bias
    scale = getattr(block, "gamma_1", None)
    if scale is None and hasattr(block.ls1 if hasattr(block, "ls1") else None, "gamma"):
        scale = block.ls1.gamma
    count, width = softmax.shape[1], attn.head_dim
    fewer = values.shape[-1] // width
    norms, ranks = [], []
    for head in range(count):
        own = head // (count // fewer)
        weight = attn.proj.weight[:, head * width : (head + 1) * width]
        written = values[..., own * width : (own + 1) * width] @ weight.T
        if scale is not None:
            written = written * scale
        norms.append(written.norm(dim=-1))
        by_picture = []
        for matrix, each in zip(softmax[:, head], written, strict=True):
            most = matrix.mean(0).argmax()
            others = torch.arange(len(matrix)) != most
            singular = torch.linalg.svdvals((matrix @ each)[others].double())
            by_picture.append((singular**2).sum() / singular[0] ** 2)
        ranks.append(torch.stack(by_picture))
    return torch.stack(norms, -1), torch.stack(ranks, -1).float()


@pytest.mark.parametrize("name", NAMES)
def test_shares_norms_and_ranks_are_those_of_the_whole_softmax_on_every_model_class(
    name: str,
) -> None:
    ours = by_timms_rule(small(name))
    pixels, blocks = images(ours, RECTANGLE), ours.module.blocks
    theirs = run_timm(ours, pixels)
    assert all(block.attn.fused_attn for block in blocks)  # type: ignore[union-attr]
    received = ours(pixels, (), received=range(DEPTH)).received
    for layer in range(DEPTH):
        softmax = theirs.attention[layer]
        share, norm, rank = parts(received[layer])
        close(share, softmax.mean(2).transpose(1, 2), 1e-5)
        close(share.sum(1), torch.ones_like(rank), 1e-5)
        block = blocks[layer]  # type: ignore[index]
        expected = by_hand(block, softmax, theirs.attention_input[layer])
        close(norm, expected[0], 1e-4)
        close(rank, expected[1], 1e-3)
    assert share.std() > 1e-3, "attention is not uniform"


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.most = max(self.most, result.numel())
        return result


def test_no_tensor_of_n_by_n_is_ever_formed(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, length, heads = pictures((14 * 37, 14 * 37), batch=1), 37 * 37 + EXTRA, 4
    monkeypatch.setattr(attention, "_WEIGHTS", 100 * heads * length)
    for asked in ({"attention": [0]}, {"received": [0]}):
        with Largest() as seen:
            backbone(pixels, (), **asked)  # type: ignore[arg-type]
        assert seen.most < heads * length * length / 5, asked


@pytest.mark.parametrize("most", [1, 500, 2**30])
def test_how_many_rows_are_held_at_a_time_moves_nothing(
    most: int, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = pictures((42, 98))
    expected = parts(backbone(pixels, (), received=[1]).received[1])
    monkeypatch.setattr(attention, "_WEIGHTS", most)
    for ours, theirs in zip(
        parts(backbone(pixels, (), received=[1]).received[1]), expected, strict=True
    ):
        close(ours, theirs, 1e-5)


def test_batches_of_1_7_and_64_receive_the_same(backbone: Backbone) -> None:
    pixels = pictures((42, 56), batch=64)
    whole = parts(backbone(pixels, (), received=[2]).received[2])
    for size in (1, 7):
        found = [parts(backbone(some, (), received=[2]).received[2]) for some in pixels.split(size)]
        for ours, theirs in zip(map(torch.cat, zip(*found, strict=True)), whole, strict=True):
            close(ours, theirs, 1e-5)


def test_registers_in_another_order_receive_and_attend_in_that_order(backbone: Backbone) -> None:
    module: Any = backbone.module
    pixels, order = pictures((42, 56)), torch.tensor([2, 0, 3, 1])
    before = backbone(pixels, (), attention=[2], received=[2])
    with torch.no_grad():
        module.reg_token.copy_(module.reg_token[:, order])
    after = backbone(pixels, (), attention=[2], received=[2])
    with torch.no_grad():
        module.reg_token.copy_(module.reg_token[:, order.argsort()])
    rows = before.attention[2]
    close(after.attention[2], torch.cat((rows[:, :, :1], rows[:, :, 1:][:, :, order]), 2), 1e-5)
    ours, theirs = after.received[2], before.received[2]
    for mine, its in ((ours.share, theirs.share), (ours.norm, theirs.norm)):
        close(mine.registers, its.registers[:, order], 1e-5)
        close(mine.patches, its.patches, 1e-5)
    close(ours.rank, theirs.rank, 1e-4)


def test_what_is_received_ends_the_pass_at_its_layer_and_is_refused_beyond_the_last(
    backbone: Backbone,
) -> None:
    ran: list[int] = []
    blocks: Any = backbone.module.blocks
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(blocks)
    ]
    try:
        backbone(pictures((42, 56)), (), received=[1])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0]
    with pytest.raises(ValueError, match=r"\[3\] of a model with 3 blocks"):
        backbone(pictures((42, 56)), (), received=[3])


def test_half_precision_receives_in_float32_and_nearly_the_same(backbone: Backbone) -> None:
    pixels = pictures((42, 98))
    exact = parts(backbone(pixels, (), received=[1]).received[1])
    coarse = parts(backbone(pixels, (), precision="bf16", received=[1]).received[1])
    for ours, theirs in zip(coarse, exact, strict=True):
        assert ours.dtype == torch.float32
        close(ours, theirs, 0.05)


def test_steps_keep_what_each_picture_received(backbone: Backbone) -> None:
    pixels, read = pictures((42, 56), batch=5), Read(1)
    forward = backbone(pixels, [read], received=[1])
    geometry = Geometry((56, 42), (56, 42), (0, 0, 56, 42), (0, 0, 0, 0))

    def batch(first: int, last: int) -> Batch:
        some = backbone(pixels[first:last], [read], received=[1])
        names = tuple(f"p{place}" for place in range(first, last))
        count = last - first
        return Batch(
            tokens=some.tokens,
            attention={},
            ids=names,
            targets=(Target(),) * count,
            sample=tuple(range(count)),
            geometry=(geometry,) * count,
            crops=(1,) * count,
            received=some.received,
        )

    steps = Steps(3)
    dealt = [*steps.add(batch(0, 2)), *steps.add(batch(2, 5)), *steps.rest()]
    assert [len(each.ids) for each in dealt] == [3, 2]
    joined = [torch.cat(each) for each in zip(*(parts(b.received[1]) for b in dealt), strict=True)]
    for ours, theirs in zip(joined, parts(forward.received[1]), strict=True):
        close(ours, theirs, 1e-5)


def test_the_floors_are_known_to_attend_to_nothing() -> None:
    from harness.backbone import sources
    from harness.registry import Registry

    registry = Registry.load()
    attends = {
        name: sources.architecture(registry.entry(name)).attends
        for name in ("pixels", "chance", "nano", "nano-reg4")
    }
    assert attends == {"pixels": False, "chance": False, "nano": True, "nano-reg4": True}
    differential = make("vit_dwee_patch16_reg1_gap_256", 1, arguments={"img_size": SQUARE[0] * 16})
    assert not sources.architecture(differential).attends
