"""Depth end to end: heads learn what there is to learn, and are judged where they should be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import METRES, SIDE, blocks, columns, scored
from harness.tasks.depth import DepthJudge, StoredDepthProtocol, StreamedDepthProtocol
from PIL import Image

from harness.cli import main
from harness.data.dataset import Dense, Sample
from harness.data.views import Geometry
from harness.errors import HarnessError
from harness.probes.depth_metrics import DepthErrors, depth_errors
from harness.records import find
from harness.task import DenseCrops
from harness.task_names import find_task

ALL = {
    "evaluated": "none",
    "farthest": 5.0,
    "bins": 16,
    "batch_size": 4,
    "steps": 80,
    "loss_warm_up": 10,
}
SMALL = {**ALL, "size": SIDE, "learning_rates": 0.02, "stored_as": "fp32"}
STREAMED = {**ALL, "cut": None, "crop": 48, "colours": False, "degrees": 0, "learning_rates": 0.02}
PROTOCOLS: list[tuple[str, dict[str, Any]]] = [
    ("linear-depth", SMALL),
    ("dinov2-linear-depth", {**STREAMED, "class_token": False}),
    ("dinov2-linear-depth-4", {**STREAMED, "class_token": False}),
    ("dinov3-linear-depth", STREAMED),
]
UNITS = {"rmse": "m", "mae": "m", "sq_rel": "m", "delta1": "%", "delta2": "%", "delta3": "%"}


run = partial(scored, "depth", "far")


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS)
def test_depth_that_colours_tell_is_learned(
    protocol: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    record = run(tmp_path, protocol, settings)
    told = columns(tmp_path / "out")
    constant = np.std(np.repeat(METRES, 100))
    assert record.metrics["rmse"].value < constant / 2
    assert record.metrics["delta1"].value > 70
    assert set(record.metrics) == set(DepthErrors._fields)
    for name, metric in record.metrics.items():
        assert metric.value == pytest.approx(metric.scale * told[name].mean()), name
        assert metric.unit == UNITS.get(name, ""), name
        assert metric.higher_is_better == name.startswith("delta"), name


@pytest.mark.parametrize(("protocol", "settings"), PROTOCOLS[:2])
def test_batches_and_workers_move_no_number(
    protocol: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = (
        {**settings, "steps": 8, "degrees": 5.0} if "crop" in settings else {**settings, "steps": 8}
    )
    found = []
    for number, way in enumerate([{}, {"workers": 1, "batch_size": 1}, {"workers": 3}]):
        run(tmp_path, protocol, settings, out=tmp_path / str(number), **way)
        found.append(columns(tmp_path / str(number)))
    for other in found[1:]:
        for name, column in found[0].items():
            if name == "image_id":
                assert column.tolist() == other[name].tolist()
            else:
                np.testing.assert_allclose(column, other[name], rtol=1e-5, err_msg=name)


def test_heads_are_chosen_by_their_rmse_on_held_out_pictures(tmp_path: Path) -> None:
    record = run(tmp_path, "linear-depth", {**SMALL, "learning_rates": [1e-7, 0.02]})
    assert record.protocol.resolved["learning_rate"] == 0.02
    worse, better = (each["score_on_selection"] for each in record.details["grid"])
    assert worse < better < 0


def test_scale_and_shift_can_be_taken_out(tmp_path: Path) -> None:
    plain = run(tmp_path, "linear-depth", {**SMALL, "steps": 5})
    fitted = run(tmp_path, "linear-depth", {**SMALL, "steps": 5, "align": "scale-and-shift"})
    assert fitted.metrics["rmse"].value < plain.metrics["rmse"].value


def test_the_class_token_is_put_behind_every_patch(tiny_models: Path, tmp_path: Path) -> None:
    settings = {**STREAMED, "steps": 1, "max_patches": 100}
    record = run(
        tmp_path, "dinov2-linear-depth-4", settings, model="tiny-reg4", model_files=[tiny_models]
    )
    assert record.protocol.resolved["layers"] == [0, 1, 2, 3]
    kept = {**SMALL, "steps": 1, "class_token": True, "size": 56}
    stored = run(
        tmp_path, "linear-depth", kept, model="tiny-reg4", model_files=[tiny_models],
        out=tmp_path / "stored",
    )  # fmt: skip
    assert np.isfinite(stored.metrics["rmse"].value)


def test_a_model_without_a_class_token_is_not_applicable_and_told_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--task", "depth", "--model", "pixels", "--dataset", "far"]
    command += ["--datasets", str(blocks(tmp_path)), "--out", str(tmp_path / "out")]
    main([*command, "--protocol", "dinov2-linear-depth", "--set", "evaluated=none"])
    assert "class_token=false" in "".join(capsys.readouterr())
    main([*command, "--protocol", "linear-depth"])
    assert "evaluated=none" in "".join(capsys.readouterr())


def test_what_is_judged_is_within_range_and_crop() -> None:
    judge = DepthJudge(StoredDepthProtocol(farthest=5.0), 8)
    truth = torch.full((480, 640), 2.0)
    truth[100, 100] = 9.0  # beyond the range
    truth[0, :] = 1.0  # beyond the crop
    said = torch.full((480, 640), 3.0)
    row = judge.row(said, truth)
    valid = torch.ones(1, 1, dtype=torch.bool)
    expected = depth_errors(torch.full((1, 1), 3.0), torch.full((1, 1), 2.0), valid)
    assert row.tolist() == pytest.approx(list(expected or ()))
    # The prediction is brought into the range, and a view's labels are judged everywhere.
    assert judge.row(said * 100, truth)[0] == pytest.approx(3.0)
    assert judge.row(said, truth, everywhere=True)[0] > row[0]


def test_of_several_heads_the_first_may_diverge(tmp_path: Path) -> None:
    settings = {**STREAMED, "class_token": False, "steps": 4, "learning_rates": [1e30, 1e-3]}
    record = run(tmp_path, "dinov2-linear-depth", settings)
    assert record.protocol.resolved["learning_rate"] == 1e-3
    assert [each["diverged"] for each in record.details["grid"]] == [True, False]


def test_where_no_pixel_counts_the_range_is_told(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"between 0\.001 and 0\.01 m"):
        run(tmp_path, "linear-depth", {**SMALL, "steps": 1, "farthest": 0.01})


def test_a_picture_with_a_few_pixels_has_no_value_once_it_is_aligned() -> None:
    judge = DepthJudge(StoredDepthProtocol(evaluated="none", align="median"), 8)
    truth = torch.zeros(20, 20)
    truth[0, :50] = 2.0
    assert np.isnan(judge.row(torch.full((20, 20), 1.0), truth)).all()
    truth[:] = 2.0
    assert judge.row(torch.full((20, 20), 1.0), truth)[0] == 0


def test_crops_of_a_single_column_can_be_mirrored(tmp_path: Path) -> None:
    settings = {**STREAMED, "class_token": False, "crop": 1, "steps": 3, "flip": 1.0}
    assert run(tmp_path, "dinov2-linear-depth", settings).metrics["rmse"].value > 0


def test_what_is_not_seen_in_test_is_not_judged() -> None:
    judge = DepthJudge(StoredDepthProtocol(evaluated="none"), 8)
    said, truth = torch.full((8, 8), float("nan")), torch.full((8, 8), 2.0)
    said[4:] = 2.0
    assert judge.row(said, truth)[0] == 0
    assert np.isnan(judge.row(said * float("nan"), truth)).all()


def test_frames_of_a_scene_stand_together() -> None:
    judge = DepthJudge(StoredDepthProtocol(evaluated="none"), 8)
    rows = np.stack(
        [judge.row(torch.full((4, 4), 1.0 + n), torch.full((4, 4), 2.0)) for n in range(3)]
    )
    samples = [Sample(f"{n}", (4, 4), scene="room" if n else None) for n in range(3)]
    outcome = judge.of_pictures(samples, rows)
    assert outcome.columns["scene"] == ["0", "room", "room"]
    assert outcome.columns["rmse"].tolist() == [1, 0, 1]
    assert judge.score(rows) == pytest.approx(-2 / 3)


def test_labels_are_taken_without_padding_where_maps_are_laid_over_crops_without_it() -> None:
    labels = torch.rand(1, 28, 42)
    padded = DepthJudge(StreamedDepthProtocol(crop=(20, 30)), 14)
    assert torch.equal(padded.targets(DenseCrops(depth=labels)), labels[:, 4:24, 6:36])
    geometry = Geometry((30, 20), (30, 20), (0, 0, 30, 20), (6, 4, 6, 4))
    mirrored = Geometry((30, 20), (30, 20), (0, 0, 30, 20), (6, 4, 6, 4), True)
    rising = torch.tensor([[[1.0, 2, 3], [1, 2, 3]]])
    found = padded.prediction([rising, rising], [geometry, mirrored])
    assert found.shape == (20, 30)
    torch.testing.assert_close(found, torch.full((20, 30), 2.0))
    assert padded.truth(Dense(depth=np.ones((2, 2), np.float32))).dtype == torch.float32


BAD = {
    "zeros": np.zeros((SIDE, SIDE), np.uint16),
    "8-bit": np.full((SIDE, SIDE), 200, np.uint8),
    "of another size": np.full((SIDE, SIDE - 1), 2000, np.uint16),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_depth_map_is_one_clear_line_and_can_be_skipped(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = blocks(tmp_path)
    Image.fromarray(BAD[kind]).save(tmp_path / "blocks/depth/test/01.png")
    command = [
        "run", "--task", "depth", "--model", "pixels", "--dataset", "far", "--datasets", str(file),
        "--out", str(tmp_path / "out"), "--workers", "0", "--set", f"size={SIDE}",
        "--set", "steps=2", "--set", "evaluated=none",
    ]  # fmt: skip
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "01.png" in told and "Traceback" not in told
    assert main([*command, "--on-bad-image", "skip"]) == 0
    ((_, record),) = find(tmp_path / "out")
    assert len(record.bad_pictures) == 1


def test_a_missing_depth_map_is_told_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = blocks(tmp_path)
    (tmp_path / "blocks/depth/train/03.png").unlink()
    command = ["run", "--task", "depth", "--model", "pixels", "--dataset", "far"]
    assert main([*command, "--datasets", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nearest": 20}, "not below farthest"),
        ({"farthest": 1e39}, "farthest"),
        ({"batch_norm": True}, "enlarge"),
        ({"crop": [0, 5]}, "crop"),
        ({"evaluated": "all"}, "evaluated"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        find_task("depth").protocols["dinov2-linear-depth"].changed(settings)


def test_a_data_set_without_depth_is_not_applicable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--task", "depth", "--model", "pixels", "--dataset", "blocks"]
    main([*command, "--datasets", str(blocks(tmp_path)), "--out", str(tmp_path / "out")])
    assert "no depth" in "".join(capsys.readouterr())
