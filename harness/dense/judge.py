"""What a dense task is about: what its heads learn, and how a picture is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.aggregates import SCENE
from harness.data.dataset import Dense, Sample
from harness.data.views import Geometry
from harness.probes.dense_losses import Objective
from harness.task import DenseCrops, Outcome

Row = NDArray[np.float64]
"""The values of one picture; how many, and which, is the task's. NaN: it has none."""


class Judge(ABC):
    """Maps of crops -> a prediction of every pixel -> a picture's values -> an outcome."""

    kind: ClassVar[Literal["classes", "depth"]]
    objective: Objective
    counts: str = ""
    """Which pixels count, to be told where none does."""

    @abstractmethod
    def targets(self, labels: DenseCrops) -> Tensor:
        """What heads are trained for: ``[B, h, w]``, of crops as they are padded."""

    @abstractmethod
    def prediction(self, maps: Sequence[Tensor], geometry: Sequence[Geometry]) -> Tensor:
        """Maps of all crops of a picture -> its prediction at the stored size, ``[H, W]``."""

    @abstractmethod
    def truth(self, dense: Dense) -> Tensor:
        """The labels of a picture at its stored size, ``[H, W]``."""

    @abstractmethod
    def row(self, prediction: Tensor, truth: Tensor, everywhere: bool = False) -> Row:
        """Of ``[H, W]`` against ``[H, W]``, within the part of a picture that is judged, or
        ``everywhere``: labels of a view know nothing of that part."""

    @abstractmethod
    def score(self, rows: NDArray[np.float64]) -> float:
        """Of several pictures ``[n, k]``, or of one: how good that is. Higher is better, NaN where
        it cannot be told."""

    @abstractmethod
    def told(self, row: Row) -> str:
        """A picture's score in words."""

    @abstractmethod
    def drawn(self, prediction: Tensor, truth: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both as they are to be seen (``harness/pictured/contract.py``)."""

    @abstractmethod
    def outcome(self, rows: NDArray[np.float64]) -> Outcome:
        """Of all pictures ``[n, k]``: columns (without ``image_id``), metrics and details."""

    def of_pictures(self, samples: Sequence[Sample], rows: NDArray[np.float64]) -> Outcome:
        """The outcome of ``samples [n]``, with their scenes where there are any. Pictures without a
        value are left out and counted."""
        there = has_value(rows)
        outcome = self.outcome(rows[there])
        scored = [sample for sample, has in zip(samples, there.tolist(), strict=True) if has]
        columns = {"image_id": [sample.id for sample in scored], **outcome.columns}
        if any(sample.scene is not None for sample in scored):
            columns[SCENE] = [sample.scene or sample.id for sample in scored]
        without = int((~there).sum())
        counts = {"test_pictures_without_labels": without} if without else {}
        return replace(outcome, columns=columns, counts={**counts, **outcome.counts})


def has_value(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of ``rows [n, k]`` are of a picture that has values."""
    return np.asarray(~np.isnan(rows).any(axis=1))
