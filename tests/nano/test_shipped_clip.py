"""The shipped pair with text towers is what its entries and docs/nano.md say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import evaluate, load_backbone
from harness.language.tower import load_tower
from harness.registry import Registry

PAIR = ("nano-clip", "nano-clip-reg4")
CLASSES = 13


def files(name: str) -> tuple[Path, Path]:
    entry = Registry.load().entry(name)
    assert entry.checkpoint is not None and entry.text is not None and entry.text.nano is not None
    return entry.checkpoint, entry.text.nano


def test_the_pair_differs_in_registers_alone_and_is_small() -> None:
    without, with_ = (Registry.load().entry(name) for name in PAIR)
    assert with_.baseline == "nano-clip" and with_.registers == 4 and without.registers == 0
    assert with_.arguments == {**without.arguments, "reg_tokens": 4}
    for field in ("timm", "position_embedding", "input", "license"):
        assert getattr(with_, field) == getattr(without, field)
    assert sum(path.stat().st_size for name in PAIR for path in files(name)) < 8_000_000


@pytest.mark.parametrize("name", PAIR)
def test_both_towers_load_and_fit_together(name: str) -> None:
    entry = Registry.load().entry(name)
    backbone, tower = load_backbone(name, device="cpu"), load_tower(entry)
    assert backbone.architecture.layout.registers == entry.registers
    assert all(torch.isfinite(value).all() for value in backbone.module.state_dict().values())
    assert tower.project(torch.zeros(1, backbone.architecture.width)).shape == (1, tower.width)
    forest, again, sofa = tower.encode(["a forest", "A FOREST!", "a sofa in a living room"])
    torch.testing.assert_close(forest, again)
    assert forest @ sofa < 0.9


@pytest.mark.parametrize("name", PAIR)
def test_words_that_change_a_caption_change_its_vector(name: str) -> None:
    tower = load_tower(Registry.load().entry(name))
    texts = [
        "a red ball to the left of a blue crate",
        "a red ball to the right of a blue crate",
        "a blue ball to the left of a red crate",
        "two balls and a crate",
        "three balls and a crate",
    ]
    cosines = tower.encode(texts) @ tower.encode(texts).T
    assert (cosines - torch.eye(len(texts)) < 0.9999).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIR)
def test_zero_shot_is_twenty_points_over_chance(name: str, tmp_path: Path) -> None:
    """The docs' table on fewer pictures: 200 have a standard error of at most 4 points."""
    random, trained = (
        evaluate(
            *("zeroshot", name, "scenes-demo"),
            **{"out": tmp_path, "limit": 200, "device": "cpu", "weights": weights},
        )[0]
        .metrics["top1"]
        .value
        for weights in ("random", "released")
    )
    assert trained > 100 / CLASSES + 20
    assert random < 100 / CLASSES + 15
