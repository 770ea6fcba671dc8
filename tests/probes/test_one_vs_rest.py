from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from harness.probes.logistic import logistic_path
from harness.probes.one_vs_rest import OneVsRestHead, OneVsRestPath, one_vs_rest_path

EVERY = [float(c) for c in 10.0 ** np.linspace(-6, 5, 45)]


def pictures(
    count: int, width: int, classes: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features far from the origin and of very different spread; what each picture shows, with a
    tenth unclear, and every class both present and absent."""
    generator = torch.Generator().manual_seed(seed)
    present = (torch.rand(count, classes, generator=generator) < 0.3).long()
    unclear = torch.rand(count, classes, generator=generator) < 0.1
    present[unclear] = -1
    present[0], present[1] = 1, 0
    centres = torch.randn(classes, width, generator=generator)
    values = torch.randn(count, width, generator=generator) + present.clamp_min(0).float() @ centres
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return (values * 10 ** -torch.linspace(0, 2, width)) @ mixing + 5, present


def objective(head: OneVsRestHead, features: torch.Tensor, present: torch.Tensor) -> np.ndarray:
    """scikit-learn's, class by class."""
    logits = (features.double() @ head.weights + head.bias).numpy()
    signs = np.where(present.numpy() == 1, 1, -1)
    losses = np.logaddexp(0, -signs * logits) * (present.numpy() >= 0)
    return head.c * losses.sum(axis=0) + (head.weights.numpy() ** 2).sum(axis=0) / 2


def scikit(features: torch.Tensor, present: torch.Tensor, c: float) -> OneVsRestHead:
    weights, bias = [], []
    for shown in present.T:
        known = shown >= 0
        model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12)
        model.fit(features[known].double().numpy(), shown[known].numpy())
        weights.append(model.coef_[0])
        bias.append(model.intercept_[0])
    return OneVsRestHead(
        c, torch.from_numpy(np.array(weights).T), torch.from_numpy(np.array(bias)), 0.0, 0, True
    )


@pytest.mark.parametrize(("count", "width", "classes"), [(300, 12, 5), (40, 60, 3), (30, 4, 1)])
def test_every_class_has_the_classifier_that_scikit_learn_fits_to_it_alone(
    count: int, width: int, classes: int
) -> None:
    features, present = pictures(count, width, classes)
    for head in one_vs_rest_path(features, present, [1e-6, 1e-3, 0.1, 10.0, 1e4], tolerance=1e-13):
        exact = scikit(features, present, head.c)
        assert head.converged
        ours, theirs = (objective(each, features, present) for each in (head, exact))
        assert ours == pytest.approx(theirs, rel=1e-8), head.c
        assert head.objective == pytest.approx(ours.sum(), rel=1e-9)
        chances = [
            torch.sigmoid(features.double() @ each.weights + each.bias) for each in (head, exact)
        ]
        assert torch.allclose(*chances, rtol=1e-3, atol=1e-3), head.c


@settings(max_examples=15, deadline=None)
@given(
    st.integers(3, 40), st.integers(1, 12), st.integers(1, 5), st.floats(-6, 5), st.integers(0, 99)
)
def test_at_any_strength_no_class_is_far_above_its_optimum(
    count: int, width: int, classes: int, log_c: float, seed: int
) -> None:
    features, present = pictures(count, width, classes, seed)
    (head,) = one_vs_rest_path(features, present, [10**log_c])
    exact = scikit(features, present, 10**log_c)
    assert head.converged
    assert (
        objective(head, features, present) <= objective(exact, features, present) * 1.0001
    ).all()


def test_of_one_class_it_is_the_softmax_of_two() -> None:
    features, present = pictures(200, 10, 1)
    known = present[:, 0] >= 0
    path = [1e-3, 1.0, 100.0]
    softmax = logistic_path(features[known], present[known, 0], path, tolerance=1e-12)
    ours = one_vs_rest_path(features, present, path, tolerance=1e-12)
    for own, two in zip(ours, softmax, strict=True):
        assert own.objective == pytest.approx(two.objective, rel=1e-8)
        difference = two.weights[:, 1] - two.weights[:, 0]
        assert torch.allclose(own.weights[:, 0], difference, rtol=1e-2, atol=1e-4)


def test_a_class_does_not_depend_on_the_others_fitted_beside_it() -> None:
    features, present = pictures(150, 8, 4)
    together = list(one_vs_rest_path(features, present, EVERY[::8], tolerance=1e-13))
    alone = list(one_vs_rest_path(features, present[:, [2]], EVERY[::8], tolerance=1e-13))
    for all_four, one in zip(together, alone, strict=True):
        scores = all_four.scores(features)[:, 2], one.scores(features)[:, 0]
        assert torch.allclose(*scores, rtol=1e-2, atol=1e-2), one.c


def test_an_unclear_picture_is_as_if_it_were_not_there() -> None:
    features, present = pictures(60, 5, 1)
    known = present[:, 0] >= 0
    assert not known.all()
    (whole,) = one_vs_rest_path(features, present, [1.0], tolerance=1e-13)
    (without,) = one_vs_rest_path(features[known], present[known], [1.0], tolerance=1e-13)
    assert whole.objective == pytest.approx(without.objective, rel=1e-9)
    assert torch.allclose(whole.weights, without.weights, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_fitted_is_refused() -> None:
    features, present = pictures(20, 3, 2)
    for value in (0, 1, -1):
        one_sided = present.clone()
        one_sided[:, 1] = value
        with pytest.raises(ValueError, match="not both present and absent"):
            OneVsRestPath(features, one_sided)
    with pytest.raises(ValueError, match="not finite"):
        OneVsRestPath(features.index_fill(0, torch.tensor([3]), float("nan")), present)
    with pytest.raises(ValueError, match=r"present \[n, K\]"):
        OneVsRestPath(features, present[:, 0])
    with pytest.raises(ValueError, match="must rise"):
        next(one_vs_rest_path(features, present, [1.0, 0.1]))
