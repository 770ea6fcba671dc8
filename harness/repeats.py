"""One outcome of several: the same cell run with one seed after another (``--seeds N``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.aggregates import complete, values
from harness.errors import HarnessError
from harness.task import MetricSpec, Outcome


def over_seeds(outcomes: Sequence[Outcome], seeds: Sequence[int]) -> Outcome:
    """What the ``outcomes`` of ``seeds`` come to. One is left as it is.

    A picture's value is its mean over seeds (where it has none with one of them, it has none), so
    that intervals are over pictures as ever. What another aggregate is made of, seeds have side by
    side, as draws do. The standard deviation over seeds stands with each metric, and each seed's
    score, with its own details, in ``details``. Other columns, counts and resolved values are kept
    where all seeds agree on them: which class was predicted is not.

    Raises ``HarnessError`` where the seeds scored different pictures.
    """
    first = outcomes[0]
    if len(outcomes) == 1:
        return first
    for outcome in outcomes[1:]:
        if not np.array_equal(outcome.columns["image_id"], first.columns["image_id"]):
            raise HarnessError("the pictures that could be scored differ from seed to seed")
    shared = [name for name in first.metrics if all(name in o.metrics for o in outcomes)]
    columns: dict[str, Any] = {}
    specs = [first.metrics[name] for name in shared]
    averaged = {spec.column for spec in specs if spec.aggregate == "mean"}
    beside = {spec.column for spec in specs if spec.aggregate != "mean"}
    # Of what goes with it (which pixels are labelled so, and predicted so), what seeds differ in.
    beside |= {
        name
        for spec in specs
        for name in spec.others
        if not all(_same(outcome.columns[name], first.columns[name]) for outcome in outcomes)
    }
    for name, column in first.columns.items():
        if name in averaged:
            columns[name] = np.mean([_numbers(o.columns[name]) for o in outcomes], axis=0)
        elif name in beside:
            columns[name] = np.concatenate([o.columns[name] for o in outcomes], axis=1)
        elif all(_same(outcome.columns.get(name), column) for outcome in outcomes):
            columns[name] = column
    scores = {
        name: [_score(outcome, first.metrics[name]) for outcome in outcomes] for name in shared
    }
    metrics = {
        name: replace(first.metrics[name], sd=float(np.std(scores[name], ddof=1)))
        for name in shared
    }
    return Outcome(
        columns,
        metrics,
        _agreed([outcome.counts for outcome in outcomes]),
        _agreed([outcome.resolved for outcome in outcomes]),
        first.selected_on,
        {
            "seeds": list(seeds),
            "scores": scores,
            "by_seed": [
                {**outcome.details, "resolved": dict(outcome.resolved)} for outcome in outcomes
            ],
        },
    )


def _score(outcome: Outcome, spec: MetricSpec) -> float:
    columns = [np.asarray(outcome.columns[name]) for name in (spec.column, *spec.others)]
    if spec.partial:
        columns = complete(columns)
    return float(np.nanmean(values(spec.aggregate, columns))) * spec.scale


def _numbers(column: object) -> NDArray[np.float64]:
    return np.asarray(column, dtype=np.float64)


def _same(ours: object, theirs: object) -> bool:
    return ours is not None and np.array_equal(np.asarray(ours), np.asarray(theirs))


def _agreed(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: value
        for key, value in facts[0].items()
        if all(key in other and other[key] == value for other in facts)
    }
