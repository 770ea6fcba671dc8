"""Pictures that may show several classes: what may be wrong with their labels, and one classifier a
class, its strength chosen by average precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.aggregates import UNCLEAR, values
from harness.classification import check_same_classes
from harness.collected import Examples, several_classes
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.probes.one_vs_rest import one_vs_rest_path
from harness.task import NotApplicable

OneCFor = Literal["all classes", "each class"]


def check_labels(datasets: Mapping[Role, Dataset], needed: Sequence[Role]) -> None:
    """Raises ``NotApplicable`` where there is nothing to tell classes by: a split is not there, its
    pictures have one class each or none, or no class is present in some pictures of train and
    absent in others; and ``HarnessError`` for labels that are wrong: out of range, missing, or of
    other classes in one split than in another."""
    for role in needed:
        if role not in datasets:
            raise NotApplicable(f"the data set has no {role} split")
        if not several_classes(datasets[role]):
            single = any(sample.target.label is not None for sample in datasets[role].samples)
            raise NotApplicable(
                "a picture of it has one class (the protocol dinov2-logistic judges those)"
                if single
                else f"its {role} split has no labels"
            )
    for role in needed:
        dataset = datasets[role]
        check_same_classes(datasets["train"], dataset, role)
        for sample in dataset.samples:
            labels = sample.target.labels
            if labels is None:
                raise HarnessError(f"data set {dataset.name!r}: {sample.id} has no labels")
            for label in (*labels.present, *labels.unclear):
                if not 0 <= label < len(dataset.classes):
                    raise HarnessError(
                        f"data set {dataset.name!r}: a label of {sample.id}, {label}, is none of "
                        f"the {len(dataset.classes)} classes"
                    )
            if both := set(labels.present) & set(labels.unclear):
                raise HarnessError(
                    f"data set {dataset.name!r}: the label {min(both)} of {sample.id} is both "
                    "present and unclear"
                )
    found = [labels for sample in datasets["train"].samples if (labels := sample.target.labels)]
    present = Counter(place for labels in found for place in labels.present)
    unclear = Counter(place for labels in found for place in labels.unclear)
    if not any(count + unclear[place] < len(found) for place, count in present.items()):
        raise NotApplicable("its train split has no class that some pictures show and others lack")


class Judged(NamedTuple):
    """What came of one token a picture.

    ``scores [n, classes]`` float32 are the logits of test, and ``present [n, classes]`` int8 what
    it shows: of a class that was not fitted, 0 and unclear everywhere. ``selection [c]`` is mAP in
    per cent at every C on the pictures that chose, ``chosen`` the C of all classes, or one for
    each; of all fits the most steps, and how many did not converge.
    """

    scores: NDArray[np.float32]
    present: NDArray[np.int8]
    selection: tuple[float, ...]
    chosen: tuple[float, ...]
    most_steps: int
    not_converged: int
    counts: Mapping[str, int]


def judge(
    fitted: Examples,
    chooses: Examples,
    everything: Examples,
    test: Examples,
    strengths: Sequence[float],
    average_precision: str,
    one_c_for: OneCFor,
    settings: tuple[str, float, int],
) -> Judged:
    """Classifiers at every C on ``fitted``, judged on ``chooses``; then at the chosen C on
    ``everything``, and what they say of ``test``.

    A class is fitted where it is both present and absent. One that is not, or that no picture which
    chooses shows, has no say in the choice. ``average_precision`` is the name of an aggregate,
    ``settings`` are device, tolerance and most steps of a fit. Raises ``HarnessError`` where no
    class is left to fit, to choose by, or to judge.
    """
    fits: list[tuple[int, bool]] = []
    known = _fittable(fitted)
    shown = known & (chooses.labels == 1).any(axis=0)
    if not shown.any():
        raise HarnessError(
            f"{len(fitted.ids)} pictures to fit on and {len(chooses.ids)} to choose C on: no class "
            "is both present and absent in the first and present in the others; more pictures are "
            "needed"
        )
    precisions = np.empty((len(strengths), len(known)))
    labels = torch.from_numpy(fitted.labels[:, shown])
    for row, head in zip(
        precisions, one_vs_rest_path(fitted.features, labels, strengths, *settings), strict=True
    ):
        row[:] = np.nan
        scores = head.scores(chooses.features).numpy()
        row[shown] = values(average_precision, [scores, chooses.labels[:, shown]])
        fits.append((head.steps, head.converged))
    selection = 100 * precisions[:, shown].mean(axis=1)
    # Equal but for rounding: the smallest C.
    best = int(np.argmax(np.round(selection, 9)))
    places = np.full(len(known), best)
    if one_c_for == "each class":
        places[shown] = np.argmax(np.round(100 * precisions[:, shown], 9), axis=0)

    refitted = _fittable(everything)
    own = np.flatnonzero(refitted)
    labels = torch.from_numpy(everything.labels[:, own])
    scores = np.zeros((len(test.ids), len(known)), np.float32)
    wanted = sorted(set(places[own].tolist()))
    path = [strengths[place] for place in wanted]
    heads = one_vs_rest_path(everything.features, labels, path, *settings)
    for place, head in zip(wanted, heads, strict=True):
        found = head.scores(test.features).numpy()
        at_this = places[own] == place
        scores[:, own[at_this]] = found[:, at_this]
        fits.append((head.steps, head.converged))
    present = np.where(refitted, test.labels, UNCLEAR).astype(np.int8)
    if not (present == 1).any():
        raise HarnessError(
            f"no class that was fitted is present in the {len(test.ids)} test pictures: mAP has no "
            "value"
        )
    lacking = {
        "classes_not_fitted": ~refitted,
        "classes_without_say_in_selection": ~shown,
        "classes_not_in_test": ~(test.labels == 1).any(axis=0),
    }
    counts = {"train_pictures": len(everything.ids), "selection_pictures": len(chooses.ids)}
    counts |= {name: int(which.sum()) for name, which in lacking.items() if which.any()}
    chosen = places if one_c_for == "each class" else places[:1]
    return Judged(
        scores,
        present,
        tuple(selection.tolist()),
        tuple(strengths[place] for place in chosen),
        max(steps for steps, _ in fits),
        sum(not converged for _, converged in fits),
        counts,
    )


def _fittable(examples: Examples) -> NDArray[np.bool_]:
    """``[classes]``: which are present in some pictures and absent in others."""
    fittable: NDArray[np.bool_] = (examples.labels == 1).any(axis=0)
    fittable &= (examples.labels == 0).any(axis=0)
    return fittable
