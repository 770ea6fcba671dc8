from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.probes.schedules import Schedule

DEPTH = Schedule(38_400, "cosine", floor=1e-8, warm_up=12_800, warm_up_ratio=1e-3)
SEGMENTATION = Schedule(40_000, "poly", warm_up=1500, warm_up_ratio=1e-6)
DINOV3 = Schedule(
    40_000, "one cycle", floor=4e-5, warm_up=1500, warm_up_ratio=1e-6, momentum="after warm-up"
)


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_poly_and_cosine_are_torchs(power: float) -> None:
    steps, floor = 30, 0.01
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    polynomial = torch.optim.lr_scheduler.PolynomialLR(optimiser, steps, power)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(other, steps, eta_min=floor)
    for step in range(steps):
        assert Schedule(steps, power=power).share(step) == pytest.approx(
            polynomial.get_last_lr()[0]
        )
        assert Schedule(steps, "cosine", floor=floor).share(step) == pytest.approx(
            cosine.get_last_lr()[0]
        )
        for each in (optimiser, other, polynomial, cosine):
            each.step()


def test_the_warm_up_multiplies_what_the_rate_would_be() -> None:
    assert SEGMENTATION.share(0) == pytest.approx(1e-6)
    assert SEGMENTATION.share(750) == pytest.approx((1 - 750 / 40_000) * 0.5, rel=1e-5)
    assert SEGMENTATION.share(1500) == pytest.approx(1 - 1500 / 40_000)
    assert SEGMENTATION.share(39_999) == pytest.approx(1 / 40_000)
    assert DEPTH.share(0) == pytest.approx(1e-3)
    half = (1 + math.cos(math.pi / 6)) / 2
    assert DEPTH.share(6400) == pytest.approx(half * (1 - 0.5 * 0.999), rel=1e-5)
    assert DEPTH.share(12_800) == pytest.approx(0.75)
    assert DEPTH.share(38_399) == pytest.approx(1e-8 + (math.pi / 76_800) ** 2, rel=1e-2)


def test_dinov3_takes_its_first_step_twice_and_is_one_ahead_after_the_warm_up() -> None:
    assert DINOV3.share(0) == DINOV3.share(1) == pytest.approx(1e-6)
    assert DINOV3.share(2) == pytest.approx((1 / 1500) * (1 - 1 / 40_000), rel=2e-3)
    assert DINOV3.share(1500) == pytest.approx(1499 / 1500 * (1 - 1499 / 40_000), rel=1e-6)
    after = 4e-5 + (1 - 4e-5) * (1 + math.cos(math.pi * 1501 / 40_000)) / 2
    assert DINOV3.share(1501) == pytest.approx(after)
    assert DINOV3.share(40_000) == pytest.approx(4e-5)


def test_the_first_beta_of_the_three_programs() -> None:
    assert SEGMENTATION.first_beta(0) == SEGMENTATION.first_beta(39_999) == 0.9
    cycle = Schedule(1000, momentum="one cycle")
    assert cycle.first_beta(0) == pytest.approx(0.95)
    assert cycle.first_beta(299) == pytest.approx(0.85)
    assert cycle.first_beta(999) == pytest.approx(0.95)
    assert cycle.first_beta(649) == pytest.approx(0.90)
    assert DINOV3.first_beta(0) == DINOV3.first_beta(1500) == 0
    assert DINOV3.first_beta(1501) == pytest.approx(0.85)
    assert DINOV3.first_beta(39_999) == pytest.approx(0.95, abs=1e-6)


@given(
    st.integers(1, 50),
    st.floats(0, 0.99),
    st.sampled_from(["poly", "cosine", "one cycle"]),
    st.sampled_from(["constant", "one cycle", "after warm-up"]),
)
def test_every_step_has_a_share_of_the_rate_and_a_beta_below_1(
    steps: int, warm: float, kind: str, momentum: str
) -> None:
    schedule = Schedule(
        steps,
        kind,  # type: ignore[arg-type]
        warm_up=int(warm * steps),
        momentum=momentum,  # type: ignore[arg-type]
    )
    for step in range(steps):
        assert 0 <= schedule.share(step) <= 1
        assert 0 <= schedule.first_beta(step) <= 0.95 + 1e-12


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 5, "warm_up": 5}])
def test_a_warm_up_that_never_ends_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="warm-up"):
        Schedule(**wrong)  # type: ignore[arg-type]
