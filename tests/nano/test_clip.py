"""``harness pretrain --objective clip``: it learns, goes on after a kill, and makes a pair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_off import Killed, KilledAfter, log
from torch import Tensor

from harness.cli import main
from harness.data.dataset import Dataset, Sample, Target
from harness.errors import HarnessError
from harness.language.nano_words import Words
from harness.language.tower import load_tower
from harness.nano import contrast as contrast_module
from harness.nano import training_state
from harness.nano.captioned import pairs, read_captions
from harness.nano.contrast import Clip, Contrast, contrast
from harness.nano.crops import plain_crop
from harness.nano.draw import Draw
from harness.nano.pretrain import pretrain
from harness.nano.recipe import SIZES, Recipe, Size, settable
from harness.nano.scenes import ScenesDataset
from harness.progress import Silent
from harness.registry import Registry

PICTURES = 24
CATALOG = f"""
few: {{format: scenes, count: {{train: {PICTURES}}}, size: 32, captions: true}}
bare: {{format: scenes, count: {{train: {PICTURES}}}, size: 32}}
"""
Make = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def mote(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT that takes milliseconds: two blocks of width 32."""
    size = Size(width=32, depth=2, heads=2, patch=8, crop=32, local_crop=16)
    monkeypatch.setitem(SIZES, "mote", size)  # type: ignore[arg-type]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "datasets.yaml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def recipe(catalog: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> Recipe:
        plain = {
            **{"data": "few", "dataset_files": (catalog,), "out": tmp_path / "out"},
            **{"objective": "clip", "size": "mote", "steps": 4, "batch_size": 8},
            **{"text_width": 16, "text_depth": 1, "text_heads": 2, "shared": 12},
            **{"workers": 0, "threads": 1, "log_every": 1},
        }
        return Recipe(**{**plain, **changes})

    return make


def dataset() -> ScenesDataset:
    return ScenesDataset("few", "train", PICTURES, (32, 32), captions=True)


def model(recipe: Recipe) -> Contrast:
    return Clip(recipe, dataset(), torch.device("cpu")).model


# ----------------------------------------------------------------------------------------- the loss


def test_the_loss_is_clips(recipe: Make) -> None:
    """Against figure 3 of the paper, written out."""
    torch.manual_seed(0)
    seen, said = (torch.nn.functional.normalize(torch.randn(5, 12), dim=1) for _ in range(2))
    loss, right = contrast(seen, said, torch.tensor(9.0))
    logits = 9 * seen.numpy() @ said.numpy().T

    def of_rows(values: np.ndarray) -> float:
        likelihoods = np.exp(values) / np.exp(values).sum(1, keepdims=True)
        return float(-np.log(np.diag(likelihoods)).mean())

    assert loss.item() == pytest.approx((of_rows(logits) + of_rows(logits.T)) / 2, rel=1e-5)
    assert right.item() == pytest.approx((logits.argmax(1) == np.arange(5)).mean())


def test_no_loss_reads_registers_but_they_are_trained(recipe: Make) -> None:
    before = model(recipe(registers=3)).state_dict()
    pretrain(recipe(registers=3), Silent())
    after = training_state.load(recipe().out)
    assert after is not None and after.model.keys() == before.keys()
    for name in before:
        assert not torch.equal(before[name], after.model[name]), name


@pytest.mark.slow
def test_forty_passes_over_few_pictures_find_most_captions(recipe: Make) -> None:
    wanted = recipe(steps=40 * PICTURES // 8, learning_rate=2e-3)
    pretrain(wanted, Silent())
    lines = log(wanted.out)
    assert np.mean([line["loss"] for line in lines[-10:]]) < lines[0]["loss"] - 0.5
    assert np.mean([line["right"] for line in lines[-10:]]) > 0.35  # 0.125 by chance


# ----------------------------------------------------------------------------------------- the pair


def test_two_recipes_that_differ_in_registers_start_from_the_same_values(recipe: Make) -> None:
    without, with_ = model(recipe()).state_dict(), model(recipe(registers=4)).state_dict()
    assert with_.keys() - without.keys() == {"vit.reg_token"}
    for name in without:
        assert torch.equal(without[name], with_[name]), name
    other = model(recipe(seed=1)).state_dict()
    assert not torch.equal(other["towers.words.weight"], without["towers.words.weight"])
    assert not torch.equal(other["vit.cls_token"], without["vit.cls_token"])


def test_a_pair_stands_in_one_registry_with_both_text_towers(recipe: Make, tmp_path: Path) -> None:
    pretrain(recipe(), Silent())
    file = pretrain(
        recipe(registers=2, out=tmp_path / "registers", baseline=tmp_path / "out"), Silent()
    )
    registry = Registry.load([file])
    with_, without = registry.entry("mote-clip-reg2"), registry.entry("mote-clip")
    assert with_.baseline == "mote-clip" and with_.registers == 2
    texts = ["a forest", "a red ball on the left of a playground"]
    one, other = (load_tower(entry) for entry in (without, with_))
    assert one.digest != other.digest and one.width == other.width == 12
    assert not torch.equal(one.encode(texts), other.encode(texts))
    assert one.project(torch.zeros(2, 32)).shape == (2, 12)
    with pytest.raises(HarnessError, match="differ in more than registers"):
        pretrain(
            recipe(registers=2, out=tmp_path / "more", baseline=tmp_path / "out", shared=8),
            Silent(),
        )


def test_the_towers_that_were_written_are_those_that_were_trained(recipe: Make) -> None:
    """The backbone's normed global token and the text tower, through fp16, give the loss's own
    vectors."""
    from harness.backbone.sources import load_backbone
    from harness.backbone.vit import Read
    from harness.nano.network import normalised

    wanted = recipe(registers=2)
    file = pretrain(wanted, Silent())
    entry = Registry.load([file]).entry("mote-clip-reg2")
    trained = model(wanted)
    saved = training_state.load(wanted.out)
    assert saved is not None
    trained.load_state_dict(saved.model)
    trained.eval()
    pictures = torch.from_numpy(np.stack([dataset().picture(n) for n in range(4)]))
    crops = normalised(pictures.permute(0, 3, 1, 2), torch.device("cpu"))
    texts = [(dataset().samples[n].target.captions or ("",))[0] for n in range(4)]
    clip = Clip(wanted, dataset(), torch.device("cpu"))
    rows = Words(clip.facts.vocabulary, clip.facts.context).rows(texts)
    with torch.no_grad():
        seen, said = trained(crops, rows)
    tower, backbone = load_tower(entry), load_backbone(entry, "cpu")
    read = Read(backbone.architecture.depth - 1, norm=True)
    token = backbone(crops, [read]).tokens[read].global_
    projected = torch.nn.functional.normalize(tower.project(token), dim=-1)
    torch.testing.assert_close(projected, seen, atol=5e-3, rtol=0)
    torch.testing.assert_close(tower.encode(texts), said, atol=5e-3, rtol=0)
    assert tower.scale == pytest.approx(trained.towers.scale().item(), rel=1e-3)


# ------------------------------------------------------------------------------------ what is seen


def test_a_batch_has_a_caption_of_each_of_its_pictures(recipe: Make) -> None:
    wanted, data = recipe(batch_size=6), dataset()
    captions = read_captions(wanted, data)
    assert captions == [sample.target.captions for sample in data.samples]
    facts = Clip(wanted, data, torch.device("cpu")).facts
    words = Words(facts.vocabulary, facts.context)
    known = {tuple(words.rows([text])[0].tolist()) for told in captions for text in told}
    epoch = list(pairs(wanted, data, captions, words, range(4)))
    assert [batch.crops.shape for batch in epoch] == [(6, 3, 32, 32)] * 4
    rows = [tuple(row.tolist()) for batch in epoch for row in batch.rows]
    assert len(rows) == PICTURES and set(rows) <= known
    again = next(iter(pairs(wanted, data, captions, words, range(2, 3))))
    assert torch.equal(again.crops, epoch[2].crops) and torch.equal(again.rows, epoch[2].rows)
    later = list(pairs(wanted, data, captions, words, range(4, 8)))
    assert [tuple(row.tolist()) for batch in later for row in batch.rows] != rows


def test_workers_change_nothing(recipe: Make) -> None:
    wanted, data = recipe(), dataset()
    captions = read_captions(wanted, data)
    assert read_captions(recipe(workers=2), data) == captions
    words = Words(("a", "of"), 8)
    alone = list(pairs(wanted, data, captions, words, range(3)))
    helped = list(pairs(recipe(workers=2), data, captions, words, range(3)))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.crops, other.crops) and torch.equal(one.rows, other.rows)


def test_a_crop_is_a_part_of_the_picture_neither_mirrored_nor_tinted() -> None:
    """Of a picture that grows brighter to the right and downwards, in channels of their own."""
    ramp = np.arange(64, dtype=np.uint8) * 3
    across, down = np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64))
    picture = np.stack([across, down, np.full_like(across, 7)], axis=-1)
    for index in range(10):
        crop = plain_crop(picture, Draw(0, 0, index), 16, (0.5, 1.0)).int()
        assert crop.shape == (3, 16, 16)
        assert (crop[0].diff(dim=1) > 0).all() and (crop[1].diff(dim=0) > 0).all()
        assert (crop[2] == 7).all()
    whole = plain_crop(picture, Draw(0), 64, (1.0, 1.0))
    assert whole.shape == (3, 64, 64)


# ------------------------------------------------------------------------------------- it goes on


def test_a_killed_run_ends_with_the_same_bits(recipe: Make, tmp_path: Path) -> None:
    whole = recipe(steps=5, out=tmp_path / "whole", registers=1)
    pretrain(whole, Silent())
    broken = recipe(steps=5, checkpoint_every=2, out=tmp_path / "broken", registers=1)
    with pytest.raises(Killed):
        pretrain(broken, KilledAfter(3))
    pretrain(broken, Silent())
    names = sorted(path.name for path in whole.out.glob("*.safetensors"))
    assert names == ["mote-clip-reg1.safetensors", "mote-clip-reg1.text.safetensors"]
    for name in names:
        assert (whole.out / name).read_bytes() == (broken.out / name).read_bytes()
    assert [line["step"] for line in log(broken.out)] == [1, 2, 3, 4, 5]
    assert set(log(broken.out)[0]) == {
        *("step", "loss", "right", "scale", "learning_rate", "weight_decay", "pictures/s"),
    }


def test_the_other_objective_does_not_go_on_from_its_checkpoint(recipe: Make) -> None:
    pytest.importorskip("lightly", reason="needs lightly: pip install 'vit-harness[train]'")
    pretrain(recipe(), Silent())
    with pytest.raises(HarnessError, match="of another recipe"):
        pretrain(recipe(objective="distillation", name="mote-clip"), Silent())


def test_it_needs_no_lightly(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harness.nano.distillation", None)
    pretrain(recipe(steps=1), Silent())
    assert (recipe().out / "mote-clip.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(seen: Tensor, said: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return (seen.sum() + said.sum()) * scale * torch.nan, scale

    monkeypatch.setattr(contrast_module, "contrast", broken)
    with pytest.raises(HarnessError, match="step 1: the loss or its gradient is not finite"):
        pretrain(recipe(), Silent())


# -------------------------------------------------------------------------------------- wrong input


class Listed(Dataset):
    """Pictures with the captions given, or with none."""

    def __init__(self, *captions: tuple[str, ...] | None) -> None:
        self.name, self.split = "listed", "train"
        self.samples = [
            Sample(f"picture-{n}", (8, 8), Target(captions=told)) for n, told in enumerate(captions)
        ]

    def picture(self, index: int) -> np.ndarray:
        return np.zeros((8, 8, 3), dtype=np.uint8)


def test_pictures_without_captions_are_told(recipe: Make) -> None:
    with pytest.raises(HarnessError, match=r"1 of 2 pictures have no caption, picture-1 for one"):
        read_captions(recipe(), Listed(("a ball",), ()))
    with pytest.raises(HarnessError, match=r"2 of 2 .* \(scenes-captions has some\)"):
        read_captions(recipe(), Listed(None, None))
    with pytest.raises(HarnessError, match="24 of 24 pictures have no caption"):
        pretrain(recipe(data="bare"), Silent())


def test_captions_without_a_word_are_told(recipe: Make) -> None:
    with pytest.raises(HarnessError, match="no words to learn"):
        Clip(recipe(), Listed(("…",), ("?",)), torch.device("cpu"))


def test_captions_of_any_length_and_script_are_learned_from(recipe: Make) -> None:
    data = Listed(("a " * 3000,), ("красный мяч",), ("红球", "red ball"))
    clip = Clip(recipe(batch_size=3, crop=8), data, torch.device("cpu"))
    assert set(clip.facts.vocabulary) == {"a", "ball", "red", "красный", "мяч", "红球"}
    batch = next(iter(clip.batches(range(1))))
    assert batch.rows.shape == (3, 32)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"text_heads": 3}, "text_heads 3: do not divide text_width, 16"),
        ({"context": 1}, "context 1: from 2 to 1,024"),
        ({"shared": 0}, "shared 0"),
        ({"vocabulary": 0}, "vocabulary 0"),
        ({"label_weight": 1.0}, "--labels: of --objective distillation"),
        ({"objective": "clop"}, "clop"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(
    recipe: Make, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(HarnessError, match=why):
        pretrain(recipe(**changes), Silent())


def test_settings_of_the_other_objective_are_refused_by_name(recipe: Make) -> None:
    assert {"text_width", "shared", "vocabulary"} <= set(settable("clip"))
    assert not {"text_width", "shared", "vocabulary"} & set(settable())
    assert not {"head_outputs", "momentum", "koleo_weight"} & set(settable("clip"))
    with pytest.raises(HarnessError, match=r"setting of clip.*head_outputs"):
        recipe().changed({"head_outputs": 64})


def test_the_recipes_of_before_are_still_the_same() -> None:
    """Its own keys, and no more: a checkpoint of an earlier version goes on."""
    decisive = Recipe(data="x", out=Path("x")).decisive()
    assert not {"objective", "text_width", "context", "shared", "vocabulary"} & decisive.keys()
    assert len(decisive) == 39


# ---------------------------------------------------------------------------------------- as typed


def test_the_command_trains_both_towers_and_says_how_to_use_them(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "typed"
    typed = [
        *("pretrain", "--objective", "clip", "--data", "few", "--datasets", str(catalog)),
        *("--size", "mote", "--registers", "2", "--steps", "2", "--batch-size", "8"),
        *("--set", "text_width=16", "--set", "text_depth=1", "--set", "shared=12"),
        *("--threads", "1", "--workers", "0", "--out", str(out)),
    ]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert "mote-clip-reg2" in said and "harness run --task zeroshot" in said
    assert (out / "mote-clip-reg2.text.safetensors").exists()
    assert main(typed) == 0  # a second time: nothing is left to do
    assert "all 2 steps are done already" in capsys.readouterr().err
    assert main([*typed, "--local-crops", "2"]) == 2
    assert "--local-crop, --local-crops: of --objective distillation" in capsys.readouterr().err
    assert main([*typed, "--labels", "1"]) == 2
    assert main([*typed[:3], "--data", "nowhere", *typed[5:]]) == 2
