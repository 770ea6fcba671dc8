"""Fits that read their pictures in blocks end where fits in memory end."""

from __future__ import annotations

import pytest
import torch
from blocked import InMemory
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.probes import log_losses
from harness.probes.log_losses import BlockedSums, Loss, sums_of
from harness.probes.logistic import Softmax, logistic_path
from harness.probes.one_vs_rest import OneVsRest, one_vs_rest_path

PATH = [1e-4, 1e-2, 1.0, 100.0]


def clusters(count: int, classes: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Sorted by class: most blocks have pictures of one or two classes only."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) * classes) // count
    centres = torch.randn(classes, width, generator=generator)
    spread = torch.arange(1, width + 1) ** -0.5
    return spread * torch.randn(count, width, generator=generator) + 0.5 * centres[labels], labels


@pytest.fixture
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many pictures a block has."""
    monkeypatch.setattr(log_losses, "_LEAST_ROWS", request.param)
    monkeypatch.setattr(log_losses, "_NUMBERS", 0)
    return int(request.param)


@pytest.mark.parametrize("rows", [7, 64, 1000], indirect=True)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_path_has_the_coefficients_and_predictions_of_one_in_memory(
    rows: int, classes: int
) -> None:
    features, labels = clusters(300, classes, 12)
    test, _ = clusters(90, classes, 12, seed=1)
    kept = list(logistic_path(features, labels, PATH))
    blocked = list(logistic_path(InMemory(features), labels, PATH))
    for ours, theirs in zip(blocked, kept, strict=True):
        assert ours.converged and ours.steps == theirs.steps
        scale = theirs.weights.abs().max()
        assert float((ours.weights - theirs.weights).abs().max()) < 1e-6 * max(1.0, float(scale))
        assert torch.allclose(ours.bias, theirs.bias, rtol=1e-6, atol=1e-6)
        assert ours.objective == pytest.approx(theirs.objective, rel=1e-10)
        assert torch.equal(ours.predict(InMemory(test)), theirs.predict(test))


@pytest.mark.parametrize("rows", [11], indirect=True)
def test_classes_one_by_one_are_fitted_alike(rows: int) -> None:
    features, labels = clusters(200, 4, 9)
    present = torch.nn.functional.one_hot(labels, 4)
    present[::7, 1] = -1  # unclear
    kept = list(one_vs_rest_path(features, present, PATH))
    blocked = list(one_vs_rest_path(InMemory(features), present, PATH))
    for ours, theirs in zip(blocked, kept, strict=True):
        assert torch.allclose(ours.weights, theirs.weights, rtol=1e-6, atol=1e-6)
        assert torch.allclose(ours.scores(InMemory(features)), theirs.scores(features), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    block=st.integers(1, 80),
    count=st.integers(6, 70),
    several=st.booleans(),
    seed=st.integers(0, 20),
)
def test_loss_gradient_and_diagonal_are_sums_over_any_blocks(
    block: int, count: int, several: bool, seed: int
) -> None:
    features, labels = clusters(count, 3, 5, seed)
    loss: Loss = Softmax(labels, "cpu")
    if several:
        loss = OneVsRest(torch.nn.functional.one_hot(labels, 3), "cpu")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_losses, "_LEAST_ROWS", block)
        patch.setattr(log_losses, "_NUMBERS", 0)
        for given_ in (features, InMemory(features)):
            sums = sums_of(given_, loss, torch.tensor([0.1, -0.2, 0.3]).double(), "cpu")
            assert isinstance(sums, BlockedSums) == (given_ is not features)
            weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)).double()
            # In the features' own coordinates: components may differ in sign.
            weights[:, :-1] = weights[:, :-1] @ sums.components
            told = [sums.here(), sums.there(weights)]
            sums.go()
            assert sums.here() == told[1]
            slopes, bends = sums.gradient(), sums.diagonal()
            slopes[:, :-1] = slopes[:, :-1] @ sums.components.T
            sums.aim(weights)
            told += sums.along(0.5)
            found.append((torch.tensor(told).double(), slopes, bends))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_path_in_blocks_on_a_gpu_is_that_in_memory() -> None:
    features, labels = clusters(300, 5, 12)
    kept = logistic_path(features, labels, PATH)
    for ours, theirs in zip(
        logistic_path(InMemory(features), labels, PATH, "cuda"), kept, strict=True
    ):
        assert torch.allclose(ours.weights.cpu(), theirs.weights, rtol=1e-6, atol=1e-6)


def test_fewer_pictures_than_numbers_are_fitted_in_memory() -> None:
    features, labels = clusters(12, 3, 20)
    (kept,) = logistic_path(features, labels, [1.0])
    (blocked,) = logistic_path(InMemory(features), labels, [1.0])
    assert torch.equal(kept.weights, blocked.weights)


def test_features_that_are_not_finite_are_refused_in_blocks_too() -> None:
    features, labels = clusters(30, 3, 4)
    features[17, 2] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        list(logistic_path(InMemory(features), labels, [1.0]))
