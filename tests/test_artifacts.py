"""What is called an artifact: only what is one in every respect that is known."""

from __future__ import annotations

import pytest

from harness.artifacts import Evidence, Says, summary, verdict, weigh

ALL = ("redundancy", "place", "position", "pixels", "global")


def said(*says: Says) -> dict[str, Evidence]:
    return {name: Evidence(name, 1.0, 1.0, each) for name, each in zip(ALL, says, strict=True)}


A, S, N, M = "artifact", "salient", "neither", "not measured"


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ((A, A, A, A, A), "artifacts"),
        ((A, M, A, A, M), "artifacts"),
        ((A, A, M, M, M), "undecided"),
        ((A, A, A, M, A), "undecided"),
        ((M, A, A, A, A), "undecided"),
        ((S, S, M, M, M), "salient tokens"),
        ((S, N, N, S, M), "salient tokens"),
        ((A, A, A, A, N), "mixed"),
        ((A, S, A, A, M), "mixed"),
        ((S, S, A, A, N), "mixed"),
        ((N, N, M, M, M), "mixed"),
        ((M, M, M, M, M), "undecided"),
    ],
)
def test_a_verdict_is_of_all_that_is_known(says: tuple[Says, ...], expected: str) -> None:
    assert verdict(said(*says)) == expected


@pytest.mark.parametrize(
    ("outlier", "normal", "more", "less"),
    [(0.9, 0.7, A, S), (0.7, 0.9, S, A), (0.71, 0.7, N, N), (0.8, 0.7, A, S), (None, 0.7, M, M)],
)
def test_a_figure_speaks_from_the_margin_on(
    outlier: float | None, normal: float, more: Says, less: Says
) -> None:
    assert weigh("?", outlier, normal, "more", 0.1 - 1e-9).says == more
    assert weigh("?", outlier, normal, "less", 0.1 - 1e-9).says == less


def test_a_relative_margin_is_a_share_of_the_normal_figure() -> None:
    assert weigh("?", 4.0, 5.0, "less", 0.2, relative=True).says == A
    assert weigh("?", 4.1, 5.0, "less", 0.2, relative=True).says == N
    assert weigh("?", 6.0, 5.0, "less", 0.2, relative=True).says == S
    assert weigh("?", 0.0, 0.0, "less", 0.2, relative=True).says == N


def test_without_outliers_the_summary_says_so_and_weighs_nothing() -> None:
    found = summary(said(A, A, A, A, A), 0, None)
    assert (found["verdict"], found["told"]) == ("none", "no patch is an outlier")


def test_the_summary_tells_what_is_missing() -> None:
    found = summary(said(A, A, M, M, M), 0.021, 7)
    assert found["told"].startswith("2.1 % of patches are outliers, from layer 7 on: undecided")
    assert found["told"].endswith("not measured: position, pixels")
    assert found["separates_at_layer"] == 7
