"""A head judged on features with labels, without a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import classified
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ARCHITECTURE

from harness import heads
from harness.data.dataset import Dataset, Labels, Sample, Target
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule
from harness.features.select import Selected, Selector
from harness.heads import Head
from harness.judged import JudgedEvaluation
from harness.probes.linear import first_right
from harness.task import Context, NotApplicable, Outcome
from harness.task_names import find_task

LINEAR: Any = find_task("linear")
SELECTOR = Selector("cls", 3, True)


class Further(Dataset):
    """Pictures with labels of either kind."""

    def __init__(self, targets: Sequence[Target], classes: Sequence[str]) -> None:
        self.name, self.split, self.classes = "further", "test", tuple(classes)
        self.samples = [
            Sample(f"test/{place}", (224, 224), target) for place, target in enumerate(targets)
        ]


def judged(
    head: Head, features: torch.Tensor, dataset: Dataset, size: int = 3, backwards: bool = False
) -> Outcome:
    protocol = LINEAR.protocols["linear"]
    context: Context[Any] = Context(ARCHITECTURE, {"test": dataset}, protocol, 0)
    order = list(range(len(features)))[:: -1 if backwards else 1]
    parts = [JudgedEvaluation(context, head, [SELECTOR]) for _ in range(2)]
    for number, start in enumerate(range(0, len(order), size)):
        rows = order[start : start + size]
        found = Selected(features[rows], torch.ones(len(rows), dtype=torch.bool))
        parts[number % 2].update("test", classified.batch("test", rows, {SELECTOR: found}))
    other = JudgedEvaluation(context, head, [SELECTOR])
    other.load(parts[1].state())
    parts[0].merge(other)
    return parts[0].finish()


def head_of(weights: torch.Tensor, classes: Sequence[str]) -> Head:
    facts = {
        "columns": [0, weights.shape[1]],
        "classes_without_pictures": [],
        "resolved": {"layers": [3]},
    }
    tensors = {"weights": weights, "biases": torch.zeros(len(weights))}
    return Head(tensors, tuple(classes), facts)


@given(st.data())
def test_real_is_right_where_any_of_its_labels_comes_first(data: st.DataObject) -> None:
    """Against the official lines: ``pred in real_labels[i]`` for i with any."""
    classes = [f"n{number}" for number in range(8)]
    values = st.integers(-3, 3)  # ties are common
    logits = data.draw(st.lists(st.lists(values, min_size=8, max_size=8), min_size=1, max_size=9))
    right = [data.draw(st.lists(st.integers(0, 7), max_size=8, unique=True)) for _ in logits]
    if not any(right):
        right[0] = [3]
    targets = [Target(labels=Labels(tuple(sorted(each)))) for each in right]
    size = data.draw(st.integers(1, 4))
    features = torch.tensor(logits, dtype=torch.float32)
    outcome = judged(head_of(torch.eye(8), classes), features, Further(targets, classes), size)
    expected = []
    for place, (row, labels) in enumerate(zip(logits, right, strict=True)):
        first = sorted(range(8), key=lambda one: (-row[one], one))
        if labels:
            hits = [any(one in labels for one in first[:top]) for top in (1, 5)]
            expected.append((f"test/{place}", first[0], *hits))
    names = ("image_id", "predicted", "top1", "top5")
    assert list(zip(*(outcome.columns[name] for name in names), strict=True)) == expected
    assert outcome.counts.get("test_without_label", 0) == sum(not each for each in right)
    assert list(outcome.columns["labels"]) == [
        " ".join(map(str, sorted(each))) for each in right if each
    ]


@given(st.permutations(range(7)), st.integers(2, 7), st.booleans())
def test_judging_a_subset_is_the_best_of_its_classes_alone(
    order: list[int], count: int, backwards: bool
) -> None:
    classes = [f"class {number}" for number in range(7)]
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn(7, 5, generator=generator)
    features = torch.randn(10, 5, generator=generator)
    chosen = order[:count]
    labels = [place % count for place in range(10)]
    dataset = Further([Target(label=one) for one in labels], [classes[each] for each in chosen])
    outcome = judged(head_of(weights, classes), features, dataset, backwards=backwards)
    expected = (features @ weights[chosen].T).argmax(1)
    assert list(outcome.columns["predicted"]) == expected.tolist()
    assert list(outcome.columns["top1"]) == (expected == torch.tensor(labels)).tolist()


def test_scores_that_are_not_finite_are_never_right() -> None:
    scores = torch.tensor([[1.0, float("inf")], [float("nan"), 0.0], [2.0, 1.0]])
    right = torch.tensor([[False, True], [True, False], [True, False]])
    assert first_right(scores, right)[1].tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("targets", "classes", "error", "complaint"),
    [
        ([Target()], "ab", NotApplicable, "no labels"),
        ([Target(labels=Labels(()))], "ab", NotApplicable, "no labels"),
        ([Target(label=0)], "a", NotApplicable, "of one class only"),
        ([Target(label=0)], "xy", HarnessError, "2 of its 2 classes are none"),
        ([Target(label=2)], "ab", HarnessError, "the label of test/0, 2, is none of the 2"),
        ([Target(labels=Labels((0, 2)))], "ab", HarnessError, "the label of test/0, 2"),
        ([Target(label=0), Target()], "ab", HarnessError, "test/1 has no label"),
    ],
)
def test_a_further_set_that_cannot_be_judged_says_why(
    targets: list[Target], classes: str, error: type[Exception], complaint: str
) -> None:
    train = classified.Labelled("train", [0, 1], 2)
    train.classes = ("a", "b")
    with pytest.raises(error, match=complaint):
        LINEAR.further(
            ARCHITECTURE, {"train": train}, Further(targets, classes), LINEAR.protocols["linear"]
        )


def test_equal_heads_are_equal_files_that_tell_what_they_hold() -> None:
    head = Head(
        {"weights": torch.arange(6.0).view(2, 3).T, "biases": torch.ones(3)},
        ("a", "b", "c"),
        {"columns": [0, 2]},
        {OutlierRule("mean+sd", 3.0): 1.5},
    )
    assert heads.packed(head) == heads.packed(replace(head, tensors=dict(head.tensors)))
