"""``text:`` in a registry entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.backbone.sources import architecture
from harness.errors import HarnessError
from harness.language.source import TextSource, having
from harness.registry import Registry

BASE = "one: {timm: vit_tiny_patch16_224, text: %s}\n"


def registry(folder: Path, text: str, more: str = "") -> Registry:
    file = folder / "models.yaml"
    file.write_text(BASE % text + more)
    return Registry.load([file])


def test_a_text_tower_moves_no_digest_of_the_picture_tower(tmp_path: Path) -> None:
    with_text = registry(tmp_path, "{openclip: ViT-B-16, weights: openai}").entry("one")
    (tmp_path / "models.yaml").write_text("one: {timm: vit_tiny_patch16_224}\n")
    without = Registry.load([tmp_path / "models.yaml"]).entry("one")
    assert with_text.canonical() == without.canonical()


def test_an_entry_like_another_reads_texts_too(tmp_path: Path) -> None:
    more = "two: {like: one, test_time_registers: {count: 1}}\n"
    loaded = registry(tmp_path, "{nano: text.safetensors}", more)
    assert loaded.entry("two").text == loaded.entry("one").text
    assert Registry.load().entry("openclip-vitb16-ttr1").text is not None


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{nano: text.safetensors}", "nano"),
        ("{openclip: ViT-B-16, checkpoint: text.safetensors}", "checkpoint"),
    ],
)
def test_files_are_relative_to_the_file_that_names_them(
    text: str, where: str, tmp_path: Path
) -> None:
    source = registry(tmp_path, text).entry("one").text
    assert getattr(source, where) == tmp_path / "text.safetensors"
    folder = registry(tmp_path, '{openclip: "local-dir:towers/one"}').entry("one").text
    assert folder is not None and folder.folder == tmp_path / "towers/one"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "exactly one of `openclip:` and `nano:`"),
        ("{openclip: ViT-B-16, nano: f}", "exactly one of `openclip:` and `nano:`"),
        ("{openclip: ViT-B-16}", "exactly one of `weights:`"),
        ("{openclip: ViT-B-16, weights: a, checkpoint: b}", "exactly one of `weights:`"),
        ('{openclip: "hf-hub:a/b", weights: c}', "bring their weights"),
        ("{nano: f, weights: c}", "one file"),
        ('{openclip: "", weights: c}', "one.text.openclip: must not be empty"),
        ('{openclip: "\\uD800", weights: c}', "holds what is no character"),
        ("{openclip: ViT-B-16, weight: c}", "one.text.weight: unknown key"),
        ("ViT-B-16", "should be a valid dictionary"),
    ],
)
def test_a_wrong_one_is_refused_with_file_and_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"models\.yaml:1: one") as error:
        registry(tmp_path, text)
    assert said in str(error.value)


def test_the_digest_is_of_the_bytes_and_not_of_the_place(tmp_path: Path) -> None:
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert TextSource(nano=one).digest() == TextSource(nano=other).digest()
    other.write_bytes(b"others!")
    assert TextSource(nano=one).digest() != TextSource(nano=other).digest()
    folder = TextSource(openclip=f"local-dir:{tmp_path}")
    before = folder.digest()
    one.write_bytes(b"changed")
    assert folder.digest() != before


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for source in (
        TextSource(nano=tmp_path / "none"),
        TextSource(openclip=f"local-dir:{tmp_path / 'none'}"),
        TextSource(openclip="ViT-B-16", checkpoint=tmp_path / "none"),
    ):
        with pytest.raises(HarnessError, match="none: cannot be read"):
            source.digest()


def test_names_tell_no_folder_of_this_machine(tmp_path: Path) -> None:
    assert TextSource(openclip=f"local-dir:{tmp_path / 'mine'}").name == "open_clip local-dir:mine"
    assert TextSource(nano=tmp_path / "t.safetensors").name == "nano t.safetensors"
    assert TextSource(openclip="ViT-B-16", weights="openai").name == "open_clip ViT-B-16 openai"


SHIPPED = [
    name
    for name in having(Registry.load())
    if (text := Registry.load().entry(name).text) is not None and text.openclip is not None
]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tower_is_that_of_the_picture_towers_release(name: str) -> None:
    """By open_clip's own configurations: size, depth, width, activation, and how pictures are
    normalised and fitted."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip (extra openclip)")
    from harness.language.pictures import PictureProtocol, resolved

    entry = Registry.load().entry(name)
    assert entry.text is not None and entry.text.openclip is not None and entry.timm is not None
    own = open_clip.get_model_config(entry.text.openclip)
    release = open_clip.get_pretrained_cfg(entry.text.openclip, entry.text.weights)
    vision, facts = own["vision_cfg"], architecture(entry)
    assert facts.default_size == (vision["image_size"],) * 2
    assert facts.mean == tuple(release["mean"]) and facts.std == tuple(release["std"])
    assert own.get("quick_gelu", False) == ("quickgelu" in entry.timm)
    fit = {"shortest": "crop", "squash": "squash"}[release["resize_mode"]]
    assert resolved(PictureProtocol(name="p", version="1"), facts)["fit"] == fit
    if "timm_model_name" in vision:
        assert entry.timm.startswith(vision["timm_model_name"] + ".")
    else:
        assert (facts.width, facts.depth, facts.patch) == (
            vision["width"],
            vision["layers"],
            vision["patch_size"],
        )
        assert facts.heads == vision["width"] // vision.get("head_width", 64)
