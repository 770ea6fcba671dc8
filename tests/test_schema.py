"""The result schema: what a record may say, and where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from result_examples import HEX, cell, facts, make

from harness import records
from harness.errors import HarnessError

# ------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_wherever_they_hide(value: float) -> None:
    with pytest.raises(ValidationError):
        make(score=value)
    with pytest.raises(ValidationError, match="JSON"):
        make(details={"grid": [{"bias": value}]})


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"schema_version": 2},
        {"metrics": {"corloc": {"value": 1.0}}},
        {"limit": -1},
        {"counts": {"skipped": 1.5}},
        {"details": {"tuple": (1, 2)}},
        {"details": {"array": np.zeros(2)}},
        {"provenance": {**facts()["provenance"], "started": "yesterday"}},
        {"provenance": {**facts()["provenance"], "started": "2025-01-01T00:00:00+01:00"}},
        {"model": {**facts()["model"], "weights": "unknown"}},
        {"model": {**facts()["model"], "entry_digest": HEX.upper()}},
    ],
)
def test_what_the_schema_does_not_know_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**change)


def test_an_interval_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValidationError, match="runs backwards"):
        records.Metric(value=1.0, low=2.0, high=1.0, unit="%", higher_is_better=True)


@pytest.mark.parametrize(
    "partial",
    [
        {"limit": 50},
        {"model": {**facts()["model"], "weights": "random"}},
        {"bad_pictures": [{"id": "a", "reason": "damaged"}]},
    ],
)
def test_a_partial_run_cannot_pass_for_a_complete_one(partial: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be named in `variant`"):
        make(**partial)
    assert not make(**partial, variant={"partial": True}).complete
    assert make().complete


# ---------------------------------------------------------------------------------- where it goes


def test_a_complete_run_has_the_protocols_own_name_and_any_other_a_hash(tmp_path: Path) -> None:
    folder = tmp_path / "voc07" / "lost" / "vits"
    assert cell(tmp_path) == cell(tmp_path, {}) == folder / "lost.json"
    limited = cell(tmp_path, {"limit": 50, "set": {"facet": "value"}})
    assert limited == cell(tmp_path, {"set": {"facet": "value"}, "limit": 50})
    stem, digits = limited.stem.split("~")
    assert (stem, len(digits), int(digits, 16) >= 0) == ("lost", 8, True)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.text(), min_size=1))
def test_two_variants_share_a_file_only_if_they_are_equal(variant: dict[str, Any]) -> None:
    out = Path("results")
    assert cell(out, variant) != cell(out)
    assert cell(out, variant) != cell(out, {**variant, "one more": 1, "and": 2})


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b", "a~b", "/etc", "a\n"])
@pytest.mark.parametrize("place", range(4))
def test_a_name_that_could_leave_the_results_folder_is_refused(name: str, place: int) -> None:
    names = ["voc07", "lost", "vits", "lost"]
    names[place] = name
    dataset, task, model, protocol = names
    with pytest.raises(HarnessError, match="cannot be used: a name is made of"):
        records.record_path(Path("results"), dataset, task, model, protocol)
