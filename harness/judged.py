"""A linear head that was trained elsewhere, judged on the pictures of a further test set.

Its logits are restricted to the classes of that set, as the code of ImageNet-A and -R does
(hendrycks/natural-adv-examples, eval.py). A picture that may be of several classes (ReaL: Beyer et
al., "Are we done with ImageNet?", 2020) is right where any of them comes first; one that is of none
is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.classification import TOP, joined, right_classes
from harness.data.dataset import Role, places_by_id
from harness.errors import HarnessError
from harness.features.select import Selector
from harness.heads import Head
from harness.probes.linear import Head as Columns
from harness.probes.linear import first_right
from harness.task import Batch, Context, Evaluation, MetricSpec, Outcome


def linear_head(
    trained: tuple[Tensor, Tensor],
    sees: Columns,
    selectors: Sequence[Selector],
    context: Context[Any],
    resolved: Mapping[str, Any],
) -> Head:
    """What is kept of a head: its weights ``[C, D]`` and biases ``[C]``, and which columns it
    ``sees`` of the vectors of ``selectors`` put side by side. ``resolved`` is what a record says
    of it."""
    train = context.datasets["train"]
    shown = {sample.target.label for sample in train.samples}
    facts = {
        "reads": [selector.facts() for selector in selectors],
        "columns": [sees.start, sees.stop],
        "classes_without_pictures": [
            name for n, name in enumerate(train.classes) if n not in shown
        ],
        "resolved": dict(resolved),
    }
    tensors = dict(zip(("weights", "biases"), trained, strict=True))
    return Head(tensors, train.classes, facts, context.cutoffs)


class JudgedEvaluation(Evaluation):
    """Of every picture, the class that comes first and the rank of the first right one. The only
    role is test."""

    def __init__(self, context: Context[Any], head: Head, selectors: Sequence[Selector]) -> None:
        self._test, self._device = context.datasets["test"], context.device
        self._head, self._selectors = head, selectors
        self._places = places_by_id(self._test)
        self._right = [right_classes(sample.target) for sample in self._test.samples]
        rows = [head.classes.index(name) for name in self._test.classes]
        self._weights = head.tensors["weights"][rows].to(self._device)
        self._biases = head.tensors["biases"][rows].to(self._device)
        self._columns = slice(*head.facts["columns"])
        self._without = 0
        self._judged: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []

    def update(self, role: Role, batch: Batch) -> None:
        ids, features, there = joined(batch, self._selectors, self._test.name)
        places = np.array([self._places[each] for each in ids], np.int64)
        labelled = torch.tensor([bool(self._right[place]) for place in places], dtype=torch.bool)
        self._without += int((labelled & ~there).sum())
        scored = there & labelled
        places = places[scored.numpy()]
        seen = features[scored.to(features.device)].to(self._device)[:, self._columns]
        right = torch.zeros(len(places), len(self._test.classes), dtype=torch.bool)
        for row, place in enumerate(places.tolist()):
            right[row, list(self._right[place])] = True
        scores = torch.addmm(self._biases, seen, self._weights.T)
        predicted, rank = first_right(scores, right.to(self._device))
        self._judged.append((places, predicted.cpu().numpy(), rank.cpu().numpy()))

    def finish(self) -> Outcome:
        test = self._test
        parts = [np.concatenate(each) for each in zip(*self._judged, strict=True)]
        if not parts or not len(parts[0]):
            raise HarnessError(f"data set {test.name!r}: no test picture was scored")
        order = np.argsort(parts[0], kind="stable")
        places, predicted, rank = (each[order] for each in parts)
        right = [self._right[place] for place in places.tolist()]
        columns: dict[str, Any] = {"image_id": [test.samples[place].id for place in places]}
        if all(sample.target.labels is None for sample in test.samples):
            columns["label"] = np.array([one for (one,) in right], np.int64)
        else:
            columns["labels"] = [" ".join(map(str, each)) for each in right]
        columns["predicted"] = predicted
        columns |= {f"top{top}": rank < top for top in TOP}
        return Outcome(
            columns,
            {f"top{top}": MetricSpec(f"top{top}", "%", True, 100) for top in TOP},
            self._counts(right),
            dict(self._head.facts["resolved"]),
        )

    def _counts(self, right: Sequence[tuple[int, ...]]) -> dict[str, int]:
        untrained = set(self._head.facts["classes_without_pictures"])
        names = self._test.classes
        counts = {
            "test_without_label": sum(not each for each in self._right),
            "test_without_token": self._without,
            "test_pictures_of_classes_not_in_train": sum(
                all(names[one] in untrained for one in each) for each in right
            ),
        }
        return {name: count for name, count in counts.items() if count}

    def state(self) -> object:
        return list(self._judged), self._without

    def load(self, state: Any) -> None:
        self._judged, self._without = list(state[0]), state[1]

    def merge(self, other: Self) -> None:
        self._judged += other._judged
        self._without += other._without
