from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from harness.probes import dense_losses
from harness.probes.dense_losses import (
    ClassMap,
    DepthBins,
    Objective,
    depth_of_bins,
    scale_invariant,
)

LABELS = torch.tensor([[[0, 1, 2], [255, 1, 255]], [[2, 2, 255], [0, 0, 0]]])


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_is_averaged_over_labelled_pixels_or_over_all() -> None:
    logits = drawn(2, 3, 2, 3)
    expected = functional.cross_entropy(logits, LABELS, ignore_index=255)
    labelled, _ = ClassMap(3).slope(logits, LABELS, 0)
    everywhere, _ = ClassMap(3, average="all").slope(logits, LABELS, 0)
    assert float(labelled) == pytest.approx(float(expected), rel=1e-6)
    assert float(everywhere) == pytest.approx(float(expected) * 9 / 12, rel=1e-6)


def test_labels_keep_their_size_and_logits_are_made_as_large() -> None:
    logits, labels = drawn(2, 3, 2, 2), LABELS.repeat_interleave(3, 1)
    larger = functional.interpolate(logits, (6, 3), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(larger, labels, ignore_index=255)
    assert float(ClassMap(3).slope(logits, labels, 0)[0]) == pytest.approx(float(expected))


def test_pictures_resized_at_a_time_move_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn(2, 3, 2, 3)
    together = ClassMap(3).slope(logits, LABELS, 0)
    monkeypatch.setattr(dense_losses, "_LOGITS", 1)
    apart = ClassMap(3).slope(logits, LABELS, 0)
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize("objective", [ClassMap(3), DepthBins(3, warm_up=0), DepthBins(3)])
def test_where_nothing_is_labelled_there_is_no_loss_and_no_slope(objective: Objective) -> None:
    nothing = 255 if isinstance(objective, ClassMap) else 0
    loss, slope = objective.slope(drawn(2, 3, 2, 2), torch.full((2, 4, 4), nothing), 0)
    assert float(loss) == 0 and slope.shape == (2, 3, 2, 2) and not slope.any()


def test_depth_is_the_mean_of_bins_whose_weights_are_at_least_a_tenth() -> None:
    # Weights 0.1, 1.1 and 0.1 + 2 of bins at 1, 2 and 3 metres.
    logits = torch.tensor([-5.0, 1.0, 2.0])[None, :, None, None]
    expected = (0.1 * 1 + 1.1 * 2 + 2.1 * 3) / 3.3
    assert float(depth_of_bins(logits, 1, 3)) == pytest.approx(expected)


def test_tokens_made_larger_before_a_head_are_its_logits_made_larger() -> None:
    tokens, head = drawn(2, 8, 3, 4), torch.nn.Conv2d(8, 5, 1).requires_grad_(False)
    enlarged = functional.interpolate(tokens, (12, 16), mode="bilinear", align_corners=False)
    published = depth_of_bins(head(enlarged), 1e-3, 10)
    ours = DepthBins(5, enlarge=4).maps(head(tokens))
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-5)


def test_the_scale_invariant_loss_by_hand() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0])
    ratio = [math.log(p + 1e-3) - math.log(t + 1e-3) for p, t in ((2, 1), (2, 2), (2, 4))]
    mean = sum(ratio) / 3
    variance = sum((one - mean) ** 2 for one in ratio) / 2
    said = torch.full((3,), 2.0)
    assert float(scale_invariant(said, truth)) == pytest.approx(
        math.sqrt(variance + 0.15 * mean**2), rel=1e-5
    )
    assert float(scale_invariant(said, 4 * truth, True)) == pytest.approx(
        math.sqrt(0.15) * abs(sum(ratio) / 3 - math.log(4)), rel=1e-3
    )


def test_a_factor_costs_only_by_the_mean_and_a_perfect_prediction_has_no_slope() -> None:
    truth = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 1
    factor = float(scale_invariant(3 * truth, truth))
    assert factor == pytest.approx(math.sqrt(0.15) * math.log(3), rel=1e-3)
    said = truth.clone().requires_grad_()
    scale_invariant(said, truth).backward()
    assert said.grad is not None and not said.grad.any()


def test_depth_warms_up_on_the_mean_and_takes_only_what_is_measured() -> None:
    objective = DepthBins(4, 1.0, 5.0, warm_up=2, highest=4.5)
    logits = drawn(1, 4, 2, 3)
    truth = torch.tensor([[[1.0, 0, 2], [torch.nan, 5, 3]]])
    said = objective.prediction(objective.maps(logits), (2, 3))
    counted = torch.tensor([[[True, False, True], [False, False, True]]])
    for step in (0, 1, 2):
        expected = scale_invariant(said[counted], truth[counted], step < 2)
        loss, slope = objective.slope(logits, truth, step)
        assert float(loss) == pytest.approx(float(expected))
        assert torch.equal((slope.abs().sum(1) > 0), counted)
    unbounded = replace(objective, highest=None)
    infinite = torch.where(counted, truth, torch.inf)
    for loss, slope in (unbounded.slope(logits, infinite, 2), objective.slope(logits, truth, 2)):
        assert float(loss) == pytest.approx(float(scale_invariant(said[counted], truth[counted])))
        assert torch.equal((slope.abs().sum(1) > 0), counted)
    assert not torch.equal(
        objective.slope(logits, truth, 1)[0], objective.slope(logits, truth, 2)[0]
    )
