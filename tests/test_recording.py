"""What a record says of an outcome's columns."""

from __future__ import annotations

import numpy as np

from harness.recording import metrics_of
from harness.stats import bootstrap_mean
from harness.task import MetricSpec, Outcome

FINGERPRINT = "0000002a" + 56 * "0"


def test_an_interval_draws_the_scenes_that_a_column_names_and_leaves_out_what_has_no_value() -> (
    None
):
    rmse = np.array([1.0, 2.0, 4.0, np.nan, 5.0, 9.0])
    outcome = Outcome(
        {
            "image_id": list("abcdef"),
            "rmse": rmse,
            "hit": rmse > 3,
            "scene": ["z", "z", "y", "y", "x", "x"],
        },
        {
            "rmse": MetricSpec("rmse", "m", False, partial=True),
            "hit": MetricSpec("hit", "%", True, 100),
        },
    )
    metrics = metrics_of(outcome, FINGERPRINT)
    expected = bootstrap_mean([1.0, 2, 4, 5, 9], 42, clusters=[0, 0, 1, 2, 2])
    assert (metrics["rmse"].low, metrics["rmse"].high) == expected
    assert metrics["rmse"].value == 21 / 5
    hits = bootstrap_mean([0, 0, 100, 0, 100, 100], 42, clusters=[0, 0, 1, 1, 2, 2])
    assert (metrics["hit"].low, metrics["hit"].high) == hits
    without = {name: each for name, each in outcome.columns.items() if name != "scene"}
    alone = metrics_of(Outcome(without, outcome.metrics), FINGERPRINT)
    expected = bootstrap_mean([1.0, 2, 4, 5, 9], 42)
    assert (alone["rmse"].low, alone["rmse"].high) == expected
