"""Segmentation end to end: heads and retrieval learn what there is to learn, and say it right."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import SIDE, blocks, columns, save, scored
from PIL import Image

from harness.aggregates import values
from harness.cli import main
from harness.data.dataset import IGNORED, Dense, Sample
from harness.data.views import Geometry
from harness.dense.classes import ClassJudge
from harness.errors import HarnessError
from harness.probes.dense_losses import ClassMap
from harness.records import find
from harness.task import DenseCrops
from harness.task_names import find_task

SMALL = {"size": SIDE, "steps": 60, "learning_rates": 0.01, "batch_size": 4}
STREAMED = {
    "steps": 60, "batch_size": 4, "learning_rates": 0.01, "short": SIDE, "crop": 48,
    "window": 48, "stride": 32, "photometric": False,
}  # fmt: skip
PROTOCOLS: list[tuple[str, dict[str, Any]]] = [
    ("linear-seg", SMALL),
    ("dinov2-linear-seg", STREAMED),
    ("dinov2-linear-seg-ms", {**STREAMED, "test_scales": [1.0, 1.5], "layers": "last"}),
    ("dinov3-linear-seg", {**STREAMED, "learning_rates": [1e-5, 0.01], "weight_decays": 1e-4}),
    ("knn-seg", {"size": SIDE, "k": 5}),
]


run = partial(scored, "segmentation", "blocks")


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
def test_colours_are_learned_and_told_at_the_size_of_the_label(
    protocol: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    record = run(tmp_path, protocol, settings)
    # Not 100: maps are a patch coarse, so that a border of blocks is off by a pixel or two.
    assert record.metrics["miou"].value > (75 if "linear-seg" in protocol else 90)
    told = columns(tmp_path / "out")
    assert told["labelled"].sum(axis=1).tolist() == [SIDE * SIDE] * 6
    assert (told["predicted"].sum(axis=1) == SIDE * SIDE).all()
    ious = values(
        "mean_intersection_over_union", [told[n] for n in ("intersection", "predicted", "labelled")]
    )
    assert record.metrics["miou"].value == pytest.approx(100 * ious.mean())
    by_class = record.details["iou_by_class"]
    assert list(by_class) == ["red", "green", "blue"]
    assert list(by_class.values()) == pytest.approx(100 * ious, abs=1e-3)


def test_of_several_heads_held_out_pictures_choose_one_and_all_pictures_train_it_again(
    tmp_path: Path,
) -> None:
    record = run(tmp_path, "linear-seg", {**SMALL, "learning_rates": [1e-7, 0.01]})
    assert record.selected_on == "held-out pictures"
    assert record.protocol.resolved["learning_rate"] == 0.01
    low, high = (each["score_on_selection"] for each in record.details["grid"])
    assert high > low
    assert record.counts["selection_pictures"] == 1
    assert record.counts["train_pictures"] == 12
    alone = run(tmp_path, "linear-seg", SMALL, out=tmp_path / "alone")
    assert alone.selected_on is None
    assert alone.metrics["miou"].value == record.metrics["miou"].value


def test_what_test_chose_is_marked(tmp_path: Path) -> None:
    settings = {**STREAMED, "learning_rates": [1e-7, 0.01], "steps": 20}
    assert run(tmp_path, "dinov2-linear-seg", settings).selected_on == "test"


@pytest.mark.parametrize(("protocol", "settings"), [PROTOCOLS[0], PROTOCOLS[1]])
def test_batches_and_workers_and_the_store_move_no_pixel(
    protocol: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**settings, "steps": 10}
    ways = [{"workers": 0}, {"workers": 1, "batch_size": 1}, {"workers": 3, "batch_size": 7}]
    found = []
    for number, way in enumerate([*ways, {"workers": 0, "store": False}]):
        run(tmp_path, protocol, settings, out=tmp_path / str(number), **way)
        found.append(columns(tmp_path / str(number)))
    for other in found[1:]:
        for name, column in found[0].items():
            assert np.array_equal(column, other[name]), name


def test_stored_patches_cost_no_second_pass(tmp_path: Path) -> None:
    first = run(tmp_path, "linear-seg", SMALL)
    again = run(tmp_path, "knn-seg", {"size": SIDE, "k": 5})
    assert (first.cost.forward_passes, again.cost.forward_passes) == (18, 0)


def test_a_diverged_head_is_an_error_and_no_number(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="diverged"):
        run(tmp_path, "linear-seg", {**SMALL, "learning_rates": 1e30, "batch_norm": False})


def test_a_single_number_may_be_typed_as_yaml_reads_it() -> None:
    changed = find_task("segmentation").protocols["linear-seg"].changed
    assert changed({"learning_rates": "1e-4"}) == changed({"learning_rates": [1e-4]})


def test_a_step_of_a_single_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="a step cannot be taken"):
        run(tmp_path, "linear-seg", {"size": 1, "batch_size": 1, "steps": 2})


def test_steps_that_bad_pictures_cost_are_counted(tmp_path: Path) -> None:
    file = blocks(tmp_path)
    for number in range(6):
        (tmp_path / f"blocks/images/train/{number:02d}.png").write_bytes(b"broken")
    settings = {**STREAMED, "steps": 6}
    record = run(tmp_path, "dinov2-linear-seg", settings, on_bad_picture="skip")
    assert file.exists() and record.protocol.resolved["steps"] == record.counts["steps"] == 3
    assert record.counts["steps_that_were_not_taken"] == 3


def test_a_memory_without_room_for_a_patch_of_each_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="less than a patch for each of its 12"):
        run(tmp_path, "knn-seg", {"size": SIDE, "memory": 11})


def test_seeds_stand_side_by_side(tmp_path: Path) -> None:
    record = run(tmp_path, "linear-seg", {**SMALL, "steps": 5}, seeds=2)
    scores = record.details["scores"]["miou"]
    assert len(scores) == 2 and scores[0] != scores[1]
    assert record.metrics["miou"].value == pytest.approx(np.mean(scores), abs=1)


def test_memory_that_is_too_small_for_all_patches_keeps_some_of_each_picture(
    tmp_path: Path,
) -> None:
    record = run(tmp_path, "knn-seg", {"size": SIDE, "k": 3, "memory": 120})
    assert record.counts["train_patches"] == 120
    assert record.metrics["miou"].value > 85


def test_a_picture_without_a_labelled_pixel_is_left_out_and_counted() -> None:
    judge = ClassJudge(("a", "b"), ClassMap(2), None, 14)
    said = torch.zeros(4, 4, dtype=torch.int64)
    nothing = judge.row(said, torch.full((4, 4), IGNORED, dtype=torch.uint8))
    rows = np.stack([nothing, judge.row(said, torch.zeros(4, 4, dtype=torch.uint8))])
    outcome = judge.of_pictures([Sample("x", (4, 4)), Sample("y", (4, 4), scene="s")], rows)
    assert outcome.counts["test_pictures_without_labels"] == 1
    assert outcome.columns["image_id"] == ["y"]
    assert outcome.columns["scene"] == ["s"]


def test_a_class_that_is_nowhere_has_no_value_and_is_counted(tmp_path: Path) -> None:
    file = blocks(tmp_path)
    file.write_text(file.read_text().replace("blue]", "blue, never]"))
    record = run(tmp_path, "knn-seg", {"size": SIDE, "k": 3})
    assert record.details["iou_by_class"]["never"] is None
    assert record.counts["classes_neither_there_nor_predicted"] == 1


def test_labels_are_taken_without_padding_where_maps_are_laid_over_crops_without_it() -> None:
    labels = torch.arange(28 * 28).reshape(1, 28, 28)
    objective = ClassMap(3)
    crops = DenseCrops(semantic=labels)
    assert ClassJudge(("a",), objective, None, 14).targets(crops).shape == (1, 28, 28)
    cut = ClassJudge(("a",), objective, 20, 14).targets(crops)
    assert torch.equal(cut, labels[:, 4:24, 4:24])
    geometry = Geometry((20, 20), (20, 20), (0, 0, 20, 20), (4, 4, 4, 4))
    maps = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])
    laid = ClassJudge(("a",), objective, 20, 14).prediction([maps], [geometry])
    padded = ClassJudge(("a",), objective, None, 14).prediction([maps], [geometry])
    assert laid.shape == padded.shape == (20, 20)
    assert laid[0].tolist() == padded[0].tolist() == [0] * 10 + [1] * 10


def test_a_picture_with_labels_that_are_no_classes_is_refused() -> None:
    judge = ClassJudge(("a", "b"), ClassMap(2), None, 14)
    truth = judge.truth(Dense(semantic=np.full((4, 4), 7, np.uint8)))
    with pytest.raises(ValueError, match="label 7"):
        judge.row(torch.zeros(4, 4, dtype=torch.int64), truth)


BAD = {
    "of another size": (np.zeros((SIDE, SIDE - 1), np.uint8), "63x64"),
    "of colours": (np.zeros((SIDE, SIDE, 3), np.uint8), "RGB"),
    "of nothing": (np.full((SIDE, SIDE), IGNORED, np.uint8), "ignored"),
    "beyond the classes": (np.full((SIDE, SIDE), 9, np.uint8), "9"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_mask_is_one_clear_line_and_can_be_skipped(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, said = BAD[kind]
    file = blocks(tmp_path)
    Image.fromarray(mask).save(tmp_path / "blocks/masks/test/01.png")
    command = [
        "run", "--task", "segmentation", "--model", "pixels", "--dataset", "blocks", "--datasets",
        str(file), "--out", str(tmp_path / "out"), "--workers", "0",
        "--set", f"size={SIDE}", "--set", "steps=2",
    ]  # fmt: skip
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "01.png" in told and said in told and "Traceback" not in told
    assert main([*command, "--on-bad-image", "skip"]) == 0
    ((_, record),) = find(tmp_path / "out")
    assert len(record.bad_pictures) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stride": 600}, "would leave gaps"),
        ({"scale": [2, 1]}, "the lower first"),
        ({"layers": "first"}, "layers"),
        ({"learning_rates": 0}, "learning_rates"),
        ({"test_scales": []}, "test_scales"),
        ({"test_scales": 0}, "test_scales"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        find_task("segmentation").protocols["dinov2-linear-seg"].changed(settings)


def test_a_split_that_is_missing_is_not_applicable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = blocks(tmp_path)
    file.write_text(file.read_text().replace("train: train, ", ""))
    command = ["run", "--task", "segmentation", "--model", "pixels", "--dataset", "blocks"]
    main([*command, "--datasets", str(file), "--out", str(tmp_path)])
    assert "no train split" in "".join(capsys.readouterr())


LARGE = """
import resource, sys
from harness import evaluate
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
folder, protocol, settings = sys.argv[1], sys.argv[2], eval(sys.argv[3])
evaluate("segmentation", "nano-reg4", "blocks", protocols=[protocol], settings=settings,
         dataset_files=[folder + "/blocks.yaml"], out=folder + "/" + sys.argv[4], workers=0,
         device="cpu", store=False)
print(peak())
"""


def _peak(folder: Path, protocol: str, settings: dict[str, Any], out: str) -> int:
    command = [sys.executable, "-c", LARGE, str(folder), protocol, repr(settings), out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("linear-seg", {"size": SIDE, "steps": 2}),
        (
            "dinov2-linear-seg",
            {"steps": 1, "batch_size": 2, "short": 128, "crop": 128, "window": 128, "stride": 85},
        ),
    ],
)
def test_a_large_picture_and_many_pictures_fit_into_little_memory(
    protocol: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    blocks(tmp_path)
    file = tmp_path / "blocks.yaml"
    names = ["red", "green", "blue", *(f"class{number}" for number in range(147))]
    file.write_text(file.read_text().replace("red, green, blue", ", ".join(names)))
    few = _peak(tmp_path, protocol, settings, "few")
    for number in range(100, 160):
        save(tmp_path, "test", str(number), np.zeros((SIDE, SIDE), int))
    many = _peak(tmp_path, protocol, settings, "many")
    assert many - few < 2**27
    save(tmp_path, "test", "large", np.zeros((2000, 3000), int))
    large = _peak(tmp_path, protocol, settings, "large")
    assert large - few < 2**31
