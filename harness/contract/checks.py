"""Every check, in the order in which they are told."""

from __future__ import annotations

from harness.contract import declared, folds, scored
from harness.contract.findings import Check
from harness.contract.watch import outside

CHECKS: tuple[Check, ...] = (
    Check("names", "task and protocol names are file names, versions are numbers", declared.names),
    Check(
        "settings",
        "every setting of a protocol is typed, frozen and in its hash",
        declared.settings,
    ),
    Check(
        "requests",
        "requests is pure, asks of roles that are there, and refuses with a reason",
        declared.requests,
    ),
    Check("outcome", "pictures come to an outcome that a record can keep", scored.outcome),
    Check(
        "metrics", "a metric has a unit, a direction, and a score of its columns", scored.metrics
    ),
    Check(
        "rows", "one row a picture, in the data set's order; what lacks one is counted", scored.rows
    ),
    Check("seed", "the same seed gives the same, and any where none moves it", folds.repeats),
    Check("shared", "batches are shared with other tasks and left as they are", folds.shared),
    Check("batch", "the forward batch moves no score (1, 7, 64)", folds.forward_batch),
    Check("arrival", "pictures that are read once may come in any order", folds.arrival),
    Check("registers", "registers are never pooled in with patches", folds.registers),
    Check("layout", "where registers stand in the sequence moves no score", folds.layout),
    Check("state", "load(state()) goes on where it was", folds.state),
    Check("merge", "two halves that are merged are the whole, or mergeable = False", folds.merge),
    Check("bad picture", "a picture that cannot be used is left out", folds.bad_picture),
    Check("empty", "where nothing can be scored there is an error and no number", folds.empty),
    Check("outside", "a task writes nothing and opens no connection", outside),
)
DECLARED = frozenset({"names", "settings"})
"""Checks that need no picture."""
