"""``harness pretrain``: it learns, goes on after a kill, and a pair differs in registers alone."""

from __future__ import annotations

import errno
import importlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_off import Killed, KilledAfter, log
from PIL import Image

from harness.data.generated import paint
from harness.documents import read_yaml
from harness.errors import HarnessError
from harness.nano.recipe import MEAN, SIZES, STD, Recipe, Size, settable
from harness.nano.schedule import schedule
from harness.progress import Silent
from harness.registry import Registry

pytest.importorskip("lightly", reason="needs lightly: pip install 'vit-harness[train]'")

from harness import atomic
from harness.backbone.sources import load_backbone
from harness.nano import training_state
from harness.nano.decoded import order
from harness.nano.distillation import Distillation, draw_masks
from harness.nano.feeding import Batch, batches
from harness.nano.network import build_vit
from harness.nano.pretrain import open_pictures, pretrain

PICTURES = 64


@pytest.fixture(autouse=True)
def mote(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT that takes milliseconds: two blocks of width 32."""
    size = Size(width=32, depth=2, heads=2, patch=8, crop=32, local_crop=16)
    monkeypatch.setitem(SIZES, "mote", size)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of painted pictures of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(PICTURES):
        image = Image.fromarray(paint(index)).resize((64, 64))
        image.save(folder / f"{index:02d}.png")
    return folder


Make = Callable[..., Recipe]


@pytest.fixture
def recipe(pictures: Path, tmp_path: Path) -> Make:
    """A short recipe on the painted pictures; what is given replaces it."""

    def make(**changes: Any) -> Recipe:
        plain = {
            "data": str(pictures),
            "out": tmp_path / "out",
            "size": "mote",
            "steps": 4,
            "batch_size": 8,
            "local_crops": 2,
            "head_outputs": 64,
            "head_hidden": 32,
            "head_bottleneck": 16,
            "workers": 0,
            "threads": 1,
            "log_every": 1,
        }
        return Recipe(**{**plain, **changes})

    return make


def state(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "training.pt", weights_only=True)
    return loaded


def equal(one: Any, other: Any) -> bool:
    """Same nesting, same values, same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------------------- it learns


@pytest.mark.slow
def test_two_hundred_steps_on_sixty_four_pictures_lower_the_loss(recipe: Make) -> None:
    wanted = recipe(steps=200, registers=2)
    pretrain(wanted, Silent())
    losses = [line["loss"] for line in log(wanted.out)]
    assert len(losses) == 200
    assert np.mean(losses[-20:]) < np.mean(losses[10:30]) - 0.1
    answers = log(wanted.out)[-1]
    assert answers["spread"] > 0.9 * np.log(64)  # not one answer for all
    assert answers["entropy"] < answers["spread"] - 0.02  # and not all answers for each


def test_a_step_changes_the_student_and_the_teacher_follows(recipe: Make) -> None:
    """All of it: registers and the mask token too, though no loss reads them."""
    before = Distillation(recipe(registers=3)).state_dict()
    pretrain(recipe(registers=3, steps=3, frozen_last_layer=0.0), Silent())
    after = state(recipe().out)["model"]
    assert before.keys() == after.keys()
    for name in before:
        unchanged = torch.equal(before[name], after[name])
        # The last layer's length is fixed; Sinkhorn-Knopp needs no running center.
        assert unchanged == name.endswith(("weight_g", "center")), name


def test_the_last_layer_is_frozen_at_first(recipe: Make) -> None:
    before = Distillation(recipe()).state_dict()
    pretrain(recipe(steps=3, frozen_last_layer=1.0, centering="mean"), Silent())
    after = state(recipe().out)["model"]
    for name in before:
        assert torch.equal(before[name], after[name]) == ("last_layer" in name), name


def test_one_head_for_both_and_no_local_crops_and_no_patch_loss_are_possible(recipe: Make) -> None:
    pretrain(
        recipe(steps=1, shared_head=True, local_crops=0, patch_weight=0.0, koleo_weight=0.0),
        Silent(),
    )
    line = log(recipe().out)[0]
    assert line["loss"] == pytest.approx(line["class"], rel=1e-5)


def test_labels_are_learned_where_they_are_asked_for(recipe: Make) -> None:
    wanted = recipe(data="generated", label_weight=1.0, batch_size=4, steps=30)
    pretrain(wanted, Silent())
    told = [line["label"] for line in log(wanted.out)]
    assert np.mean(told[-5:]) < np.mean(told[:5])
    with pytest.raises(HarnessError, match="a weight of 0 or more is needed"):
        recipe(label_weight=-1.0).check()


def test_labels_are_left_alone_where_they_are_not(recipe: Make) -> None:
    wanted = recipe(data="generated", batch_size=4)
    pretrain(wanted, Silent())
    assert all(line["label"] == 0 for line in log(wanted.out))
    assert not any("label_head" in name for name in state(wanted.out)["model"])


def test_half_precision_on_a_cpu_is_close_to_full(recipe: Make, tmp_path: Path) -> None:
    pretrain(recipe(steps=1), Silent())
    pretrain(recipe(steps=1, precision="bf16", out=tmp_path / "half"), Silent())
    full, half = log(recipe().out)[0], log(tmp_path / "half")[0]
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.02)


def test_schedules_begin_and_end_where_the_recipe_says(recipe: Make) -> None:
    wanted = recipe(teacher_temperature=(0.04, 0.07), warm_up=0.1)
    first, last = schedule(wanted, 0, 1000), schedule(wanted, 999, 1000)
    assert first.learning_rate == pytest.approx(wanted.learning_rate / 100)
    assert schedule(wanted, 100, 1000).learning_rate == pytest.approx(wanted.learning_rate)
    assert last.learning_rate == pytest.approx(wanted.final_learning_rate)
    for name in ("weight_decay", "momentum", "teacher_temperature"):
        assert getattr(first, name) == pytest.approx(getattr(wanted, name)[0])
        assert getattr(last, name) == pytest.approx(getattr(wanted, name)[1])
    assert first.last_layer_frozen and not last.last_layer_frozen
    schedule(wanted, 0, 1)


# ------------------------------------------------------------------------------------ a pair


@pytest.mark.parametrize("registers", [1, 4, 16])
def test_a_pair_begins_with_the_same_values_for_all_that_it_shares(
    recipe: Make, registers: int
) -> None:
    plain = Distillation(recipe()).state_dict()
    torch.manual_seed(9)
    other = Distillation(recipe(registers=registers)).state_dict()
    assert other.keys() - plain.keys() == {"student.vit.reg_token", "teacher.vit.reg_token"}
    for name, value in plain.items():
        assert torch.equal(value, other[name]), name
    tokens = other["student.vit.reg_token"][0]
    assert tokens.shape == (registers, 32)
    assert len({tuple(token.tolist()) for token in tokens}) == registers


def test_another_seed_draws_other_values(recipe: Make) -> None:
    one, other = build_vit(recipe()), build_vit(recipe(seed=1))
    assert not torch.equal(one.get_parameter("pos_embed"), other.get_parameter("pos_embed"))


def fed(recipe: Recipe, steps: range) -> list[Batch]:
    return list(batches(recipe, open_pictures(recipe), steps))


def same_batches(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        torch.equal(a.crops, b.crops)
        and torch.equal(a.local_crops, b.local_crops)
        and torch.equal(a.masks, b.masks)
        for a, b in zip(one, other, strict=True)
    )


def test_a_pair_sees_the_same_crops_and_masks_in_the_same_order(recipe: Make) -> None:
    assert same_batches(fed(recipe(), range(10)), fed(recipe(registers=4), range(10)))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(recipe: Make, workers: int) -> None:
    here = fed(recipe(), range(5, 20))
    assert same_batches(here, fed(recipe(workers=workers), range(5, 20)))


def test_crops_do_not_depend_on_the_batch_size(recipe: Make) -> None:
    """The same pictures in the same order, in one batch or in two."""
    (whole,) = fed(recipe(batch_size=16), range(1))
    halves = fed(recipe(batch_size=8), range(2))
    joined = torch.cat([half.crops.unflatten(0, (2, 8)) for half in halves], 1)
    assert torch.equal(whole.crops.unflatten(0, (2, 16)), joined)
    joined = torch.cat([half.local_crops.unflatten(0, (2, 8)) for half in halves], 1)
    assert torch.equal(whole.local_crops.unflatten(0, (2, 16)), joined)


def test_an_epoch_is_every_picture_once_in_an_order_of_its_own() -> None:
    assert sorted(order(0, 0, 50)) == list(range(50))
    assert order(0, 0, 50) == order(0, 0, 50)
    assert order(0, 0, 50) != order(0, 1, 50)
    assert order(0, 0, 50) != order(1, 0, 50)


def test_masks_cover_half_of_the_crops_and_leave_the_callers_random_state_alone(
    recipe: Make,
) -> None:
    wanted = recipe(crop=96)
    random.seed(3)
    expected = random.Random(3).random()
    masks = draw_masks(wanted, 0)
    assert random.random() == expected
    assert masks.shape == (16, 12, 12) and masks.dtype == torch.bool
    shares = masks.float().mean((1, 2))
    assert (shares > 0).sum() == 8
    assert shares.max() <= 0.5
    assert torch.equal(masks, draw_masks(wanted, 0))
    assert not torch.equal(masks, draw_masks(wanted, 1))


@pytest.mark.parametrize("crop", [8, 16, 24, 32])
def test_small_grids_are_masked_or_left_alone_but_train(recipe: Make, crop: int) -> None:
    pretrain(recipe(steps=2, crop=crop, local_crop=8), Silent())
    assert np.isfinite(log(recipe().out)[-1]["loss"])


# --------------------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize("killed_after", [1, 2, 5])
def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(
    recipe: Make, tmp_path: Path, killed_after: int
) -> None:
    whole = recipe(steps=10, registers=2, checkpoint_every=2, out=tmp_path / "whole")
    broken = recipe(steps=10, registers=2, checkpoint_every=2, out=tmp_path / "broken", workers=1)
    pretrain(whole, Silent())
    with pytest.raises(Killed):
        pretrain(broken, KilledAfter(killed_after))
    assert not (tmp_path / "broken" / "models.yaml").exists()
    pretrain(recipe(steps=10, registers=2, out=tmp_path / "broken"), Silent())
    assert equal(state(tmp_path / "whole"), state(tmp_path / "broken"))
    name = "mote-reg2.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    steps = [line["step"] for line in log(tmp_path / "broken")]
    assert steps == list(range(1, 11))
    for one, other in zip(log(tmp_path / "whole"), log(tmp_path / "broken"), strict=True):
        del one["pictures/s"], other["pictures/s"]
        assert one == other


def test_ctrl_c_keeps_the_step_that_it_came_in(recipe: Make) -> None:
    class CtrlC(Silent):
        def note(self, text: str) -> None:
            if text.startswith("step 2/"):
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe(), CtrlC())
    assert state(recipe().out)["step"] == 2
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_finished_run_is_not_run_again_but_exported_again(recipe: Make) -> None:
    path = pretrain(recipe(), Silent())
    before = (recipe().out / "training.pt").stat().st_mtime_ns
    path.unlink()
    assert pretrain(recipe(), KilledAfter(1)) == path
    assert path.exists()
    assert (recipe().out / "training.pt").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused_by_what_differs(recipe: Make) -> None:
    pretrain(recipe(), Silent())
    with pytest.raises(HarnessError, match=r"registers 0, now 4.*--overwrite"):
        pretrain(recipe(registers=4), Silent())
    with pytest.raises(HarnessError, match="precision fp32, now bf16"):
        pretrain(recipe(precision="bf16"), Silent())
    pretrain(recipe(registers=4, overwrite=True), Silent())
    assert state(recipe().out)["model"]["teacher.vit.reg_token"].shape == (1, 4, 32)
    assert len(log(recipe().out)) == 4


def test_other_pictures_in_the_same_folder_are_noticed(recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for index in range(9):
        Image.fromarray(paint(index)).save(folder / f"{index}.png")
    pretrain(recipe(data=str(folder)), Silent())
    (folder / "0.png").unlink()
    with pytest.raises(HarnessError, match="other pictures"):
        pretrain(recipe(data=str(folder)), Silent())


@pytest.mark.parametrize("text", [b"", b"text", b"PK\x03\x04 no zip"])
def test_a_damaged_checkpoint_is_named(recipe: Make, text: bytes) -> None:
    recipe().out.mkdir()
    (recipe().out / "training.pt").write_bytes(text)
    with pytest.raises(HarnessError, match=r"training\.pt: cannot be gone on from.*--overwrite"):
        pretrain(recipe(), Silent())


def test_a_checkpoint_with_code_in_it_is_not_run(recipe: Make, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    recipe().out.mkdir()
    torch.save({"format": Evil()}, recipe().out / "training.pt")
    with pytest.raises(HarnessError, match="cannot be gone on from"):
        pretrain(recipe(), Silent())
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        pretrain(recipe(steps=6, checkpoint_every=2), KilledAfter(2))
    kept = (recipe().out / "training.pt").read_bytes()
    write = atomic.write_through

    def full(path: Path, data: bytes) -> None:
        if "training.pt" in path.name:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_through", full)
        with pytest.raises(HarnessError, match=r"training\.pt: cannot be written: No space left"):
            pretrain(recipe(steps=6, checkpoint_every=2), Silent())
    assert (recipe().out / "training.pt").read_bytes() == kept
    assert not list(recipe().out.glob("*.tmp")) and not list(recipe().out.glob(".*.tmp"))
    pretrain(recipe(steps=6), Silent())
    assert [line["step"] for line in log(recipe().out)] == list(range(1, 7))


def test_a_loss_that_is_not_finite_ends_the_run_and_not_the_checkpoint(recipe: Make) -> None:
    wild = recipe(steps=50, learning_rate=1e30, warm_up=0.0, checkpoint_every=1)
    with pytest.raises(HarnessError, match=r"step \d+: the loss.*not finite.*intact"):
        pretrain(wild, Silent())
    saved = training_state.load(wild.out)
    assert saved is not None and saved.step >= 1


# ----------------------------------------------------------------------------------- the export


@pytest.mark.parametrize("registers", [0, 1, 16])
def test_what_was_trained_is_loaded_by_the_registry_and_is_the_teacher(
    recipe: Make, registers: int
) -> None:
    wanted = recipe(registers=registers, command=("harness", "pretrain", "--data", "a b"))
    path = pretrain(wanted, Silent())
    name = "mote" if not registers else f"mote-reg{registers}"
    backbone = load_backbone(Registry.load([path]).entry(name), "cpu")
    assert backbone.architecture.layout.registers == registers
    assert (backbone.architecture.mean, backbone.architecture.std) == (MEAN, STD)
    assert backbone.architecture.interpolation == "bicubic"
    assert backbone.architecture.default_size == (32, 32)
    teacher = Distillation(wanted)
    teacher.load_state_dict(state(wanted.out)["model"])
    seen = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classes, patches = teacher.teacher.eval()(seen)
        exported: Any = backbone.module
        sequence = exported.forward_features(seen)
    assert torch.allclose(sequence[:, 0], classes, atol=0.02)
    assert torch.allclose(sequence[:, 1 + registers :], patches.flatten(1, 2), atol=0.02)
    assert path.read_text().startswith("# harness pretrain --data 'a b'\n")


def test_a_name_of_ones_own(recipe: Make) -> None:
    path = pretrain(recipe(name="mine", steps=1), Silent())
    assert Registry.load([path]).entry("mine").checkpoint == path.parent / "mine.safetensors"


def test_a_pair_is_one_registry_file(recipe: Make, tmp_path: Path) -> None:
    pretrain(recipe(), Silent())
    out = tmp_path / "with"
    path = pretrain(recipe(registers=4, out=out, baseline=recipe().out), Silent())
    registry = Registry.load([path])
    assert registry.entry("mote-reg4").baseline == "mote"
    assert read_yaml(path).data["mote"]["checkpoint"] == "../out/mote.safetensors"
    load_backbone(registry.entry("mote"), "cpu")
    # Its folder now tells of both, and is the folder of one.
    again = recipe(registers=2, out=tmp_path / "again", baseline=out, steps=1)
    with pytest.raises(HarnessError, match=r"mote-reg4\.safetensors: is no baseline.*steps 4"):
        pretrain(again, Silent())


def test_what_differs_in_more_than_registers_is_no_pair(recipe: Make, tmp_path: Path) -> None:
    pretrain(recipe(), Silent())
    other = recipe(registers=4, seed=1, out=tmp_path / "with", baseline=recipe().out)
    with pytest.raises(HarnessError, match=r"differ in more than registers.*seed 0, now 1"):
        pretrain(other, Silent())
    assert not other.out.exists()


# ----------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "imagenete"}, r"no data set or folder 'imagenete': did you mean imagenette"),
        ({"data": "./nowhere"}, r"no data set or folder './nowhere'"),
        ({"size": "nono"}, "no size 'nono': did you mean nano"),
        ({"crop": 33}, "--crop 33: the patch of mote, 8 pixels, does not divide it; 32 or 40"),
        ({"local_crop": 4}, "--local-crop 4.*does not divide it; 8 or 16"),
        ({"registers": 65}, "--registers 65: from 0 to 64"),
        ({"registers": -1}, "--registers -1"),
        ({"batch_size": 65}, "64 pictures do not fill a batch of 65"),
        ({"batch_size": 1}, "--batch-size 1"),
        ({"steps": 0}, "--steps 0"),
        ({"steps": 5, "epochs": 5}, "--steps and --epochs"),
        ({"workers": -1}, "--workers -1"),
        ({"name": "../x"}, "model name '../x'"),
        ({"precision": "fp15"}, "no precision 'fp15'"),
        ({"device": "tpu"}, "--device tpu"),
        ({"baseline": Path("nowhere")}, r"nowhere/models\.yaml: no such file"),
        ({"depth": 0}, "depth 0: from 1 to 1,000"),
        ({"patch_weight": -1.0}, "patch_weight -1.0: finite numbers of at least 0 are needed"),
        ({"learning_rate": float("inf")}, "learning_rate inf: finite numbers"),
        ({"weight_decay": (0.1, -0.1)}, r"weight_decay \(0.1, -0.1\): finite numbers"),
        ({"warm_up": 1.5}, "warm_up 1.5: from 0 to 1"),
        ({"crop_scale": (0.9, 0.2)}, "crop_scale 0.9, 0.2: shares from 0 to 1, in order"),
    ],
)
def test_wrong_use_is_told_before_anything_is_written(
    recipe: Make, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        pretrain(recipe(**changes), Silent())
    assert not recipe().out.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dept": 3}, "no setting 'dept': did you mean depth"),
        ({"seed": 3}, "no setting 'seed'"),
        ({"depth": "deep"}, "--set depth: .*valid integer.*'deep'"),
        ({"crop_scale": 3}, "--set crop_scale: .*tuple"),
        ({"centering": "none"}, "--set centering: .*'sinkhorn' or 'mean'"),
    ],
)
def test_a_setting_that_cannot_be_is_told(
    recipe: Make, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        recipe().changed(settings)


def test_settings_without_an_option_can_be_set_and_decide_the_weights(recipe: Make) -> None:
    changed = recipe().changed({"depth": 3, "masked_share": [0.2, 0.3], "patch_weight": 0})
    assert changed == recipe(depth=3, masked_share=(0.2, 0.3), patch_weight=0.0)
    assert changed.decisive() != recipe().decisive()
    assert len(build_vit(changed).blocks) == 3  # type: ignore[arg-type]


def test_the_docs_list_every_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "nano.md").read_text()
    for name in settable():
        assert f"`{name}`" in text, name


def test_an_empty_folder_is_told(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="empty: no picture in it"):
        pretrain(recipe(data=str(tmp_path / "empty")), Silent())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(recipe: Make, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for index in range(7):
        Image.fromarray(paint(index)).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"text")
    with pytest.raises(HarnessError, match=r"some/bad\.png: not a picture"):
        pretrain(recipe(data=str(folder), workers=workers), Silent())


def test_a_file_in_the_folders_place_is_told(recipe: Make) -> None:
    recipe().out.write_text("here")
    with pytest.raises(HarnessError, match=r"out: cannot be written"):
        pretrain(recipe(), Silent())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(recipe: Make) -> None:
    recipe().out.mkdir(mode=0o500)
    with pytest.raises(HarnessError, match="cannot be written"):
        pretrain(recipe(), Silent())


def test_without_lightly_the_command_that_brings_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightly.loss.dino_loss", None)
    monkeypatch.delitem(sys.modules, "harness.nano.distillation")
    with pytest.raises(HarnessError, match=r"pip install 'vit-harness\[train\]'"):
        importlib.import_module("harness.nano.distillation")


def test_a_data_set_of_the_catalog_is_taken_by_its_name(recipe: Make) -> None:
    wanted = recipe(data="generated", steps=1)
    assert len(open_pictures(wanted).samples) == 12
    pretrain(wanted, Silent())


def test_epochs_leave_out_what_does_not_fill_a_batch(recipe: Make) -> None:
    assert recipe(steps=None, epochs=3, batch_size=10).total_steps(64) == 18
    assert recipe(steps=None).total_steps(64) == 1250
