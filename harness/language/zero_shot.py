"""Pictures judged by the texts of their classes: cosines, ranks, and how labels are read.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), section 3.1: a picture's class is the one whose text is nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.classification import check_label, right_classes
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.language.texts import Texts
from harness.task import NotApplicable

_BLOCK = 4096


def check_labels(datasets: Mapping[Role, Dataset]) -> None:
    """Raises ``NotApplicable`` where there is nothing to tell apart: no role test, no labels, one
    class; and ``HarnessError`` for a label out of range, or none among others."""
    if "test" not in datasets:
        raise NotApplicable("the data set has no test split")
    test = datasets["test"]
    if not any(right_classes(sample.target) for sample in test.samples):
        raise NotApplicable(f"its {test.split} split has no labels")
    if len(test.classes) < 2:
        raise NotApplicable("its pictures are of one class only, and so each would be right")
    for sample in test.samples:
        if sample.target.label is None and sample.target.labels is None:
            raise HarnessError(f"data set {test.name!r}: {sample.id} has no label")
        for label in right_classes(sample.target):
            check_label(test, sample, label)


def cosines(text: Texts, features: Tensor, vectors: Tensor) -> Tensor:
    """Pictures' normed tokens ``features [n, D]`` and texts' unit ``vectors [C, E]`` -> their
    cosines in the common space ``[n, C]`` float32, on the CPU."""
    parts = []
    with exact_float32():
        for first in range(0, len(features), _BLOCK):
            parts.append(in_common(text, features[first : first + _BLOCK], vectors) @ vectors.T)
    return torch.cat(parts) if parts else torch.zeros(0, len(vectors))


def in_common(text: Texts, features: Tensor, vectors: Tensor) -> Tensor:
    """``features [n, D]`` in the space of ``vectors [C, E]``: ``[n, E]`` of unit length. Raises
    ``HarnessError`` where the projection leads elsewhere."""
    projected = text.project(features)
    if projected.shape[1] != vectors.shape[1]:
        raise HarnessError(
            f"{text.name}: its texts are of {vectors.shape[1]} numbers, the model's "
            f"pictures of {projected.shape[1]}: they are not of one model (`text:`)"
        )
    return torch.nn.functional.normalize(projected, dim=1)


def ranks(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[n]``: how many classes stand before the best right one of each picture, among ``scores``
    and ``right [n, C]``; of equal scores the lower class is first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    found: NDArray[np.int64] = np.take_along_axis(right, order, axis=1).argmax(axis=1)
    return found


def right_ones(labels: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """``labels`` of ``Examples``, ``[n]`` or ``[n, C]`` -> which classes are right, ``[n, C]``."""
    right: NDArray[np.bool_] = labels == 1
    if labels.ndim == 1:
        right = np.zeros((len(labels), classes), np.bool_)
        right[np.arange(len(labels)), labels] = True
    return right


def weights_per_class(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[n]``: what a picture counts, so that the mean over pictures of a share that is right is
    the mean over the classes that there are."""
    present, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(labels) / (len(present) * sizes[own].astype(np.float64))
    return weights


def number_cut(text: Texts, groups: Sequence[Sequence[str]]) -> int:
    """How many of all texts are longer than the tower reads."""
    return int(text.cut([each for group in groups for each in group]).sum())
