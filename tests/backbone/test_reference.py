"""The tiny DINOv2s give what the official code gave, at every size, layer and facet recorded.

``tests/reference/dinov2_tiny_reg{0,4}_reference.npz`` was computed by facebookresearch/dinov2.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import REFERENCE, entry
from torch import Tensor

import harness
from harness.backbone.vit import Backbone, Read

SIZES = ("98x98", "126x98", "70x154", "224x224")
NAMES = {0: "tiny", 4: "tiny-reg4"}
TOLERANCE = 1e-4


@cache
def official(registers: int) -> dict[str, Tensor]:
    with np.load(REFERENCE / f"dinov2_tiny_reg{registers}_reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module", params=NAMES)
def registers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def backbone(registers: int, tiny_models: Path) -> Backbone:
    return harness.load_backbone(NAMES[registers], [tiny_models], device="cpu")


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    return float((ours - theirs).abs().max()) if ours.numel() else 0.0


@pytest.mark.parametrize("size", SIZES)
def test_normed_tokens_equal_the_official_ones(
    backbone: Backbone, registers: int, size: str
) -> None:
    theirs, read = official(registers), Read(3, norm=True)
    tokens = backbone(theirs[f"{size}/input"], [read]).tokens[read]
    assert tokens.cls is not None
    assert tokens.registers.shape[1] == registers
    assert difference(tokens.cls, theirs[f"{size}/cls"]) <= TOLERANCE
    assert difference(tokens.registers, theirs[f"{size}/registers"]) <= TOLERANCE
    assert difference(tokens.patches.flatten(1, 2), theirs[f"{size}/patches"]) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_the_sequence_before_the_final_norm_equals_the_official_one(
    backbone: Backbone, registers: int, size: str
) -> None:
    theirs, read = official(registers), Read(3)
    tokens = backbone(theirs[f"{size}/input"], [read]).tokens[read]
    assert tokens.cls is not None
    sequence = torch.cat((tokens.cls[:, None], tokens.registers, tokens.patches.flatten(1, 2)), 1)
    assert difference(sequence, theirs[f"{size}/prenorm"]) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_the_last_layer_but_one_equals_the_official_one(
    backbone: Backbone, registers: int, size: str
) -> None:
    # DINOv2's get_intermediate_layers applies the final norm to every layer.
    theirs, read = official(registers), Read(2, norm=True)
    tokens = backbone(theirs[f"{size}/input"], [read]).tokens[read]
    assert tokens.cls is not None
    assert difference(tokens.cls, theirs[f"{size}/layer-2_cls"]) <= TOLERANCE
    assert difference(tokens.patches.flatten(1, 2), theirs[f"{size}/layer-2_patches"]) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("facet", ["query", "key", "value"])
def test_queries_keys_and_values_equal_the_official_ones(
    backbone: Backbone, registers: int, size: str, facet: str
) -> None:
    theirs, read = official(registers), Read(3, facet)  # type: ignore[arg-type]
    tokens = backbone(theirs[f"{size}/input"], [read]).tokens[read]
    assert tokens.cls is not None
    sequence = torch.cat((tokens.cls[:, None], tokens.registers, tokens.patches.flatten(1, 2)), 1)
    assert difference(sequence, theirs[f"{size}/last_{facet}"]) <= TOLERANCE


def test_everything_recorded_is_compared() -> None:
    compared = {"input", "cls", "registers", "patches", "prenorm", "layer-2_cls", "layer-2_patches"}
    compared |= {f"last_{facet}" for facet in ("query", "key", "value")}
    for registers in NAMES:
        assert official(registers).keys() == {f"{s}/{what}" for s in SIZES for what in compared}


@pytest.mark.parametrize(
    ("size", "least"), [("98x98", None), ("70x154", 0.1), ("224x224", 0.1), ("126x98", 1e-3)]
)
def test_with_timms_position_rule_the_model_without_registers_is_another_away_from_its_own_size(
    tmp_path: Path, size: str, least: float | None
) -> None:
    file = tmp_path / "timm.yaml"
    file.write_text(
        entry("tiny", 0).replace("antialias: false, offset: 0.1", "antialias: true, offset: 0.0")
    )
    read = Read(3, norm=True)
    theirs = official(0)
    backbone = harness.load_backbone("tiny", [file], device="cpu")
    tokens = backbone(theirs[f"{size}/input"], [read]).tokens[read]
    off = difference(tokens.patches.flatten(1, 2), theirs[f"{size}/patches"])
    assert off <= TOLERANCE if least is None else off > least


def test_the_offset_alone_and_the_antialiasing_alone_are_each_wrong(tmp_path: Path) -> None:
    theirs, read = official(0), Read(3, norm=True)
    right = "antialias: false, offset: 0.1"
    for wrong in ("antialias: true, offset: 0.1", "antialias: false, offset: 0.0"):
        file = tmp_path / "wrong.yaml"
        file.write_text(entry("tiny", 0).replace(right, wrong))
        backbone = harness.load_backbone("tiny", [file], device="cpu")
        tokens = backbone(theirs["70x154/input"], [read]).tokens[read]
        off = difference(tokens.patches.flatten(1, 2), theirs["70x154/patches"])
        assert off > TOLERANCE, wrong
