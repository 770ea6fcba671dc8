from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone, Read
from harness.data.dataset import Target
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.features.extract import normalise
from harness.look.seen import layers_of, see
from harness.registry import Registry

PICTURE = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)


def loaded(models: Path, name: str) -> Backbone:
    return load_backbone(Registry.load([models]).entry(name), "cpu")


def test_maps_are_what_the_backbone_reads_of_the_padded_picture(tiny_models: Path) -> None:
    backbone = loaded(tiny_models, "tiny-reg4")
    seen = see(backbone, PICTURE, ("embedding", 1, 3))
    (crop,) = WholePicture(14, 100)(PICTURE, Target(), 0, 0)
    forward = backbone(normalise(backbone, [crop]), [Read("embedding"), Read(1), Read(3)], [3])
    assert [each.title for each in seen.norms] == [
        "patch embedding",
        "layer 1",
        "layer 3, the last",
    ]
    for layer, found in zip(("embedding", 1, 3), seen.norms, strict=True):
        patches = forward.tokens[Read(layer)].patches[0]
        np.testing.assert_allclose(found.values, patches.norm(dim=-1), rtol=1e-5)
        assert found.values.shape == (4, 5)
    np.testing.assert_array_equal(seen.patch_norms, seen.norms[-1].values)
    end = forward.tokens[Read(3)]
    assert end.cls is not None and seen.class_norm == pytest.approx(float(end.cls.norm()))
    np.testing.assert_allclose(seen.register_norms, end.registers[0].norm(dim=-1), rtol=1e-5)
    titles = [each.title for each in seen.attention if each is not None]
    assert titles == ["class token", *(f"register {number}" for number in range(4))]
    rows = forward.attention[3][0].mean(0)
    for found_, row in zip(seen.attention, rows, strict=True):
        assert found_ is not None
        # In even shares, of which a row of the softmax has at most as many as there are patches.
        np.testing.assert_allclose(found_.values / 20, row, rtol=1e-4)
        assert found_.values.mean() < 1


def test_a_model_without_class_token_says_why_its_attention_is_left_out() -> None:
    backbone = load_backbone(Registry.load().entry("pixels"), "cpu")
    seen = see(backbone, PICTURE, layers_of("quarters", backbone))
    assert seen.attention == [] and seen.absent is not None and "class token" in seen.absent
    assert seen.class_norm is None and seen.register_norms == []
    assert seen.colours.shape == (6, 8, 3) and seen.discovered.degree.shape == (6, 8)


def test_the_degree_map_counts_the_other_patches_of_positive_affinity(tiny_models: Path) -> None:
    backbone = loaded(tiny_models, "tiny")
    seen = see(backbone, PICTURE, (3,))
    (crop,) = WholePicture(14, 100)(PICTURE, Target(), 0, 0)
    read = Read(3, "key")
    keys = backbone(normalise(backbone, [crop]), [read]).tokens[read].patches[0].flatten(0, 1)
    affinities = (keys @ keys.T > 0).fill_diagonal_(False)
    found = seen.discovered
    np.testing.assert_array_equal(found.degree.ravel(), affinities.sum(1))
    assert found.seed == int(found.degree.argmin())
    assert found.tied == bool((found.degree == found.degree.min()).sum() > 1)


def test_layers_are_a_rule_or_a_list(tiny_models: Path) -> None:
    nano = load_backbone(Registry.load().entry("nano"), "cpu")
    tiny = loaded(tiny_models, "tiny")
    assert layers_of("quarters", nano) == ("embedding", 2, 5, 8, 11)
    assert layers_of("all", tiny) == ("embedding", 0, 1, 2, 3)
    assert layers_of("embedding, -1,3,0", tiny) == ("embedding", 3, 0)
    for wrong, what in (("4", "layer 4"), ("first", "'first'"), ("", "''"), ("0,-5", "layer -5")):
        with pytest.raises(HarnessError, match=what):
            layers_of(wrong, tiny)


def test_tokens_that_are_not_finite_and_too_many_patches_are_errors(tiny_models: Path) -> None:
    backbone = loaded(tiny_models, "tiny")
    with pytest.raises(HarnessError, match="smaller --longest"):
        see(backbone, np.zeros((14 * 300, 14 * 300, 3), np.uint8), (3,))
    parameters = dict(backbone.module.named_parameters())
    with torch.no_grad():
        parameters["blocks.2.mlp.fc2.bias"][0] = torch.inf
    with pytest.raises(HarnessError, match="'tiny': its tokens are not finite"):
        see(backbone, PICTURE, (1,))
