"""The shipped pair is what its entries and docs/nano.md say."""

from __future__ import annotations

import pytest
import torch

from harness import load_backbone
from harness.backbone.sources import load_backbone as load_entry
from harness.data.catalog import Catalog
from harness.data.dataset import First
from harness.nano.examine import knn_hits, patches
from harness.registry import Registry

PAIR = ("nano", "nano-reg4")


def test_the_pair_differs_in_registers_alone() -> None:
    without, with_ = (Registry.load().entry(name) for name in PAIR)
    assert with_.baseline == "nano" and with_.registers == 4 and without.registers == 0
    assert with_.arguments == {**without.arguments, "reg_tokens": 4}
    for field in ("timm", "position_embedding", "input", "license"):
        assert getattr(with_, field) == getattr(without, field)
    for entry in (without, with_):
        assert entry.checkpoint is not None and entry.checkpoint.stat().st_size <= 5_000_000


@pytest.mark.parametrize("name", PAIR)
def test_it_loads_strictly_and_gives_finite_tokens(name: str) -> None:
    backbone = load_backbone(name, device="cpu")
    assert backbone.architecture.parameters <= 2_500_000
    assert backbone.architecture.layout.registers == Registry.load().entry(name).registers
    assert all(torch.isfinite(value).all() for value in backbone.module.state_dict().values())


@pytest.mark.slow
def test_trained_beats_untrained_and_pixels_by_twenty_points_in_knn() -> None:
    """The docs' table on fewer pictures: 200 have a standard error of 3 points."""
    roles = Catalog.load().open("scenes")
    train, test = First(roles["train"], 1000), First(roles["test"], 200)
    entries = Registry.load()

    def knn(name: str, weights: str = "released") -> float:
        backbone = load_entry(entries.entry(name), "cpu", weights)  # type: ignore[arg-type]
        return float(knn_hits(backbone, train, test).mean())

    floor = max(knn("pixels"), knn("nano", "random"), knn("nano-reg4", "random"))
    for name in PAIR:
        assert knn(name) > floor + 0.2


@pytest.mark.slow
def test_what_examine_says_of_a_patch_is_of_that_patch() -> None:
    """Tokens of pixels: the norm can be recomputed from the picture, the mask from the painter."""
    dataset = First(Catalog.load().open("scenes")["test"], 3)
    backbone = load_backbone("pixels", device="cpu")
    found = patches(backbone, dataset)
    facts = backbone.architecture
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    for index in range(3):
        picture = (torch.from_numpy(dataset.picture(index)) / 255 - mean) / std
        masks = dataset.dense(index).instances
        assert masks is not None
        for patch in (0, 37, 255):
            row, column = divmod(patch, 16)
            rows, columns = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            place = 256 * index + patch
            assert found.norms[place] == pytest.approx(picture[rows, columns].norm().item(), 1e-4)
            assert found.objects[place] == pytest.approx((masks[rows, columns] > 0).mean())
    assert (found.likeness <= 1).all()
