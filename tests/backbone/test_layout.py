"""The one place that knows the order of a sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import load, make, pictures
from torch import Tensor, nn

from harness.backbone.layout import TokenLayout, Tokens
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError
from harness.registry import ModelEntry

layouts = st.builds(
    TokenLayout,
    classes=st.integers(0, 1),
    registers=st.integers(0, 5),
    register_position=st.sampled_from(["prefix", "suffix"]),
)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4))


def parts(
    layout: TokenLayout, grid: tuple[int, int], batch: int = 2, width: int = 3
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Every value different, so that any exchange shows."""
    lengths = (layout.classes, layout.registers, grid[0] * grid[1])
    values = torch.arange(batch * sum(lengths) * width).reshape(batch, -1, width).float()
    classes, registers, patches = values.split(lengths, dim=1)
    return classes if layout.classes else None, registers if layout.registers else None, patches


@given(layouts, grids, st.integers(1, 3))
def test_split_undoes_join(layout: TokenLayout, grid: tuple[int, int], batch: int) -> None:
    classes, registers, patches = parts(layout, grid, batch)
    tokens = layout.split(layout.join(classes, registers, patches), grid)
    if classes is None:
        assert tokens.cls is None
    else:
        assert tokens.cls is not None
        assert torch.equal(tokens.cls, classes[:, 0])
    assert tokens.registers.shape == (batch, layout.registers, 3)
    if registers is not None:
        assert torch.equal(tokens.registers, registers)
    assert tokens.patches.shape == (batch, *grid, 3)
    assert torch.equal(tokens.patches.flatten(1, 2), patches)


@given(layouts, grids)
def test_join_undoes_split(layout: TokenLayout, grid: tuple[int, int]) -> None:
    length = layout.extra + grid[0] * grid[1]
    sequence = torch.arange(2 * length * 3).reshape(2, length, 3)
    tokens = layout.split(sequence, grid)
    classes = None if tokens.cls is None else tokens.cls[:, None]
    assert torch.equal(
        layout.join(classes, tokens.registers, tokens.patches.flatten(1, 2)), sequence
    )


@given(layouts, grids)
def test_the_slices_share_a_sequence_out_without_rest_or_overlap(
    layout: TokenLayout, grid: tuple[int, int]
) -> None:
    positions = list(range(layout.extra + grid[0] * grid[1]))
    shared = [
        *positions[: layout.classes],
        *positions[layout.register_slice],
        *positions[layout.patch_slice],
    ]
    assert sorted(shared) == positions


@given(layouts, grids, st.randoms(use_true_random=False))
def test_permuting_registers_moves_no_patch_and_no_class_token(
    layout: TokenLayout, grid: tuple[int, int], random: st.DataObject
) -> None:
    classes, registers, patches = parts(layout, grid)
    order = list(range(layout.registers))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = None if registers is None else registers[:, order]
    before = layout.split(layout.join(classes, registers, patches), grid)
    after = layout.split(layout.join(classes, permuted, patches), grid)
    assert torch.equal(after.patches, before.patches)
    assert after.cls is before.cls is None or torch.equal(after.cls, before.cls)
    assert torch.equal(after.registers, before.registers[:, order])


def test_prefix_and_suffix_put_the_registers_where_they_say() -> None:
    classes, registers, patches = (
        torch.zeros(1, 1, 1),
        torch.ones(1, 2, 1),
        torch.full((1, 3, 1), 2),
    )
    prefix = TokenLayout(1, 2).join(classes, registers, patches)
    suffix = TokenLayout(1, 2, "suffix").join(classes, registers, patches)
    assert prefix.flatten().tolist() == [0, 1, 1, 2, 2, 2]
    assert suffix.flatten().tolist() == [0, 2, 2, 2, 1, 1]


def test_a_grid_is_filled_row_by_row() -> None:
    tokens = TokenLayout(0, 0).split(torch.arange(6).reshape(1, 6, 1), (2, 3))
    assert tokens.patches[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@given(layouts, grids, st.integers(-3, 3).filter(bool))
def test_a_sequence_of_another_length_is_refused(
    layout: TokenLayout, grid: tuple[int, int], more: int
) -> None:
    length = max(0, layout.extra + grid[0] * grid[1] + more)
    with pytest.raises(ValueError, match=f"{length} tokens do not fit"):
        layout.split(torch.zeros(1, length, 3), grid)


@pytest.mark.parametrize(("classes", "registers"), [(2, 0), (-1, 0), (0, -1)])
def test_a_layout_that_tokens_cannot_hold_is_refused(classes: int, registers: int) -> None:
    with pytest.raises(ValueError, match="at most one class token"):
        TokenLayout(classes, registers)


def test_the_global_feature_is_the_pooled_one_else_the_class_token_else_an_error() -> None:
    cls, pooled, nothing = torch.ones(1, 2), torch.full((1, 2), 2.0), torch.zeros(1, 0, 2)
    patches = torch.zeros(1, 1, 1, 2)
    assert Tokens(cls, nothing, patches).global_ is cls
    assert Tokens(cls, nothing, patches, pooled).global_ is pooled
    assert Tokens(None, nothing, patches, pooled).global_ is pooled
    with pytest.raises(ValueError, match="neither"):
        _ = Tokens(None, nothing, patches).global_


# --------------------------------------------------------------- a model that appends its registers


def append_registers(**arguments: object) -> nn.Module:
    """A factory: timm's reg4 model, said to run its registers behind the patches."""
    import timm

    module: nn.Module = timm.create_model(num_classes=0, dynamic_img_size=True, **arguments)
    layout = TokenLayout(1 if module.cls_token is not None else 0, 4, "suffix")
    module.token_layout = layout  # type: ignore[assignment]
    return module


DINOV2 = {"model_name": "vit_small_patch14_reg4_dinov2", "img_size": 70}
GAP = {"model_name": "vit_so150m_patch16_reg4_gap_256", "img_size": 80}


def twins(facts: dict[str, object]) -> tuple[Backbone, Backbone]:
    name, arguments = str(facts["model_name"]), {"img_size": facts["img_size"]}
    prefix = load(make(name, registers=4, arguments=arguments))
    shape = {"embed_dim": 48, "depth": 3, "num_heads": 4, **facts}
    factory = f"{__name__}:append_registers"
    suffix = load(ModelEntry(name="y", factory=factory, arguments=shape, registers=4))
    return prefix, suffix


@pytest.mark.parametrize("facts", [DINOV2, GAP], ids=["dinov2", "mean-pooled"])
def test_registers_behind_the_patches_give_what_registers_in_front_give(
    facts: dict[str, object],
) -> None:
    prefix, suffix = twins(facts)
    patch = prefix.architecture.patch
    assert suffix.architecture.layout.register_position == "suffix"
    reads = [Read(2, norm=True), Read(1), Read(2, "key"), Read(0, "value")]
    for grid in ((5, 5), (3, 7)):
        images = pictures([side * patch for side in grid])
        first, second = (one(images, reads, attention=[1, 2]) for one in (prefix, suffix))
        for read in reads:
            one, other = first.tokens[read], second.tokens[read]
            for kind in ("cls", "registers", "patches", "pooled"):
                ours, theirs = getattr(one, kind), getattr(other, kind)
                assert (ours is None) == (theirs is None), kind
                if ours is not None:
                    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        for layer in (1, 2):
            torch.testing.assert_close(
                second.attention[layer], first.attention[layer], rtol=1e-5, atol=1e-5
            )


def test_the_suffix_model_really_runs_its_registers_behind_the_patches() -> None:
    _, suffix = twins(DINOV2)
    seen: list[Tensor] = []
    suffix.module.blocks[0].register_forward_pre_hook(  # type: ignore[index,union-attr]
        lambda _, inputs: seen.append(inputs[0])
    )
    suffix(pictures((42, 98), batch=1), [Read(0)])
    registers = suffix.module.reg_token
    assert torch.equal(seen[0][:, -4:], registers)
    assert not torch.equal(seen[0][:, 1:5], registers)


def lie_about_the_layout(**arguments: object) -> nn.Module:
    module = append_registers(**arguments)
    module.token_layout = TokenLayout(1, 2)  # type: ignore[assignment]
    return module


def append_to_rotary() -> nn.Module:
    return append_registers(
        model_name="vit_small_patch16_dinov3", embed_dim=64, depth=1, num_heads=2
    )


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        ("lie_about_the_layout", {"depth": 1, **DINOV2}, "its token_layout is"),
        ("append_to_rotary", {}, "registers in front"),
    ],
)
def test_a_layout_that_cannot_be_right_is_an_error_at_load_time(
    function: str, arguments: dict[str, object], says: str
) -> None:
    entry = ModelEntry(name="y", factory=f"{__name__}:{function}", arguments=arguments, registers=4)
    with pytest.raises(HarnessError, match=says):
        load(entry)
