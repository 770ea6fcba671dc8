"""Counts of pixels, and the scores that mmseg makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import REFERENCE

from harness.aggregates import score, values
from harness.probes.segmentation_metrics import class_counts

IOU, ACCURACY, PIXELS = "mean_intersection_over_union", "mean_class_accuracy", "pixel_accuracy"


def counted(
    predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int
) -> list[NDArray[np.generic]]:
    pictures = [
        class_counts(torch.from_numpy(said), torch.from_numpy(true), classes)
        for said, true in zip(predicted, labels, strict=True)
    ]
    return [torch.stack(each).numpy() for each in zip(*pictures, strict=True)]


@pytest.fixture
def reference() -> dict[str, NDArray[np.generic]]:
    with np.load(REFERENCE / "segmentation_reference.npz") as stored:
        return {name: stored[name] for name in stored.files}


def test_scores_are_mmsegs(reference: dict[str, NDArray[np.generic]]) -> None:
    classes = int(reference["num_classes"])
    columns = counted(reference["prediction"], reference["label"], classes)
    per_class = values(IOU, columns)
    np.testing.assert_allclose(per_class, reference["iou_per_class"], rtol=0, atol=1e-6)
    assert per_class.mean() == pytest.approx(float(reference["miou"]), abs=1e-6)
    assert values(ACCURACY, columns).mean() == pytest.approx(float(reference["macc"]), abs=1e-6)
    assert values(PIXELS, columns) == pytest.approx([float(reference["aacc"])], abs=1e-6)
    for name, expected in ((IOU, "miou"), (ACCURACY, "macc"), (PIXELS, "aacc")):
        found, interval = score(name, columns, 100, seed=0)
        assert found == pytest.approx(100 * float(reference[expected]), abs=1e-4)
        assert interval.low < found < interval.high


def test_a_class_that_is_nowhere_has_no_value_and_moves_no_mean(
    reference: dict[str, NDArray[np.generic]],
) -> None:
    """As mmseg's nanmean: the same pictures with two classes more that are not in them."""
    classes = int(reference["num_classes"]) + 2
    columns = counted(reference["prediction"], reference["label"], classes)
    per_class = values(IOU, columns)
    np.testing.assert_allclose(per_class[:-2], reference["iou_per_class"], rtol=0, atol=1e-6)
    assert np.isnan(per_class[-2:]).all() and np.isnan(values(ACCURACY, columns)[-2:]).all()
    for name, expected in ((IOU, "miou"), (ACCURACY, "macc"), (PIXELS, "aacc")):
        found, _ = score(name, columns, 1, seed=0)
        assert found == pytest.approx(float(reference[expected]), abs=1e-6)


def test_a_class_that_is_only_predicted_counts_for_iou_and_not_for_accuracy() -> None:
    # Class 2 is predicted in a quarter of the pixels and is never there.
    said, true = np.array([[[0, 0], [1, 2]]]), np.array([[[0, 0], [1, 1]]])
    columns = counted(said, true, 3)
    assert values(IOU, columns).tolist() == [1, 0.5, 0]
    accuracies = values(ACCURACY, columns)
    assert accuracies[:2].tolist() == [1, 0.5] and np.isnan(accuracies[2])
    assert score(IOU, columns, 1, 0)[0] == 0.5 and score(ACCURACY, columns, 1, 0)[0] == 0.75
    assert values(PIXELS, columns).tolist() == [0.75]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_counts_are_the_confusion_matrixs_and_ignored_pixels_are_nowhere(
    classes: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    said = generator.integers(0, classes, (5, 7))
    true = generator.choice([*range(classes), 255], (5, 7))
    found = class_counts(torch.from_numpy(said), torch.from_numpy(true.astype(np.uint8)), classes)
    confusion = np.zeros((classes, classes), int)
    for one, other in zip(said.ravel(), true.ravel(), strict=True):
        if other != 255:
            confusion[other, one] += 1
    assert found.intersection.tolist() == confusion.diagonal().tolist()
    assert found.predicted.tolist() == confusion.sum(0).tolist()
    assert found.labelled.tolist() == confusion.sum(1).tolist()
    assert all(each.dtype == torch.int64 for each in found)


@pytest.mark.parametrize(
    ("said", "true", "says"),
    [
        ([[0, 1]], [[0, 3]], "label 3 is none of 3"),
        ([[0, 1]], [[0, -1]], "label -1 is none"),
        ([[0, 4]], [[0, 1]], "predicted class 4"),
        ([[0, 1]], [[0], [1]], r"a prediction of \[1, 2\], labels \[2, 1\]"),
    ],
)
def test_what_is_no_class_or_of_another_size_is_refused(
    said: list[list[int]], true: list[list[int]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        class_counts(torch.tensor(said), torch.tensor(true), 3)


def test_an_all_ignored_picture_adds_nothing() -> None:
    found = class_counts(torch.zeros(2, 2), torch.full((2, 2), 255), 3)
    assert [each.tolist() for each in found] == [[0, 0, 0]] * 3
