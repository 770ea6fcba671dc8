"""Rules for the cut-off of outliers."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.features.norms import BINS, PER_OCTAVE, edge, histogram
from harness.features.outliers import NO_OUTLIERS, OutlierRule

NORMS = np.array([1, 2, 3, 4, 90], np.float32)


@pytest.mark.parametrize(
    ("text", "rule", "cutoff"),
    [
        ("150", OutlierRule("norm", 150), 150),
        (12.5, OutlierRule("norm", 12.5), 12.5),
        (0, OutlierRule("norm", 0), 0),
        ("quantile0.75", OutlierRule("quantile", 0.75), 4),
        ("mean+3sd", OutlierRule("mean+sd", 3), 20 + 3 * np.std(NORMS)),
        ("valley", OutlierRule("valley", 0), NO_OUTLIERS),
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
    with pytest.raises(ValueError, match=r"quantile0.98, mean\+3sd or valley was expected"):
        OutlierRule.parse(text)


@pytest.mark.parametrize("norms", [np.empty(0, np.float32), np.array([1, np.nan], np.float32)])
def test_norms_that_say_nothing_are_told(norms: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(HarnessError, match="not finite"):
        OutlierRule("quantile", 0.5).cutoff(norms)


def two_modes() -> np.ndarray:  # type: ignore[type-arg]
    apart = np.random.default_rng(0).normal(0, 0.1, 5000)
    return (np.repeat(np.float32([50, 500]), [4900, 100]) * np.exp(apart)).astype(np.float32)


def test_the_valley_is_a_cutoff_between_the_modes() -> None:
    norms = two_modes()
    assert int((norms > OutlierRule.parse("valley").cutoff(norms)).sum()) == 100


@pytest.mark.parametrize("text", ["150", "quantile0.9", "mean+3sd", "mean+0.5sd", "valley"])
def test_of_a_histogram_a_cutoff_is_the_next_edge_of_a_bin(text: str) -> None:
    norms, rule = two_modes(), OutlierRule.parse(text)
    counts = histogram(norms)
    place = rule.edge_in(counts, float(norms.mean()), float(norms.std()))
    ratio = float(edge(place)) / rule.cutoff(norms)
    assert 2 ** (-1.1 / PER_OCTAVE) <= ratio <= 2 ** (1.1 / PER_OCTAVE)


def test_of_one_mode_a_histogram_has_no_edge() -> None:
    counts = histogram(np.full(500, 9, np.float32))
    assert OutlierRule.parse("valley").edge_in(counts, 9, 0) == BINS
