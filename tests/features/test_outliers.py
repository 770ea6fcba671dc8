"""Rules for the cut-off of outliers."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.features.outliers import OutlierRule

NORMS = np.array([1, 2, 3, 4, 90], np.float32)


@pytest.mark.parametrize(
    ("text", "rule", "cutoff"),
    [
        ("150", OutlierRule("norm", 150), 150),
        (12.5, OutlierRule("norm", 12.5), 12.5),
        (0, OutlierRule("norm", 0), 0),
        ("quantile0.75", OutlierRule("quantile", 0.75), 4),
        ("mean+3sd", OutlierRule("mean+sd", 3), 20 + 3 * np.std(NORMS)),
        ("mean+0.5sd", OutlierRule("mean+sd", 0.5), 20 + 0.5 * np.std(NORMS)),
    ],
)
def test_a_rule_is_read_and_gives_its_cutoff(
    text: str | float, rule: OutlierRule, cutoff: float
) -> None:
    assert OutlierRule.parse(text) == rule
    assert rule.cutoff(NORMS) == pytest.approx(cutoff)
    assert rule.estimated == (rule.kind != "norm")


@pytest.mark.parametrize(
    "text", ["", "high", "-1", "nan", "inf", "quantile1.5", "quantile2", "mean+sd", "3sd", -2.0]
)
def test_what_is_no_rule_is_told_what_would_be(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"quantile0.98 or mean\+3sd was expected"):
        OutlierRule.parse(text)


@pytest.mark.parametrize("norms", [np.empty(0, np.float32), np.array([1, np.nan], np.float32)])
def test_norms_that_say_nothing_are_told(norms: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(HarnessError, match="not finite"):
        OutlierRule("quantile", 0.5).cutoff(norms)
