"""Which token stands for a picture: kinds are never mixed, and a draw is of the picture alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.backbone.layout import TokenLayout, Tokens
from harness.backbone.vit import Read
from harness.features.outliers import OutlierRule
from harness.features.select import (
    DRAWN,
    TOKENS,
    Selected,
    Selector,
    TokenName,
    patch_grid,
    select,
)

RULE = OutlierRule("norm", 5.0)
LAYER = 3
GRID = (3, 4)


def selector(token: TokenName, draw: int = 0, seed: int = 0) -> Selector:
    rule = RULE if token in {"outlier", "normal"} else None
    return Selector(token, LAYER, rule=rule, draw=draw, seed=seed)


def sequence(registers: int, layout: TokenLayout, seed: int = 0, rows: int = 3) -> Tokens:
    """Tokens of which each has a value of its own, with every second patch an outlier."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(rows, GRID[0] * GRID[1], 8, generator=generator)
    patches = patches / patches.norm(dim=-1, keepdim=True)
    patches[:, ::2] *= 9
    cls = torch.randn(rows, 1, 8, generator=generator)
    extra = torch.randn(rows, registers, 8, generator=generator)
    return layout.split(layout.join(cls, extra, patches), GRID)


def chosen(
    token: TokenName, tokens: Tokens, ids: list[str] | None = None, **where: int
) -> Selected:
    reads = {Read(LAYER, "token", True): tokens, Read(LAYER, "token", False): tokens}
    names = ids or [f"picture {row}" for row in range(len(tokens.patches))]
    return select(selector(token, **where), reads, names, {RULE: 5.0})


@given(token=st.sampled_from(TOKENS), seed=st.integers(0, 99))
def test_registers_move_no_token_but_registers(token: TokenName, seed: int) -> None:
    tokens = sequence(4, TokenLayout(1, 4), seed)
    shuffled = Tokens(tokens.cls, tokens.registers.flip(1) * 3 + 1, tokens.patches)
    same = torch.equal(chosen(token, tokens).values, chosen(token, shuffled).values)
    assert same == (token not in {"register", "registers-mean"})


@given(token=st.sampled_from(TOKENS))
def test_a_suffix_layout_gives_what_its_prefix_twin_gives(token: TokenName) -> None:
    first = sequence(4, TokenLayout(1, 4))
    last = sequence(4, TokenLayout(1, 4, "suffix"))
    assert torch.equal(chosen(token, first).values, chosen(token, last).values)


def test_every_token_is_what_its_name_says() -> None:
    tokens = sequence(2, TokenLayout(1, 2))
    patches = tokens.patches.flatten(1, 2)
    assert tokens.cls is not None
    expected: dict[TokenName, Tensor] = {
        "global": tokens.cls,
        "cls": tokens.cls,
        "registers-mean": tokens.registers.mean(1),
        "patch-mean": patches.mean(1),
        "cls+patch-mean": torch.cat([tokens.cls, patches.mean(1)], 1),
        "center": tokens.patches[:, 1, 2],
    }
    assert expected.keys() | DRAWN == set(TOKENS)
    for token, values in expected.items():
        found = chosen(token, tokens)
        assert torch.equal(found.values, values), token
        assert found.there.all()


def test_what_is_drawn_is_of_its_kind_and_several_draws_differ() -> None:
    tokens = sequence(4, TokenLayout(1, 4), rows=40)
    patches = tokens.patches.flatten(1, 2)
    kinds = {
        "register": tokens.registers,
        "patch": patches,
        "outlier": patches[:, ::2],
        "normal": patches[:, 1::2],
    }
    for token, candidates in kinds.items():
        values = chosen(token, tokens).values  # type: ignore[arg-type]
        places = (candidates == values[:, None]).all(-1)
        assert places.any(1).all(), token
        assert places.float().argmax(1).unique().numel() > 1, token
        other = chosen(token, tokens, draw=1).values  # type: ignore[arg-type]
        assert not torch.equal(values, other), token
        assert not torch.equal(values, chosen(token, tokens, seed=1).values)  # type: ignore[arg-type]


@given(token=st.sampled_from(sorted(DRAWN)), rows=st.permutations(range(6)))
def test_a_draw_depends_on_the_picture_and_not_on_its_batch(
    token: TokenName, rows: list[int]
) -> None:
    tokens = sequence(4, TokenLayout(1, 4), rows=6)
    whole = chosen(token, tokens).values
    part = Tokens(None, tokens.registers[rows[:3]], tokens.patches[rows[:3]])
    found = chosen(token, part, [f"picture {row}" for row in rows[:3]])
    assert torch.equal(found.values, whole[rows[:3]])


def test_a_picture_without_an_outlier_is_said_to_have_none() -> None:
    tokens = sequence(0, TokenLayout(1, 0))
    tokens.patches[1] = tokens.patches[1] / tokens.patches[1].norm(dim=-1, keepdim=True)
    found = chosen("outlier", tokens)
    assert found.there.tolist() == [True, False, True]
    assert (found.values[1] == 0).all() and (found.values[0] != 0).any()
    assert chosen("normal", tokens).there.all()


def test_half_precision_is_averaged_in_full() -> None:
    tokens = sequence(4, TokenLayout(1, 4))
    half = Tokens(None, tokens.registers.half(), tokens.patches.half())
    for token, stored in (
        ("patch-mean", half.patches.flatten(1, 2)),
        ("registers-mean", half.registers),
    ):
        found = chosen(token, half).values  # type: ignore[arg-type]
        assert found.dtype == torch.float32
        assert torch.equal(found, stored.float().mean(1))


@pytest.mark.parametrize("token", ["outlier", "normal"])
def test_outliers_need_a_rule_and_nothing_else_has_one(token: TokenName) -> None:
    with pytest.raises(ValueError, match="a rule belongs to"):
        Selector(token, LAYER)
    with pytest.raises(ValueError, match="a rule belongs to"):
        Selector("cls", LAYER, rule=RULE)


def test_facts_name_what_moves_the_value_and_nothing_else() -> None:
    assert selector("cls", seed=1).facts() == selector("cls", draw=3).facts()
    assert selector("patch", seed=1).facts() != selector("patch").facts()
    assert selector("patch", draw=1).facts() != selector("patch").facts()


@pytest.mark.parametrize("half", [True, False])
def test_patches_are_all_of_them_row_by_row_and_nothing_else(half: bool) -> None:
    every = Selector("patches", LAYER, half=half)
    tokens = sequence(4, TokenLayout(1, 4))
    other = Tokens(None, tokens.registers * 3 + 1, tokens.patches)
    last = sequence(4, TokenLayout(1, 4, "suffix"))
    found = [
        select(every, {Read(LAYER, "token", True): each}, ["a", "b", "c"], {})
        for each in (tokens, other, last)
    ]
    kind = torch.float16 if half else torch.float32
    for values, there in found:
        assert values.dtype == kind and there.all()
        assert torch.equal(patch_grid(values, (30, 40), 10), tokens.patches.to(kind))


def test_a_feature_in_half_precision_is_another() -> None:
    assert "half" not in selector("cls").facts(), "keys of what is stored stay as they were"
    assert Selector("cls", LAYER, half=True).facts()["half"] is True
