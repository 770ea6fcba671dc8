"""The two towers against open_clip's own, on small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_towers import EMBEDDED, SIZE, config, openclip_folder, picture_checkpoint

from harness.backbone.sources import load_backbone
from harness.backbone.vit import Read
from harness.data.dataset import Target
from harness.errors import HarnessError
from harness.language.pictures import Squashed
from harness.language.source import TextSource
from harness.language.tower import TextTower, load_tower
from harness.registry import ModelEntry, Registry

ARGUMENTS = {"img_size": SIZE, "embed_dim": 64, "depth": 3, "num_heads": 2}
TEXTS = ["a dog", "a photo of many Bäume", "犬", "", "x" * 3000, "word " * 90]
KINDS = {
    "gelu": (config(), "vit_base_patch16_clip_224"),
    "quick gelu": (config(quick=True), "vit_base_patch16_clip_quickgelu_224"),
}


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, ModelEntry]:
    """open_clip's model, its folder, and our entry of the same weights."""
    configuration, name = KINDS[request.param]
    folder = tmp_path_factory.mktemp("openclip") / "tower"
    model = openclip_folder(folder, configuration)
    file = folder / "models.yaml"
    file.write_text(picture_checkpoint(folder, model, name, **ARGUMENTS))
    return model, folder, Registry.load([file]).entry("clip-tiny")


def test_pictures_are_where_open_clip_puts_them(both: tuple[Any, Path, ModelEntry]) -> None:
    model, _, entry = both
    backbone, tower = load_backbone(entry, "cpu"), load_tower(entry)
    pixels = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    read = Read(2, "token", True)
    ours = tower.project(backbone(pixels, [read]).tokens[read].global_)
    with torch.no_grad():
        theirs = model.encode_image(pixels)
    assert ours.shape == (5, EMBEDDED)
    assert theirs.abs().mean() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_texts_are_where_open_clip_puts_them(both: tuple[Any, Path, ModelEntry]) -> None:
    import open_clip

    model, folder, entry = both
    tower = load_tower(entry)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        theirs = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(tower.encode(TEXTS), theirs, rtol=0, atol=1e-5)
    assert tower.scale == pytest.approx(20.0, abs=1e-4)
    assert (tower.bias, tower.width) == (0.0, EMBEDDED)
    assert tower.encode([]).shape == (0, EMBEDDED)


def test_what_is_longer_than_the_context_is_told(both: tuple[Any, Path, ModelEntry]) -> None:
    assert load_tower(both[2]).cut(TEXTS).tolist() == [False, False, False, False, True, True]


def test_the_picture_tower_does_not_stay_in_memory(both: tuple[Any, Path, ModelEntry]) -> None:
    tower: Any = load_tower(both[2])
    assert not list(tower._model.visual.parameters())


def test_the_activation_is_the_weights_own(both: tuple[Any, Path, ModelEntry]) -> None:
    """QuickGELU weights under the other activation give other vectors: the entries are distinct."""
    model, folder, _ = both
    quick = type(model.visual.transformer.resblocks[0].mlp[1]).__name__ == "QuickGELU"
    other = "vit_base_patch16_clip_224" if quick else "vit_base_patch16_clip_quickgelu_224"
    file = folder / "other.yaml"
    file.write_text(picture_checkpoint(folder, model, other, **ARGUMENTS))
    backbone = load_backbone(Registry.load([file]).entry("clip-tiny"), "cpu")
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    read = Read(2, "token", True)
    ours = load_tower(both[2]).project(backbone(pixels, [read]).tokens[read].global_)
    with torch.no_grad():
        assert (ours - model.encode_image(pixels)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "timm_name", "changes"),
    [
        ("siglip", "vit_base_patch16_siglip_256", {"timm_pool": "map", "timm_proj": "none"}),
        ("pe", "vit_pe_core_tiny_patch16_384", {"timm_pool": "map", "timm_proj": None}),
        ("eva", "eva02_base_patch16_clip_224", {"timm_pool": "token", "timm_proj": None}),
    ],
)
def test_towers_of_timm_inside_open_clip_are_read_too(
    name: str, timm_name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """SigLIP (attention pooling, no projection, a bias), PE and EVA-02 (a linear head)."""
    import timm

    probe = timm.create_model(timm_name, num_classes=0)
    side = int(probe.patch_embed.img_size[0])
    embedded = probe.embed_dim if name == "siglip" else EMBEDDED
    vision = {"timm_model_name": timm_name, "image_size": side, **changes}
    model = openclip_folder(
        tmp_path / "tower",
        {
            "embed_dim": embedded,
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": vision,
            "text_cfg": config()["text_cfg"],
        },
    )
    from safetensors.torch import save_file

    trunk = model.visual.trunk.state_dict()
    own = {key: each.contiguous() for key, each in trunk.items() if not key.startswith("head.")}
    save_file(own, tmp_path / "tower/picture.safetensors")
    file = tmp_path / "tower/models.yaml"
    file.write_text(
        f"clip-tiny: {{timm: {timm_name}, checkpoint: picture.safetensors, "
        'text: {openclip: "local-dir:."}}\n'
    )
    entry = Registry.load([file]).entry("clip-tiny")
    backbone, tower = load_backbone(entry, "cpu"), load_tower(entry)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    read = Read(backbone.architecture.depth - 1, "token", True)
    ours = tower.project(backbone(pixels, [read]).tokens[read].global_)
    with torch.no_grad():
        theirs = model.encode_image(pixels)
    near = 1e-5 * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=near)
    assert tower.bias == pytest.approx(-3.0)


def test_a_squashed_picture_is_open_clips(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    transform = open_clip.transform.image_transform(
        32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash"
    )
    theirs = transform(Image.fromarray(pixels)).permute(1, 2, 0)
    (ours,) = Squashed(32)(pixels, Target(), 0, 0)
    np.testing.assert_allclose(ours.pixels / 255, theirs.numpy(), atol=1e-6)


def load(source: dict[str, Any], **how: Any) -> TextTower:
    entry = ModelEntry(name="some", timm="vit_tiny_patch16_224", text=TextSource(**source))
    return load_tower(entry, **how)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"openclip": "ViT-B-61", "weights": "openai"}, "did you mean ViT-B-16"),
        ({"openclip": "ViT-B-16", "weights": "mine"}, "no weights 'mine' for ViT-B-16"),
        ({"openclip": "ViT-B-16", "checkpoint": "nowhere.pt"}, "no checkpoint at nowhere.pt"),
        ({"openclip": "local-dir:nowhere"}, "no open_clip_config.json in nowhere"),
    ],
)
def test_what_open_clip_has_not_got_is_told(source: dict[str, Any], said: str) -> None:
    pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    with pytest.raises(HarnessError, match="'some'") as error:
        load(source)
    assert said in str(error.value)


def test_weights_that_are_damaged_or_missing_are_told(tmp_path: Path) -> None:
    openclip_folder(tmp_path / "tower", config())
    weights = tmp_path / "tower/open_clip_model.safetensors"
    source = {"openclip": f"local-dir:{tmp_path / 'tower'}"}
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(HarnessError, match="cannot be loaded"):
        load(source)
    weights.unlink()
    with pytest.raises(HarnessError, match="cannot be loaded"):
        load(source)


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    openclip_folder(tmp_path / "tower", config())
    (tmp_path / "tower/open_clip_model.safetensors").unlink()
    proof = tmp_path / "it ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    torch.save({"state_dict": Evil()}, tmp_path / "tower/open_clip_pytorch_model.bin")
    with pytest.raises(HarnessError, match=r"open_clip_pytorch_model\.bin"):
        load({"openclip": f"local-dir:{tmp_path / 'tower'}"})
    named = {"openclip": "ViT-B-16", "checkpoint": tmp_path / "tower/open_clip_pytorch_model.bin"}
    with pytest.raises(HarnessError, match=r"open_clip_pytorch_model\.bin"):
        load(named)
    assert not proof.exists()


def test_random_weights_are_the_seeds(tmp_path: Path) -> None:
    openclip_folder(tmp_path / "tower", config())
    source = {"openclip": f"local-dir:{tmp_path / 'tower'}"}
    before = torch.get_rng_state()
    first, again = (load(source, weights="random", seed=1) for _ in range(2))
    other = load(source, weights="random", seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.encode(["a"]), again.encode(["a"]))
    assert not torch.equal(first.encode(["a"]), other.encode(["a"]))
    assert len({first.digest, other.digest, load(source).digest}) == 3


def test_a_tokenizer_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's tokenizer is one of Hugging Face: it needs transformers, and to be fetched."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: object())

    def lacks(name: str) -> Any:
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", lacks)
    source = {"openclip": "ViT-B-16-SigLIP2-256", "weights": "webli"}
    with pytest.raises(HarnessError, match=r"needs a package .*vit-harness\[openclip\]"):
        load(source, weights="random")

    def offline(name: str) -> Any:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(HarnessError, match="could not be fetched"):
        load(source, weights="random")
