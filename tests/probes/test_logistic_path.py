from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.linear_model import LogisticRegression

from harness.probes import logistic
from harness.probes.logistic import LogisticHead, LogisticPath, logistic_path

EVERY = [float(c) for c in 10.0 ** np.linspace(-6, 5, 45)]
TWO_PICTURES = 2


def clusters(
    count: int, width: int, classes: int, seed: int = 0, apart: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes in features of very different spread, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** -torch.linspace(0, 3, width)
    labels = torch.arange(count) % classes
    centres = apart * torch.randn(classes, width, generator=generator)
    values = centres[labels] + torch.randn(count, width, generator=generator)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return (values * spread) @ mixing + 5, labels


def objective(head: LogisticHead, features: torch.Tensor, labels: torch.Tensor) -> float:
    """scikit-learn's, written out: of two classes the one vector is the difference of ours."""
    logits = features.double().numpy() @ head.weights.numpy() + head.bias.numpy()
    own = np.searchsorted(head.classes.numpy(), labels.numpy())
    losses = special.logsumexp(logits, axis=1) - logits[np.arange(len(own)), own]
    weights = head.weights.numpy()
    if weights.shape[1] == 2:
        weights = weights[:, 1:] - weights[:, :1]
    return float(head.c * losses.sum() + 0.5 * (weights**2).sum())


def scikit(features: torch.Tensor, labels: torch.Tensor, c: float, **how: object) -> LogisticHead:
    """What scikit-learn finds in float64, as one of our heads."""
    model = LogisticRegression(C=c, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge is what some tests want to see
        model.fit(features.double().numpy(), labels.numpy())
    weights, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    if weights.shape[1] == 1:
        weights = torch.cat([-weights / 2, weights / 2], dim=1)
        bias = torch.cat([-bias / 2, bias / 2])
    head = LogisticHead(c, weights, bias, torch.from_numpy(model.classes_), 0.0, 0, True)
    return head._replace(objective=objective(head, features, labels))


@pytest.mark.parametrize(
    ("count", "width", "classes"),
    [
        pytest.param(300, 12, 4, id="more pictures than numbers"),
        pytest.param(40, 60, 3, id="more numbers than pictures"),
        pytest.param(200, 10, 2, id="two classes"),
        pytest.param(6, 3, 6, id="one picture a class"),
        pytest.param(50, 1, 3, id="one number"),
    ],
)
def test_heads_are_those_of_scikit_learn_fitted_to_the_end(
    count: int, width: int, classes: int
) -> None:
    features, labels = clusters(count, width, classes)
    strengths = [1e-6, 1e-3, 0.1, 10.0, 1e4]
    for head in logistic_path(features, labels, strengths, tolerance=1e-13):
        exact = scikit(features, labels, head.c, solver="newton-cholesky", tol=1e-12)
        assert head.converged
        assert head.objective == pytest.approx(exact.objective, rel=1e-9)
        own, theirs = (
            torch.log_softmax(features.double() @ each.weights + each.bias, 1)
            for each in (head, exact)
        )
        assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-3), head.c


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(1, 12),
    st.integers(2, 5),
    st.floats(-6, 5),
    st.integers(0, 1000),
    st.floats(0.1, 5),
)
def test_at_any_strength_nothing_that_scikit_learn_finds_is_lower(
    count: int, width: int, classes: int, log_c: float, seed: int, apart: float
) -> None:
    features, labels = clusters(max(count, classes), width, classes, seed, apart)
    (head,) = logistic_path(features, labels, [10**log_c])
    theirs = scikit(features, labels, 10**log_c, solver="newton-cholesky", tol=1e-10)
    assert head.converged
    assert head.objective == pytest.approx(objective(head, features, labels), rel=1e-9)
    assert head.objective <= theirs.objective * (1 + 1e-5)


def test_a_head_is_the_same_from_the_last_optimum_and_from_the_start() -> None:
    features, labels = clusters(200, 20, 5)
    for warm in logistic_path(features, labels, EVERY[::6], tolerance=1e-12):
        (cold,) = logistic_path(features, labels, [warm.c], tolerance=1e-12)
        assert warm.objective == pytest.approx(cold.objective, rel=1e-8)
        assert torch.allclose(warm.weights, cold.weights, rtol=1e-2, atol=1e-4)


def test_starting_from_the_last_optimum_saves_steps() -> None:
    features, labels = clusters(400, 30, 6)
    warm = sum(head.steps for head in logistic_path(features, labels, EVERY))
    cold = sum(next(logistic_path(features, labels, [c])).steps for c in EVERY)
    assert warm < cold


def test_looking_ahead_from_the_last_optima_saves_half_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = clusters(400, 30, 6)
    ahead = list(logistic_path(features, labels, EVERY))
    monkeypatch.setattr(logistic, "_LOOKED_BACK", 1)
    behind = list(logistic_path(features, labels, EVERY))
    assert 2 * sum(head.steps for head in ahead) < sum(head.steps for head in behind)
    for one, other in zip(ahead, behind, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-5)


def test_a_c_that_comes_twice_is_fitted_twice_alike() -> None:
    features, labels = clusters(60, 5, 3)
    first, second, third = logistic_path(features, labels, [0.1, 1.0, 1.0])
    assert third.steps == 0 < second.steps
    assert third.objective == pytest.approx(second.objective) and second.objective > first.objective


def test_the_optimum_is_that_of_the_features_shifted_and_rotated() -> None:
    features, labels = clusters(150, 8, 3)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())
    moved = features.double() @ turn[0] + 1e4
    for one, other in zip(
        logistic_path(features, labels, [0.01, 1.0, 100.0], tolerance=1e-12),
        logistic_path(moved, labels, [0.01, 1.0, 100.0], tolerance=1e-12),
        strict=True,
    ):
        assert torch.allclose(turn[0].T @ one.weights, other.weights, rtol=1e-3, atol=1e-4)
        assert other.objective == pytest.approx(one.objective, rel=1e-8)


def test_constant_features_give_each_class_its_share() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    (head,) = logistic_path(torch.full((5, 4), 3.0), labels, [1e5])
    shares = torch.softmax(torch.full((1, 4), 3.0).double() @ head.weights + head.bias, 1)
    assert torch.allclose(shares, torch.tensor([[0.6, 0.2, 0.2]]).double())
    assert torch.count_nonzero(head.weights.abs() > 1e-9) == 0


def test_a_class_without_pictures_is_never_said_and_moves_no_other() -> None:
    features, labels = clusters(90, 6, 3)
    (plain,) = logistic_path(features, labels, [1.0])
    (gaps,) = logistic_path(features, labels * 4 + 1, [1.0])
    assert gaps.classes.tolist() == [1, 5, 9]
    assert torch.equal(gaps.weights, plain.weights)
    assert torch.equal(gaps.predict(features), plain.predict(features) * 4 + 1)


def test_of_equal_logits_the_lowest_class_is_said() -> None:
    head = LogisticHead(1, torch.zeros(2, 3), torch.zeros(3), torch.tensor([4, 7, 9]), 0, 0, True)
    assert head.predict(torch.ones(2, 2)).tolist() == [4, 4]


def test_a_fit_that_runs_out_of_steps_says_so_and_the_next_goes_on_from_there() -> None:
    features, labels = clusters(200, 20, 5)
    path = LogisticPath(features, labels)
    tired = path.fit(1e4, max_steps=3)
    assert not tired.converged
    assert tired.steps == 3
    assert tired.objective == pytest.approx(objective(tired, features, labels), rel=1e-9)
    rested = path.fit(1e4)
    assert rested.converged
    assert rested.objective < tired.objective


def test_a_smaller_tolerance_ends_lower() -> None:
    features, labels = clusters(200, 20, 5)
    ends = [
        next(logistic_path(features, labels, [100.0], tolerance=tolerance)).objective
        for tolerance in (1e-2, 1e-5, 1e-12)
    ]
    assert all(rough > fine for rough, fine in pairwise(ends))


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        pytest.param(torch.zeros(3, 2), torch.zeros(3).long(), "two classes", id="one class"),
        pytest.param(torch.tensor([[0.0], [np.nan]]), torch.tensor([0, 1]), "finite", id="NaN"),
        pytest.param(torch.zeros(3, 2), torch.tensor([0, 1]), r"\[n\]", id="lengths"),
        pytest.param(torch.zeros(0, 2), torch.zeros(0).long(), "two classes", id="nothing"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    features: torch.Tensor, labels: torch.Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        LogisticPath(features, labels)


def test_a_path_that_falls_is_refused() -> None:
    features, labels = clusters(20, 3, 2)
    with pytest.raises(ValueError, match="rise"):
        list(logistic_path(features, labels, [1.0, 0.1]))


def recorded(reference: Path, registers: int) -> list[torch.Tensor]:
    with np.load(reference / f"imagenette_features_reg{registers}.npz") as stored:
        names = ("train", "train_labels", "val", "val_labels")
        return [torch.from_numpy(stored[name]) for name in names]


def right(head: LogisticHead, features: torch.Tensor, labels: torch.Tensor) -> int:
    return int((head.predict(features) == labels).sum())


@pytest.mark.parametrize("registers", [0, 4])
def test_recorded_top1_is_scikit_learns_where_it_had_converged(
    shared_reference: Path, registers: int
) -> None:
    """From C = 100 the record is of where L-BFGS stopped at its limit: its own top-1 still moves
    by several pictures with more steps. ``test_at_every_strength…`` judges those."""
    train, train_labels, test, test_labels = recorded(shared_reference, registers)
    record = shared_reference / f"classification_e2e_reg{registers}_imagenette.json"
    published = json.loads(record.read_text())["logistic_top1_by_C"]
    strengths = [float(c) for c in published]
    assert len(strengths) == 12
    for head in logistic_path(train, train_labels, strengths):
        theirs = published[str(head.c)] / 100 * len(test)
        if head.c < 99:
            assert abs(right(head, test, test_labels) - theirs) <= TWO_PICTURES, head.c


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_at_every_strength_the_optimum_is_scikit_learns(
    shared_reference: Path, registers: int
) -> None:
    train, train_labels, test, test_labels = recorded(shared_reference, registers)
    for place, head in enumerate(logistic_path(train, train_labels, EVERY)):
        if place % 4:
            continue
        exact = scikit(train, train_labels, head.c, solver="newton-cholesky", tol=1e-9)
        default = scikit(train, train_labels, head.c)
        assert head.objective <= exact.objective * (1 + 1e-5), head.c
        assert head.objective <= default.objective * (1 + 1e-5), head.c
        difference = right(head, test, test_labels) - right(exact, test, test_labels)
        assert abs(difference) <= TWO_PICTURES, head.c
