"""What an outcome must hold: rows, metrics, and nothing that a record cannot keep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness import aggregates
from harness.contract.findings import Failed
from harness.contract.same import value_of
from harness.contract.subject import Subject
from harness.documents import canonical_json
from harness.task import MetricSpec, Outcome

_MOST_COUNTS = 12


def outcome(subject: Subject) -> None:
    found = subject.outcome
    if not isinstance(found, Outcome):
        raise Failed("an Outcome", type(found).__name__)
    if "image_id" not in found.columns:
        raise Failed("a column image_id", ", ".join(found.columns) or "none")
    told: Mapping[str, Any] = {
        "resolved": dict(found.resolved),
        "details": dict(found.details),
        "counts": dict(found.counts),
    }
    for name, value in told.items():
        try:
            canonical_json(value)
        except (TypeError, ValueError) as error:
            raise Failed(f"`{name}` that strict JSON can hold", str(error)) from None


def metrics(subject: Subject) -> None:
    found = subject.compared()
    if not found.metrics:
        raise Failed("a metric", "none")
    for name, spec in found.metrics.items():
        _declared(name, spec)
        for column in (spec.column, *spec.others):
            if column not in found.columns:
                raise Failed(f"the column {column} that {name} is made of", "it is not there")
            if np.asarray(found.columns[column]).dtype.kind not in "fiub":
                raise Failed(f"numbers in the column {column} of {name}", "something else")
        if not np.isfinite(value_of(found, spec)):
            raise Failed(f"a finite {name}", f"{value_of(found, spec)} (of its own columns)")


def _declared(name: str, spec: MetricSpec) -> None:
    if not isinstance(spec.unit, str):
        raise Failed(f"a unit for {name} ('' where there is none)", repr(spec.unit))
    if not isinstance(spec.higher_is_better, bool):
        raise Failed(f"{name} to say whether higher is better", repr(spec.higher_is_better))
    if spec.aggregate not in aggregates.AGGREGATES:
        raise Failed(f"an aggregate for {name} that the harness knows", repr(spec.aggregate))


def rows(subject: Subject) -> None:
    found = subject.compared()
    ids = [str(each) for each in found.columns["image_id"]]
    role = "test" if "test" in subject.requests else list(subject.requests)[-1]
    known = [sample.id for sample in subject.roles[role].samples]
    if strange := [each for each in ids if each not in set(known)]:
        raise Failed(f"ids of {role}'s pictures", repr(strange[0]))
    if len(set(ids)) < len(ids):
        raise Failed("a row a picture", "an id that is there twice")
    if ids != [each for each in known if each in set(ids)]:
        raise Failed("rows in the data set's order", "another order")
    for name, column in found.columns.items():
        if len(column) != len(ids):
            raise Failed(f"{len(ids)} rows in the column {name}", str(len(column)))
    for name, spec in found.metrics.items():
        for column in (spec.column, *spec.others):
            values = np.asarray(found.columns[column]).astype(np.float64)
            if np.isinf(values).any():
                raise Failed(f"finite values in {column} (of {name})", "infinity")
            if np.isnan(values).any() and not spec.partial:
                raise Failed(
                    f"a value of {column} for every picture, or {name} with partial=True",
                    f"NaN in {int(np.isnan(values).reshape(len(ids), -1).any(1).sum())} rows",
                )
    left = len(known) - len(ids)
    if left and left not in _sums(found.counts):
        raise Failed(
            "counts that say why pictures have no row",
            f"{left} of {len(known)} without one, counts {dict(found.counts)}",
        )


def _sums(counts: Mapping[str, int]) -> set[int]:
    """What some of the counts come to together."""
    numbers = list(counts.values())[:_MOST_COUNTS]
    several = (itertools.combinations(numbers, size) for size in range(1, len(numbers) + 1))
    return {sum(some) for each in several for some in each}
