"""Sinks that were planted in a block's weights are found and told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block

from harness.backbone.attention import Received, received
from harness.backbone.layout import TokenLayout, Tokens
from harness.probes.sinks import KINDS, MECHANISMS, sinks

WIDTH, HEADS, GRID = 48, 4, (4, 5)
CUTS = 0.3, 0.2, 0.5, 1.5  # share, null norm, broadcast norm, broadcast rank


def planted(tokens: torch.Tensor, place: int, value: float) -> Any:
    """A block, all of whose heads attend to ``tokens[0, place]``, whose value there is so many
    times what a random one is."""
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, qkv_bias=True).eval()
    token = tokens[0, place]
    along = token / token.square().sum()
    with torch.no_grad():
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        weight.normal_(0, WIDTH**-0.5)
        block.attn.proj.weight.normal_(0, WIDTH**-0.5)
        query, key, written = weight.chunk(3)
        towards = torch.randn(WIDTH)
        query *= 0.2
        bias.zero_()
        bias[:WIDTH] = 6 * towards
        key += torch.outer(6 * towards - key @ token, along)
        written += torch.outer(value * torch.randn(WIDTH) - written @ token, along)
    return block


def found(place: int, value: float, layout: TokenLayout | None = None) -> Any:
    layout = layout or TokenLayout(1, 4)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, layout.extra + GRID[0] * GRID[1], WIDTH, generator=generator)
    tokens[1, place] = tokens[0, place]
    with torch.no_grad():
        return sinks(received(planted(tokens, place, value), tokens, layout, GRID, None), *CUTS)


@pytest.mark.parametrize(("place", "kind"), [(0, "class"), (3, "register"), (17, "patch")])
@pytest.mark.parametrize(("value", "mechanism"), [(0.0, "null-like"), (3.0, "broadcast-like")])
def test_a_planted_sink_is_found_in_every_head_with_its_kind_and_mechanism(
    place: int, kind: str, value: float, mechanism: str
) -> None:
    result = found(place, value)
    expected = torch.zeros(2, HEADS, len(KINDS), len(MECHANISMS), dtype=torch.int64)
    expected[:, :, KINDS.index(kind), MECHANISMS.index(mechanism)] = 1
    assert torch.equal(result.counts, expected)
    assert bool((result.drawn > 0.9).all())
    if mechanism == "null-like":
        assert float(result.norm.max()) < 1e-4
    else:
        assert float(result.norm.min()) > 1
        assert float(result.rank.max()) < 1.1


def test_registers_behind_the_patches_are_registers() -> None:
    layout = TokenLayout(1, 4, "suffix")
    last = found(layout.extra + GRID[0] * GRID[1] - 1, 0.0, layout)
    assert last.counts[:, :, KINDS.index("register"), 0].tolist() == [[1] * HEADS] * 2
    assert int(last.counts.sum()) == 2 * HEADS


def test_without_a_planted_sink_there_is_none() -> None:
    layout = TokenLayout(1, 4)
    tokens = torch.randn(2, 25, WIDTH, generator=torch.Generator().manual_seed(2))
    block: Any = Block(WIDTH, HEADS).eval()
    with torch.no_grad():
        result = sinks(received(block, tokens, layout, GRID, None), *CUTS)
    assert int(result.counts.sum()) == 0
    assert float(result.drawn.max()) < 0.3


def made(share: list[float], norm: list[float], rank: float) -> Received:
    """One picture, one head; a class token and patches."""

    def tokens(values: list[float]) -> Tokens:
        column = torch.tensor(values)[None, :, None]
        return Tokens(column[:, 0], column[:, :0], column[:, 1:].reshape(1, 1, -1, 1))

    return Received(tokens(share), tokens(norm), torch.tensor([[rank]]))


def counted(one: Received) -> dict[tuple[str, str], int]:
    counts = sinks(one, *CUTS).counts[0, 0]
    return {
        (KINDS[kind], MECHANISMS[mechanism]): int(counts[kind, mechanism])
        for kind, mechanism in counts.nonzero().tolist()
    }


@pytest.mark.parametrize(
    ("norm", "rank", "mechanism"),
    [
        (0.2, 9.0, "null-like"),
        (0.2, 1.0, "null-like"),  # it writes nothing, whatever the rank
        (0.3, 1.0, "neither"),
        (0.5, 1.5, "broadcast-like"),
        (0.5, 1.6, "neither"),
        (4.0, 1.0, "broadcast-like"),
    ],
)
def test_the_cuts_are_where_they_are_said_to_be(norm: float, rank: float, mechanism: str) -> None:
    one = made([0.1, 0.5, 0.2, 0.2], [1, norm, 1, 1], rank)
    assert counted(one) == {("patch", mechanism): 1}


def test_a_head_may_have_several_sinks_and_the_share_must_be_passed() -> None:
    one = made([0.31, 0.32, 0.3, 0.07], [1, 0.1, 1, 1], 1.2)
    assert counted(one) == {("class", "broadcast-like"): 1, ("patch", "null-like"): 1}
    result = sinks(one, *CUTS)
    assert float(result.norm) == pytest.approx(0.1)
    assert float(result.drawn) == pytest.approx(0.32)


def test_where_the_cuts_overlap_a_sink_is_null_like_and_counted_once() -> None:
    counts = sinks(made([0.1, 0.5, 0.4], [1, 0.6, 1], 1.0), 0.45, 0.8, 0.5, 1.5).counts
    assert counts[0, 0, KINDS.index("patch")].tolist() == [1, 0, 0]
