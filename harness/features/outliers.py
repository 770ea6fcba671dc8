"""Which patch tokens are outliers: a cut-off on their norm before the final norm.

Darcet et al. (2023, section 2.1) take a number read off a histogram (150 for DINOv2 ViT-g) and say
that it varies from model to model; ``valley`` reads that histogram. Test-time registers take the
mean and three standard deviations (arXiv:2506.08010, appendix A.4); "Do All ViTs Need Registers?"
the 98th percentile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from harness.errors import HarnessError
from harness.features import norms as histograms

ESTIMATED_ON = 1000
"""Pictures of the role train, at most, on which a cut-off is estimated."""

NO_OUTLIERS = float(np.finfo(np.float32).max)
"""A cut-off that no norm is above: that of ``valley`` where norms have one mode."""

_SD = re.compile(r"mean\+([0-9]+(?:\.[0-9]+)?)sd")
_QUANTILE = re.compile(r"quantile([01]?\.[0-9]+)")


@dataclass(frozen=True)
class OutlierRule:
    """How the cut-off is found: ``norm``, a number itself; ``quantile`` of all norms; ``mean+sd``,
    the mean and ``value`` standard deviations; ``valley``, the lowest point between the two modes
    of the histogram of log norms (``NO_OUTLIERS`` where there is no second mode)."""

    kind: Literal["norm", "quantile", "mean+sd", "valley"]
    value: float

    @classmethod
    def parse(cls, text: str | float) -> OutlierRule:
        """``150``, ``quantile0.98``, ``mean+3sd`` or ``valley``. Raises ``ValueError`` for anything
        else."""
        if text == "valley":
            return cls("valley", 0.0)
        if found := _SD.fullmatch(str(text)):
            return cls("mean+sd", float(found[1]))
        if found := _QUANTILE.fullmatch(str(text)):
            if float(found[1]) < 1:
                return cls("quantile", float(found[1]))
        else:
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if 0 <= value < float("inf"):
                return cls("norm", value)
        raise ValueError(f"{text!r}: a norm (150), quantile0.98, mean+3sd or valley was expected")

    @property
    def estimated(self) -> bool:
        """Whether pictures have to be seen before the cut-off is known."""
        return self.kind != "norm"

    def cutoff(self, norms: NDArray[np.float32]) -> float:
        """The norm above which a patch is an outlier, given the ``norms [n]`` of many patches."""
        if not self.estimated:
            return self.value
        values = norms.astype(np.float64)
        if not values.size or not np.isfinite(values).all():
            raise HarnessError("the norms of patch tokens are not finite: no cut-off for outliers")
        if self.kind == "quantile":
            return float(np.quantile(values, self.value))
        if self.kind == "valley":
            place = histograms.valley(histograms.histogram(norms))
            return NO_OUTLIERS if place is None else float(histograms.edge(place))
        return float(values.mean() + self.value * values.std())

    def edge_in(self, counts: histograms.Counts, mean: float, sd: float) -> int:
        """The bin of a histogram of norms that begins at this rule's cut-off, or next above it,
        where the norms themselves are gone; ``mean`` and ``sd`` are theirs. ``BINS``: none."""
        if self.kind == "valley":
            place = histograms.valley(counts)
            return histograms.BINS if place is None else place
        cutoff = self.value
        if self.kind == "quantile":
            cutoff = histograms.quantile(counts, self.value)
        elif self.kind == "mean+sd":
            cutoff = mean + self.value * sd
        return int(np.searchsorted(histograms.edge(np.arange(histograms.BINS)), cutoff))


def _checked(text: str | float) -> str | float:
    OutlierRule.parse(text)
    return text


RuleText = Annotated[str | float, AfterValidator(_checked)]
"""A protocol's field of this kind holds the rule as it is typed."""


def cutoffs(rules: Iterable[OutlierRule], norms: NDArray[np.float32]) -> dict[OutlierRule, float]:
    """The cut-off of every rule over the same ``norms [n]``."""
    return {rule: rule.cutoff(norms) for rule in rules}
