from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import REFERENCE

from harness.probes.depth_metrics import (
    Alignment,
    Crop,
    DepthErrors,
    aligned,
    crop_mask,
    depth_errors,
    valid_depth,
)

OURS = {"a1": "delta1", "a2": "delta2", "a3": "delta3", "log_10": "log10"}
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def reference() -> dict[str, NDArray[np.generic]]:
    with np.load(REFERENCE / "depth_reference.npz") as stored:
        return {name: stored[name] for name in stored.files}


def pictures(reference: dict[str, NDArray[np.generic]]) -> list[Case]:
    low, high = float(reference["min_depth"]), float(reference["max_depth"])
    cases = []
    for said, true in zip(reference["prediction"], reference["ground_truth"], strict=True):
        truth = torch.from_numpy(true)
        cases.append((torch.from_numpy(said), truth, valid_depth(truth, low, high)))
    return cases


def errors(case: Case) -> DepthErrors:
    found = depth_errors(*case)
    assert found is not None
    return found


def test_every_picture_has_the_official_values(
    reference: dict[str, NDArray[np.generic]],
) -> None:
    found = [errors(case)._asdict() for case in pictures(reference)]
    for place, name in enumerate(reference["metric_names"].tolist()):
        ours = [each[OURS.get(name, name)] for each in found]
        np.testing.assert_allclose(ours, reference["per_image"][:, place], rtol=0, atol=1e-5)
        assert np.mean(ours) == pytest.approx(float(reference["mean"][place]), abs=1e-5)
    assert len(reference["metric_names"]) == len(DepthErrors._fields)


def test_an_rmse_pooled_over_pixels_is_another_number(
    reference: dict[str, NDArray[np.generic]],
) -> None:
    cases = pictures(reference)
    mean = np.mean([errors(case).rmse for case in cases])
    off = torch.cat([(said - true)[valid] for said, true, valid in cases]).double()
    pooled = off.square().mean().sqrt().item()
    assert mean == pytest.approx(0.977473, abs=1e-6)
    assert pooled - mean > 1e-3, "a hundred times what the values above may be off by"


def test_by_hand() -> None:
    found = errors((torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 3.0]]), torch.ones(1, 2) > 0))
    assert found.rmse == pytest.approx(0.5**0.5) and found.mae == 0.5 and found.abs_rel == 0.5
    assert found.sq_rel == 0.5 and found.log10 == pytest.approx(np.log10(2) / 2)
    assert found.rmse_log == pytest.approx(np.log(2) / 2**0.5)
    assert found.silog == pytest.approx(100 * np.log(2) / 2)
    assert (found.delta1, found.delta2, found.delta3) == (0.5, 0.5, 0.5)


def test_what_is_not_valid_does_not_count_and_nothing_valid_is_no_value() -> None:
    truth = torch.tensor([[2.0, 0.0, torch.nan, 12.0, 10.0, 1e-3]])
    valid = valid_depth(truth, 1e-3, 10)
    assert valid.tolist() == [[True, False, False, False, False, False]]
    said = torch.tensor([[2.0, -1.0, torch.nan, 3.0, 3.0, 3.0]])
    assert errors((said, truth, valid)).rmse == 0
    assert depth_errors(said, truth, torch.zeros_like(valid)) is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, torch.nan, torch.inf])
def test_a_depth_without_a_logarithm_is_refused(wrong: float) -> None:
    fine, other = torch.full((2, 2), 2.0), torch.tensor([[2.0, 2.0], [2.0, wrong]])
    with pytest.raises(ValueError, match="a prediction that counts"):
        depth_errors(other, fine, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a true depth that counts"):
        depth_errors(fine, other, torch.ones(2, 2, dtype=torch.bool))


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\], \[3, 2\]"):
        depth_errors(torch.ones(2, 2), torch.ones(3, 2), torch.ones(3, 2) > 0)


def test_crops_are_those_of_the_published_code() -> None:
    eigen = crop_mask("nyu-eigen", 480, 640)
    rows, columns = eigen.any(1).nonzero()[:, 0], eigen.any(0).nonzero()[:, 0]
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (45, 470, 41, 600)
    assert int(eigen.sum()) == 426 * 560
    for crop, expected in (
        ("kitti-garg", (153, 371, 44, 1197)),
        ("kitti-eigen", (124, 342, 44, 1197)),
    ):
        mask = crop_mask(crop, 375, 1242)  # type: ignore[arg-type]
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert (*rows[[0, -1]].tolist(), *columns[[0, -1]].tolist()) == (
            expected[0],
            expected[1] - 1,
            expected[2],
            expected[3] - 1,
        )
    assert crop_mask("none", 3, 4).all()
    with pytest.raises(ValueError, match="480 x 640, not 240 x 320"):
        crop_mask("nyu-eigen", 240, 320)


@pytest.mark.parametrize("crop", ["nyu-eigen"])
def test_a_crop_and_a_range_hold_together(crop: Crop) -> None:
    truth = torch.full((480, 640), 2.0)
    truth[100, 100] = 0
    valid = valid_depth(truth, 1e-3, 10, crop)
    assert int(valid.sum()) == 426 * 560 - 1 and not valid[100, 100] and not valid[0, 0]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-0.2, 5))
def test_alignment_undoes_a_scale_and_a_shift(seed: int, scale: float, shift: float) -> None:
    truth = torch.rand(6, 7, generator=torch.Generator().manual_seed(seed)) * 4 + 3
    valid = truth > 3.5
    said = truth * scale + shift
    found = aligned(said, truth, valid, "scale-and-shift", 1e-3, 100)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    found = aligned(truth * scale, truth, valid, "median", 1e-3, 100)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_the_fit_is_least_squares_and_the_median_numpys() -> None:
    generator = np.random.default_rng(0)
    said, true = generator.uniform(1, 9, (2, 4, 5))
    valid = generator.permutation(20).reshape(4, 5) < 14  # even: two are in the middle
    columns = np.stack([said[valid], np.ones(valid.sum())], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(columns, true[valid], rcond=None)
    three = [torch.from_numpy(each) for each in (said, true, valid)]
    found = aligned(*three, "scale-and-shift", 1e-3, 100)
    np.testing.assert_allclose(found, np.clip(scale * said + shift, 1e-3, 100))
    found = aligned(*three, "median", 1e-3, 100)
    np.testing.assert_allclose(found, said * np.median(true[valid]) / np.median(said[valid]))


def test_a_flat_prediction_is_fitted_with_the_mean_and_all_is_clamped() -> None:
    truth = torch.tensor([[1.0, 2.0, 6.0]])
    valid = truth > 0
    flat = aligned(torch.full((1, 3), 0.1), truth, valid, "scale-and-shift", 1e-3, 10)
    assert flat[0].tolist() == pytest.approx([3.0] * 3)
    steep = torch.tensor([[-5.0, 2.0, 60.0]])
    for how in ("none", "scale-and-shift"):
        found = aligned(steep, truth, torch.zeros_like(valid), how, 0.5, 10)  # type: ignore[arg-type]
        assert found.tolist() == [[0.5, 2.0, 10.0]]


@pytest.mark.parametrize("how", ["none", "scale-and-shift", "median"])
def test_no_alignment_leaves_what_does_not_count_to_move_the_fit(how: Alignment) -> None:
    said, truth = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[2.0, 4.0, 8.0, 0.0]])
    other = torch.tensor([[1.0, 2.0, 4.0, 1.5]])
    first, second = (aligned(each, truth, truth > 0, how, 0.1, 50) for each in (said, other))
    assert torch.equal(first[:, :3], second[:, :3])
