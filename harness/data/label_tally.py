"""What the doctor learns of masks and depth by reading some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.data.dataset import IGNORED, Dataset, Dense
from harness.errors import BadPicture

PLAUSIBLE = (0.1, 300.0)
"""Metres. Where all of a data set's depth is nearer, or some is farther, its scale is in doubt."""


class LabelTally:
    """Masks and depth maps of one split, read one by one."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.bad: list[str] = []
        """What is wrong with each that cannot be used."""
        self._read = {"masks": 0, "depth maps": 0}
        self._seen = np.zeros(IGNORED + 1, np.bool_)
        self._nearest, self._farthest = np.inf, 0.0
        self._known = 0.0

    def add(self, index: int, size: tuple[int, int] | None) -> None:
        """Read the labels of picture ``index``, whose pixels have the ``size`` (width, height):
        None where it is not known."""
        try:
            dense = self._dataset.dense(index)
        except BadPicture as error:
            self.bad.append(str(error))
            return
        self._compare(index, dense, size)
        if dense.semantic is not None:
            self._read["masks"] += 1
            self._seen[np.unique(dense.semantic)] = True
        if dense.depth is not None:
            known = dense.depth[dense.depth > 0]
            self._read["depth maps"] += 1
            self._known += known.size / dense.depth.size
            if known.size:
                self._nearest = min(self._nearest, float(known.min()))
                self._farthest = max(self._farthest, float(known.max()))

    def _compare(self, index: int, dense: Dense, size: tuple[int, int] | None) -> None:
        for labels in (dense.semantic, dense.depth):
            if labels is not None and size is not None and size != labels.shape[::-1]:
                height, width = labels.shape
                self.bad.append(
                    f"{self._dataset.where(index)}: its labels are of {width}x{height} pixels, "
                    f"the picture of {size[0]}x{size[1]}"
                )

    def said(self) -> list[str]:
        """A sentence for each kind of label that was read."""
        masks, maps = self._read["masks"], self._read["depth maps"]
        sentences = []
        if masks:
            classes = len(self._dataset.semantic_classes)
            seen = np.count_nonzero(self._seen[:classes])
            sentences.append(f"{masks:,} masks read: {seen} of {classes} classes occur")
        if maps:
            sentences.append(
                f"{maps:,} depth maps read: {self._nearest:.2f} to {self._farthest:.2f} m, "
                f"{self._known / maps:.0%} of the pixels known"
            )
        return sentences

    def doubtful(self) -> str | None:
        """Depth that nothing can have: its scale is wrong."""
        low, high = PLAUSIBLE
        if not self._read["depth maps"] or (self._farthest >= low and self._farthest <= high):
            return None
        return f"depth up to {self._farthest:g} m"

    def absent(self) -> Sequence[str]:
        """The classes of which no pixel was read."""
        if not self._read["masks"]:
            return []
        names = self._dataset.semantic_classes
        return [name for place, name in enumerate(names) if not self._seen[place]]
