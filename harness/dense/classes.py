"""What segmentation is about: classes of pixels, counted picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.aggregates import values
from harness.data.dataset import IGNORED, Dense
from harness.data.joint import centred
from harness.data.views import Geometry
from harness.dense.judge import Judge, Row
from harness.features.windows import label_map
from harness.probes.dense_losses import ClassMap
from harness.probes.segmentation_metrics import class_counts
from harness.task import DenseCrops, MetricSpec, Outcome

_COUNTS = ("intersection", "predicted", "labelled")
_METRICS = {
    "miou": "mean_intersection_over_union",
    "macc": "mean_class_accuracy",
    "aacc": "pixel_accuracy",
}


class ClassJudge(Judge):
    """Pixels by class: a picture's values are its three counts of every class, one after the
    other."""

    kind: ClassVar[Literal["classes", "depth"]] = "classes"

    def __init__(
        self, classes: Sequence[str], objective: ClassMap, crop: int | None, patch: int
    ) -> None:
        """``crop`` is the side of training crops whose labels are taken without the padding, over
        which maps are laid then."""
        self._classes, self.objective = classes, objective
        self._crop, self._patch = crop, patch

    def targets(self, labels: DenseCrops) -> Tensor:
        assert labels.semantic is not None
        if self._crop is None:
            return labels.semantic
        left, top, _, _ = centred(self._crop, self._crop, self._patch)
        return labels.semantic[:, top : top + self._crop, left : left + self._crop]

    def prediction(self, maps: Sequence[Tensor], geometry: Sequence[Geometry]) -> Tensor:
        return label_map(maps, geometry, self._crop is not None)

    def truth(self, dense: Dense) -> Tensor:
        assert dense.semantic is not None
        return torch.from_numpy(dense.semantic)

    def row(self, prediction: Tensor, truth: Tensor, everywhere: bool = False) -> Row:
        counts = class_counts(prediction.cpu(), truth.cpu(), len(self._classes), IGNORED)
        found = torch.cat(counts).numpy().astype(np.float64)
        return found if counts.labelled.sum() else np.full_like(found, np.nan)

    def score(self, rows: NDArray[np.float64]) -> float:
        if not len(rows):
            return float("nan")
        parts = values(_METRICS["miou"], list(self._columns(rows).values()))
        return float(np.nanmean(parts))

    def told(self, row: Row) -> str:
        return f"mIoU {100 * self.score(row[None]):.1f} %"

    def drawn(self, prediction: Tensor, truth: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        return prediction.cpu().numpy().astype(np.uint8), truth.numpy()

    def outcome(self, rows: NDArray[np.float64]) -> Outcome:
        columns = self._columns(rows)
        first, *others = _COUNTS
        metrics = {
            name: MetricSpec(first, "%", True, 100, aggregate=aggregate, others=tuple(others))
            for name, aggregate in _METRICS.items()
        }
        ious = values(_METRICS["miou"], list(columns.values()))
        by_class = {
            name: None if np.isnan(iou) else round(100 * float(iou), 4)
            for name, iou in zip(self._classes, ious, strict=True)
        }
        absent = int(np.isnan(ious).sum())
        counts = {"classes_neither_there_nor_predicted": absent} if absent else {}
        return Outcome(columns, metrics, counts, details={"iou_by_class": by_class})

    def _columns(self, rows: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
        parts = np.split(rows.astype(np.int64), len(_COUNTS), axis=1)
        return dict(zip(_COUNTS, parts, strict=True))
