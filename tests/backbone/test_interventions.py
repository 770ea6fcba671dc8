"""Registers added, dropped and replaced at test time.

``tests/reference/test_time_register_reg0_reference.npz``: the tiny DINOv2 with one test-time
register, which stands last in these arrays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import load, make, pictures, redraw
from test_families import EXTRA, SHIPPED, small
from tiny import REFERENCE, entry, models_file
from torch import Tensor, nn

import harness
from harness.backbone.interventions import DRAWS, Intervention, RegisterStates, second_linear
from harness.backbone.layout import TokenLayout, Tokens
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError
from harness.interventions import NeuronFile, text
from harness.registry import ModelEntry

TOLERANCE = 1e-4
NEURONS = ((1, 3), (1, 17), (1, 100), (2, 5), (2, 60))
INTERVENTIONS = {
    "zero_register_only": Intervention(1),
    "shifted": Intervention(1, NEURONS),
    "shifted_per_neuron": Intervention(1, NEURONS, "per-neuron"),
}


@cache
def reference() -> dict[str, Any]:
    with np.load(REFERENCE / "test_time_register_reg0_reference.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def official_input(size: str) -> Tensor:
    with np.load(REFERENCE / "dinov2_tiny_reg0_reference.npz") as arrays:
        return torch.from_numpy(arrays[f"{size}/input"])


@pytest.fixture(scope="module")
def tiny(tiny_models: Path) -> Backbone:
    return harness.load_backbone("tiny", [tiny_models], device="cpu")


@pytest.fixture(scope="module")
def reg4(tiny_models: Path) -> Backbone:
    return harness.load_backbone("tiny-reg4", [tiny_models], device="cpu")


def register_last(tokens: Tokens) -> Tensor:
    assert tokens.cls is not None
    parts = tokens.cls[:, None], tokens.patches.flatten(1, 2), tokens.registers
    return torch.cat(parts, dim=1)


# ------------------------------------------------------------------------------- the published code


def test_the_reference_moves_the_neurons_that_are_moved_here() -> None:
    theirs = json.loads(str(reference()["neurons"]))
    assert {(int(k), each) for k, v in theirs.items() for each in v} == set(NEURONS)
    compared = {f"{s}/{n}_prenorm" for s in ("98x98", "126x98") for n in INTERVENTIONS}
    compared |= {f"{s}/shifted_norm" for s in ("98x98", "126x98")}
    assert reference().keys() == compared | {"neurons"}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("size", ["98x98", "126x98"])
def test_a_test_time_register_equals_the_published_one_at_any_batch(
    tiny: Backbone, size: str, name: str, batch: int
) -> None:
    rows, columns = (int(side) for side in size.split("x"))
    among = pictures((rows, columns), batch)
    among[-1] = official_input(size)[0]
    for norm in (False, True):
        theirs = reference().get(f"{size}/{name}_{'norm' if norm else 'prenorm'}")
        if theirs is None:
            continue
        read = Read(3, norm=norm)
        with tiny.changed(INTERVENTIONS[name]) as changed:
            tokens = changed(among, [read]).tokens[read]
        assert tokens.registers.shape[1] == 1
        ours = register_last(tokens)[-1:]
        assert float((ours - torch.from_numpy(theirs)).abs().max()) <= TOLERANCE


def test_the_two_rules_differ_and_both_differ_from_a_zero_register(tiny: Backbone) -> None:
    read, pixels, found = Read(3), official_input("98x98"), []
    for change in INTERVENTIONS.values():
        with tiny.changed(change) as changed:
            found.append(changed(pixels, [read]).tokens[read].patches)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).abs().max()) > 10 * TOLERANCE


def test_afterwards_the_backbone_is_what_it_was(tiny: Backbone) -> None:
    read, pixels = Read(3), official_input("98x98")
    before, weights = tiny(pixels, [read]).tokens[read], tiny.weights_digest
    with tiny.changed(INTERVENTIONS["shifted"]) as changed:
        changed(pixels, [read])
        assert changed.weights_digest != weights
    after = tiny(pixels, [read]).tokens[read]
    assert torch.equal(after.patches, before.patches) and after.registers.shape[1] == 0
    assert tiny.module.num_prefix_tokens == 1


# ------------------------------------------------------------------------------------ every family


def seen_by_second_linears(
    backbone: Backbone, change: Intervention, pixels: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of each block's second linear, before and after they were changed."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def keep(where: list[Tensor]) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: where.append(inputs[0].clone())

    blocks: Any = backbone.module.blocks
    linears = [second_linear("x", block) for block in blocks]
    handles = [each.register_forward_pre_hook(keep(before)) for each in linears]
    with backbone.changed(change) as changed:
        handles += [each.register_forward_pre_hook(keep(after)) for each in linears]
        changed(pixels, [Read(2)])
        for handle in handles:
            handle.remove()
    return before, after


@pytest.mark.parametrize("name", [*SHIPPED, *EXTRA])
def test_in_every_family_registers_take_what_patches_lose_and_nothing_else_moves(
    name: str,
) -> None:
    backbone = small(name)
    own, side = backbone.architecture.layout, 3 * backbone.architecture.patch
    change = Intervention(2, ((0, 5), (0, 11), (2, 7)), "per-neuron")
    before, after = seen_by_second_linears(backbone, change, pictures((side, side)))
    front = own.extra  # class and trained registers; behind them the two new ones, then patches
    for layer, neurons in ((0, [5, 11]), (1, []), (2, [7])):
        expected = before[layer].clone()
        for row in expected:
            for neuron in neurons:
                values = row[:, neuron].clone()
                row[front : front + 2, neuron] = values[values.abs().argmax()]
                row[front + 2 :, neuron] = 0
        assert torch.equal(after[layer], expected)
        assert neurons == [] or not torch.equal(after[layer], before[layer])


TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # what differs between a model with one register and the same without
    "dinov2": ({"timm": "vit_small_patch14_reg4_dinov2"}, {"reg_tokens": 1}),
    "mean of patches": ({"timm": "vit_medium_patch16_reg1_gap_256", "registers": 1}, {}),
    "rotary": ({"timm": "vit_small_patch16_dinov3"}, {"num_reg_tokens": 1}),
    "rotary, mean of patches": ({"timm": "vit_mediumd_patch16_rope_reg1_gap_256"}, {}),
}


@cache
def pair(family: str) -> tuple[Backbone, Backbone]:
    """A small model with one trained register, and the same weights without it."""
    facts, arguments = TRAINED[family]
    patch = 14 if "patch14" in facts["timm"] else 16
    counting = "num_reg_tokens" if "rope" in facts["timm"] or "dinov3" in facts["timm"] else None
    counting = counting or "reg_tokens"
    size = {"img_size": 5 * patch}
    one = load(make(facts["timm"], 1, arguments={**size, **arguments, counting: 1}))
    none = load(make(facts["timm"], 0, arguments={**size, counting: 0}))
    weights = dict(one.module.state_dict())
    del weights["reg_token"]
    none.module.load_state_dict(weights, strict=True)
    return one, none


def agree(ours: Backbone, theirs: Backbone, grid: tuple[int, int] = (3, 7)) -> None:
    """Both give the same of everything."""
    pixels = pictures([side * ours.architecture.patch for side in grid])
    reads = [Read(2, norm=True), Read(1), Read(2, "key")]
    one, other = (each(pixels, reads, attention=[1]) for each in (ours, theirs))
    for read in reads:
        for kind in ("cls", "registers", "patches", "pooled"):
            first, second = (getattr(each.tokens[read], kind) for each in (one, other))
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.attention[1], other.attention[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["dinov2", "rotary"])
def test_a_test_time_register_starts_as_a_trained_one_of_zeros_without_a_position(
    family: str,
) -> None:
    one, none = pair(family)
    token: Any = one.module.reg_token
    before = token.clone()
    try:
        token.zero_()
        with none.changed(Intervention(1)) as changed:
            agree(changed, one)
    finally:
        token.copy_(before)


@pytest.mark.parametrize("family", TRAINED)
def test_dropped_registers_leave_the_model_without_them(family: str) -> None:
    one, none = pair(family)
    with one.changed(Intervention(dropped=True)) as changed:
        assert changed.architecture.layout.registers == 0
        agree(changed, none)


def test_dropped_registers_take_their_positions_along() -> None:
    with small("positions over class and registers").changed(Intervention(dropped=True)) as changed:
        tokens = changed(pictures((80, 80)), [Read(2)]).tokens[Read(2)]
    assert tokens.registers.shape[1] == 0 and bool(torch.isfinite(tokens.patches).all())


@pytest.mark.parametrize("family", ["mean of patches", "rotary, mean of patches"])
def test_a_test_time_register_is_not_pooled_with_patches(family: str) -> None:
    one, _ = pair(family)
    read = Read(2, norm=True)
    with one.changed(Intervention(2, ((0, 3),))) as changed:
        tokens = changed(pictures((48, 80)), [read]).tokens[read]
    assert tokens.registers.shape[1] == 3 and tokens.pooled is not None
    raw = one.module
    assert isinstance(raw.norm, nn.Identity), "the norm comes after pooling here"
    with one.changed(Intervention(2, ((0, 3),))) as changed:
        patches = changed(pictures((48, 80)), [Read(2)]).tokens[Read(2)].patches
    expected = raw.fc_norm(patches.flatten(1, 2).mean(1))  # type: ignore[operator]
    torch.testing.assert_close(tokens.pooled, expected, rtol=1e-5, atol=1e-5)


def test_behind_registers_at_the_end_the_new_one_is_the_last(reg4: Backbone) -> None:
    layout = Intervention(2).layout(TokenLayout(1, 4, "suffix"))
    sequence = torch.arange(1 + 6 + 6).reshape(1, -1, 1)  # class, 2x3 patches, registers
    assert sequence[:, layout.registers_from(4, 2)].flatten().tolist() == [11, 12]
    assert sequence[:, layout.registers_from(0, 4)].flatten().tolist() == [7, 8, 9, 10]


def test_half_precision_runs_and_is_near(tiny: Backbone) -> None:
    read, pixels = Read(3, norm=True), official_input("98x98")
    with tiny.changed(INTERVENTIONS["shifted"]) as changed:
        whole = changed(pixels, [read]).tokens[read].patches
        half = changed(pixels, [read], precision="bf16").tokens[read].patches
    assert half.dtype == torch.float32 or half.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(whole, half.float(), dim=-1)
    assert float(cosine.min()) > 0.98


# ---------------------------------------------------------------------------------- from an entry


def neuron_file(path: Path, backbone: Backbone, neurons: Any = NEURONS) -> Path:
    found = NeuronFile(
        model="tiny",
        weights_digest=backbone.weights_digest,
        neurons=list(neurons),
        scores=[1.0] * len(neurons),
        settings={},
        pictures={},
        curve=[],
    )
    path.write_text(text(found))
    return path


def changed_models(folder: Path, changes: str, like: str = "tiny") -> Path:
    file = models_file(folder)
    file.write_text(f"{file.read_text()}changed:\n  like: {like}\n  {changes}\n")
    return file


@pytest.mark.slow
def test_a_compiled_backbone_gives_what_it_gives_uncompiled(tiny: Backbone, tmp_path: Path) -> None:
    neuron_file(tmp_path / "n.json", tiny)
    file = changed_models(tmp_path, "test_time_registers: {neurons: n.json}")
    read = Read(3, norm=True)
    plain, compiled = (
        harness.load_backbone("changed", [file], device="cpu", compiled=each)
        for each in (False, True)
    )
    for size in ("98x98", "126x98"):
        pixels = official_input(size)
        ours, theirs = (each(pixels, [read]).tokens[read] for each in (compiled, plain))
        torch.testing.assert_close(ours.patches, theirs.patches, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.registers, theirs.registers, rtol=1e-4, atol=1e-4)


def test_an_entry_with_a_neuron_file_runs_as_the_published_code(
    tiny: Backbone, tmp_path: Path
) -> None:
    neuron_file(tmp_path / "n.json", tiny)
    file = changed_models(tmp_path, "test_time_registers: {rule: per-neuron, neurons: n.json}")
    backbone = harness.load_backbone("changed", [file], device="cpu")
    tokens = backbone(official_input("98x98"), [Read(3)]).tokens[Read(3)]
    theirs = torch.from_numpy(reference()["98x98/shifted_per_neuron_prenorm"])
    assert float((register_last(tokens) - theirs).abs().max()) <= TOLERANCE
    with tiny.changed(INTERVENTIONS["shifted_per_neuron"]) as same:
        assert backbone.weights_digest == same.weights_digest


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: {**f, "weights_digest": "0" * 64}, "belongs to other weights (000000000000…)"),
        (lambda f: {**f, "neurons": [[4, 0]], "scores": [1]}, "has no layer 4"),
        (lambda f: {**f, "neurons": [[3, 192]], "scores": [1]}, "layer 3 has 192 neurons"),
        (lambda f: {**f, "neurons": []}, "no neuron file: neurons: "),
        (lambda f: {**f, "neurons": [[1, 3], [1, 3]], "scores": [1, 1]}, "a neuron stands twice"),
        (lambda f: {**f, "neurons": [[1, -3]], "scores": [1]}, "neurons.0.1: "),
        (lambda f: {**f, "format": 2}, "no neuron file: format: "),
        (lambda f: {}, "no neuron file: model: "),
    ],
)
def test_a_wrong_neuron_file_is_refused(
    spoil: Callable[[dict[str, Any]], dict[str, Any]], says: str, tiny: Backbone, tmp_path: Path
) -> None:
    path = neuron_file(tmp_path / "n.json", tiny)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    file = changed_models(tmp_path, "test_time_registers: {neurons: n.json}")
    with pytest.raises(HarnessError) as caught:
        harness.load_backbone("changed", [file], device="cpu")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "like", "says"),
    [
        ("test_time_registers: {neurons: gone.json}", "tiny", "gone.json: no such neuron file"),
        ("test_time_registers: {}", "tiny", "harness registers find changed --data DATASET --out"),
        ("replace_registers: mean", "tiny-reg4", "harness registers states changed --data DATASET"),
        ("replace_registers: {by: noise, states: no.safetensors}", "tiny-reg4", "no such file"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_what_makes_it(
    changes: str, like: str, says: str, tmp_path: Path
) -> None:
    file = changed_models(tmp_path, changes, like)
    with pytest.raises(HarnessError) as caught:
        harness.load_backbone("changed", [file], device="cpu")
    assert says in str(caught.value)


def test_a_module_without_a_second_linear_has_no_register_neurons() -> None:
    with pytest.raises(HarnessError, match="have no MLP with a second linear"):
        second_linear("x", nn.Identity())


# ---------------------------------------------------------------------------- registers replaced


@pytest.fixture
def states(reg4: Backbone, tmp_path: Path) -> RegisterStates:
    """Of three pictures, written beside a registry file with an entry that reads them."""
    import safetensors.torch

    reads = [Read(layer) for layer in range(4)]
    tokens = reg4(pictures((98, 98), 3), reads).tokens
    held = torch.stack([tokens[read].registers for read in reads], dim=1)
    found = RegisterStates(held.mean(0), held.std(0), held, reg4.weights_digest, "{}")
    tensors = {"mean": found.mean, "sd": found.sd, "examples": found.examples}
    safetensors.torch.save_file(tensors, tmp_path / "s.safetensors", found.metadata)
    return found


def replaced(folder: Path, how: str) -> Backbone:
    file = changed_models(folder, f"replace_registers: {how}", "tiny-reg4")
    return harness.load_backbone("changed", [file], device="cpu")


HOW = [
    "zero",
    "{by: mean, states: s.safetensors}",
    "{by: noise, states: s.safetensors}",
    "{by: shuffle, states: s.safetensors}",
]


@pytest.mark.parametrize("how", HOW)
def test_what_replaces_registers_does_not_depend_on_the_batch(
    how: str, states: RegisterStates, tmp_path: Path
) -> None:
    backbone, read = replaced(tmp_path, how), Read(3)
    pixels = pictures((98, 98), 7)
    together = backbone(pixels, [read]).tokens[read]
    alone = [backbone(one[None], [read]).tokens[read] for one in pixels]
    assert torch.equal(together.registers, torch.cat([each.registers for each in alone]))
    patches = torch.cat([each.patches for each in alone])
    torch.testing.assert_close(together.patches, patches, rtol=1e-5, atol=1e-5)


def test_after_every_block_registers_hold_what_replaces_them(
    states: RegisterStates, tmp_path: Path
) -> None:
    pixels, reads = pictures((98, 98), 40), [Read(layer) for layer in range(4)]
    found = []
    for how in HOW:
        tokens = replaced(tmp_path, how)(pixels, reads).tokens
        found.append(torch.stack([tokens[read].registers for read in reads], dim=1))
    zero, mean, noise, shuffle = found
    assert not zero.any()
    assert torch.equal(mean, states.mean.expand(40, -1, -1, -1))
    near = [min(float((one - each).abs().max()) for each in states.examples) for one in shuffle]
    assert max(near) == 0, "those of a picture, whole"
    assert len(torch.unique(shuffle, dim=0)) == 3, "of all pictures, in 40"
    assert len(torch.unique(noise, dim=0)) > 10
    score = (noise - states.mean) / states.sd
    assert abs(float(score.mean())) < 0.05 and abs(float(score.std()) - 1) < 0.05


def test_a_replaced_register_moves_patches_and_leaves_block_0_as_it_was(
    reg4: Backbone, tmp_path: Path
) -> None:
    pixels, first, last = pictures((98, 98)), Read(0), Read(3)
    plain = reg4(pixels, [first, last]).tokens
    tokens = replaced(tmp_path, "zero")(pixels, [first, last]).tokens
    assert torch.equal(tokens[first].patches, plain[first].patches)
    assert float((tokens[last].patches - plain[last].patches).abs().max()) > 1e-3


def test_noise_is_drawn_by_its_seed(states: RegisterStates) -> None:
    one, same, other = (states.table("noise", seed) for seed in (0, 0, 1))
    assert len(one) == DRAWS
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_states_of_other_weights_or_no_states_are_refused(
    states: RegisterStates, tmp_path: Path
) -> None:
    import safetensors.torch

    path = tmp_path / "s.safetensors"
    tensors = {"mean": states.mean, "sd": states.sd, "examples": states.examples}
    other = RegisterStates(**tensors, weights_digest="0" * 64, pictures="{}")
    for metadata, says in ((other.metadata, "belongs to other weights"), ({}, "no file of")):
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(HarnessError, match=says):
            replaced(tmp_path, "{by: mean, states: s.safetensors}")


def test_every_change_has_a_digest_of_its_own() -> None:
    changes = [
        Intervention(1),
        Intervention(2),
        Intervention(1, NEURONS),
        Intervention(1, NEURONS[1:]),
        Intervention(1, NEURONS, "per-neuron"),
        Intervention(dropped=True),
        Intervention(states=torch.zeros(1, 4, 4, 48)),
        Intervention(states=torch.ones(1, 4, 4, 48)),
    ]
    digests = {change.digest("0" * 64) for change in changes}
    assert len(digests) == len(changes)
    assert Intervention(1, NEURONS[::-1]).digest("0" * 64) in digests, "their order moves nothing"
    assert Intervention(1).digest("1" * 64) not in digests


def test_a_random_backbone_may_drop_its_registers(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(entry("tiny-reg4", 4) + "changed: {like: tiny-reg4, drop_registers: true}\n")
    backbone = harness.load_backbone("changed", [file], device="cpu", weights="random")
    redraw(backbone.module)
    read = Read(3)
    assert backbone(pictures((98, 98)), [read]).tokens[read].registers.shape == (2, 0, 48)


def test_an_entry_of_two_changes_is_both(tiny_models: Path, reg4: Backbone, tmp_path: Path) -> None:
    neuron_file(tmp_path / "n.json", reg4)
    both = "drop_registers: true\n  test_time_registers: {count: 2, neurons: n.json}"
    file = changed_models(tmp_path, both, "tiny-reg4")
    backbone = harness.load_backbone("changed", [file], device="cpu")
    assert isinstance(backbone.architecture.layout, TokenLayout)
    assert backbone.architecture.layout.registers == 2
    tokens = backbone(pictures((98, 98)), [Read(3)]).tokens[Read(3)]
    first, second = tokens.registers.unbind(1)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_model_entries_name_their_changes() -> None:
    facts = {"name": "x", "timm": "y", "registers": 4}
    changed = ModelEntry.model_validate(
        {**facts, "drop_registers": True, "test_time_registers": {"count": 2}}
    )
    assert changed.interventions == ["registers dropped", "2 test-time registers (shared-scalar)"]
    assert changed.running_registers == 2
