"""Runs through the feature store: what costs a forward pass, and what does not move a number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pytest

from harness import plan, run
from harness.backbone.vit import Precision, Read
from harness.cli import main
from harness.data.dataset import Role
from harness.data.views import CentreCrop
from harness.features.outliers import OutlierRule
from harness.features.select import Selector, TokenName
from harness.options import Options
from harness.progress import Silent
from harness.schema import Record
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

PICTURES = 6


class VectorProtocol(Protocol):
    name: str
    version: str = "1.0"
    token: TokenName = "global"
    layer: int = 3
    size: int = 56
    precision: Precision = "fp32"
    wants: Literal["vectors", "tokens too"] = "vectors"
    step_size: int | None = None

    @property
    def selector(self) -> Selector:
        rule = OutlierRule("mean+sd", 1.0) if self.token == "outlier" else None
        return Selector(self.token, self.layer, True, rule)


class VectorEvaluation(Evaluation):
    """The mean of every picture's vector, and nothing else."""

    def __init__(self, context: Context[VectorProtocol]) -> None:
        self.context, self.seen = context, dict[str, tuple[float, bool]]()
        self.steps: list[int] = []

    def update(self, role: Role, batch: Batch) -> None:
        protocol = self.context.protocol
        values, there = batch.selected[protocol.selector]
        assert protocol.wants == "vectors" or Read(0, "token", False) in batch.tokens
        self.steps.append(len(batch.ids))
        for row, picture in enumerate(batch.sample):
            assert batch.ids[picture] not in self.seen
            self.seen[batch.ids[picture]] = float(values[row].double().mean()), bool(there[row])

    def finish(self) -> Outcome:
        means, there = zip(*self.seen.values(), strict=True)
        columns = {"image_id": list(self.seen), "mean": np.array(means), "there": np.array(there)}
        specs = {"mean": MetricSpec("mean", "", True), "there": MetricSpec("there", "", True)}
        cutoffs = {str(rule.value): cutoff for rule, cutoff in self.context.cutoffs.items()}
        return Outcome(columns, specs, details={"cutoffs": cutoffs, "steps": self.steps})

    def state(self) -> object:
        return self.seen

    def load(self, state: Any) -> None:
        self.seen = state

    def merge(self, other: Self) -> None:
        self.seen |= other.seen


class Vectors(Task[VectorProtocol]):
    name: ClassVar[str] = "vectors"
    summary: ClassVar[str] = "vectors"
    protocols: Mapping[str, VectorProtocol] = {
        name: VectorProtocol(name=name, **facts)
        for name, facts in {
            "plain": {},
            "mean": {"token": "patch-mean"},
            "hungry": {"token": "center", "wants": "tokens too"},
            "outliers": {"token": "outlier"},
            "early-outliers": {"token": "outlier", "layer": 1},
            "stepped": {"token": "cls", "step_size": 5},
        }.items()
    }

    def requests(
        self, architecture: Any, datasets: Any, protocol: VectorProtocol, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        size = protocol.size
        request = TokenRequest(
            view=CentreCrop(size + 8, size),
            layers=(0,) if protocol.wants == "tokens too" else (),
            precision=protocol.precision,
            select=(protocol.selector,),
            step_size=protocol.step_size,
        )
        return {"test": request}

    def start(self, context: Context[VectorProtocol]) -> VectorEvaluation:
        return VectorEvaluation(context)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_task", lambda name: Vectors())


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def go(tiny_models: Path, tmp_path: Path) -> Any:
    """Run some protocols again, whatever is there, and give their records by name."""

    def run_them(*protocols: str, told: Told | None = None, **changes: Any) -> dict[str, Record]:
        given: dict[str, Any] = {
            "tasks": ["vectors"],
            "models": ["tiny-reg4"],
            "datasets": ["generated"],
            "protocols": protocols,
            "model_files": [tiny_models],
            "out": tmp_path / "out",
            "limit": PICTURES,
            "workers": 0,
            "device": "cpu",
            "overwrite": True,
        }
        options = Options(**{**given, **changes})
        records = [record for _, record in run.run(plan.plan(options), options, told)]
        return {record.protocol.name: record for record in records}

    return run_them


def passes(records: Mapping[str, Record]) -> dict[str, int]:
    return {name: record.cost.forward_passes for name, record in records.items()}


def numbers(records: Mapping[str, Record]) -> dict[str, Any]:
    return {name: record.metrics for name, record in records.items()}


def test_a_second_run_makes_no_forward_pass_and_gives_the_same_numbers(go: Any) -> None:
    first = go("plain", "mean")
    assert passes(first) == {"plain": PICTURES, "mean": PICTURES}
    again = go("plain", "mean")
    assert passes(again) == {"plain": 0, "mean": 0}
    assert again["plain"].cost.pictures == PICTURES
    assert numbers(first) == numbers(again) == numbers(go("plain", "mean", store=False))


def test_a_second_task_on_the_same_vectors_makes_none_either(go: Any) -> None:
    go("plain")
    assert passes(go("plain", settings={"precision": "fp16"})) == {"plain": 0}  # fp32 on a CPU
    assert passes(go("plain", settings={"size": 42})) == {"plain": PICTURES}
    assert passes(go("plain", weights="random")) == {"plain": PICTURES}
    assert passes(go("plain", seed=1)) == {"plain": 0}
    assert passes(go("plain", limit=5)) == {"plain": 5}


def test_without_the_store_nothing_is_read_or_kept(
    go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.features.store import default_folder

    go("plain", store=False)
    assert not default_folder().exists()
    go("plain")
    assert passes(go("plain", store=False)) == {"plain": PICTURES}


def test_what_wants_tokens_runs_and_fills_the_store_for_all_who_share(go: Any) -> None:
    assert passes(go("plain", "hungry")) == {"plain": PICTURES, "hungry": PICTURES}
    assert passes(go("plain")) == {"plain": 0}
    assert passes(go("plain", "hungry")) == {"plain": PICTURES, "hungry": PICTURES}


def test_cutoffs_of_outliers_are_kept_and_so_are_the_outliers(go: Any) -> None:
    first = go("outliers")
    assert passes(first) == {"outliers": 2 * PICTURES}
    again = go("outliers")
    assert passes(again) == {"outliers": 0}
    assert again["outliers"].details["cutoffs"] == first["outliers"].details["cutoffs"]
    assert numbers(first) == numbers(again) == numbers(go("outliers", store=False))


def test_a_damaged_cutoff_is_estimated_again(go: Any) -> None:
    from harness.features.store import default_folder

    first = go("outliers")
    (path,) = (default_folder() / "cutoffs").glob("*.json")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "cutoff": facts["cutoff"] * 2}))
    again = go("outliers")
    assert passes(again) == {"outliers": PICTURES} and numbers(first) == numbers(again)
    assert json.loads(path.read_text()) == facts


def test_one_rule_that_comes_to_two_cutoffs_is_not_mixed_up_in_one_pass(go: Any) -> None:
    alone = numbers(go("outliers", store=False)) | numbers(go("early-outliers", store=False))
    together = go("outliers", "early-outliers", store=False)
    cutoffs = [record.details["cutoffs"]["1.0"] for record in together.values()]
    assert cutoffs[0] != cutoffs[1]
    assert numbers(together) == alone


def test_steps_from_the_store_have_their_size(go: Any) -> None:
    assert go("stepped")["stepped"].details["steps"] == [5, 1]
    again = go("stepped")
    assert again["stepped"].details["steps"] == [5, 1] and passes(again) == {"stepped": 0}


def test_a_store_that_cannot_be_kept_is_told_once_and_fails_no_run(
    go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    told = Told()
    records = go("plain", "mean", "outliers", told=told)
    assert passes(records)["plain"] == PICTURES
    (note,) = told.notes
    assert "feature store" in note and "HARNESS_CACHE" in note


def test_a_plan_says_what_the_store_spares_and_takes(
    go: Any, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "run", "--task", "vectors", "--model", "tiny-reg4", "--dataset", "generated",
        "--models", str(tiny_models), "--out", str(tmp_path / "out"), "--device", "cpu",
        "--protocol", "plain,mean", "--dry-run", "--overwrite", "--limit", str(PICTURES),
    ]  # fmt: skip

    def cells(*more: str) -> list[tuple[int, int]]:
        assert main([*arguments, "--json", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        return [(cell["forward_passes_saved"], cell["bytes_stored"]) for cell in found]

    row = 4 * 48 + 4 * 13 + 1
    assert cells() == [(0, PICTURES * row)] * 2
    go("plain")
    assert cells() == [(0, 0), (0, PICTURES * row)]  # the mean needs the pass
    go("plain", "mean")
    assert cells() == [(PICTURES, 0)] * 2
    assert main([*arguments, "--json", "--rate", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passes"] == [] and found["totals"]["wall_seconds"] == 0
    assert found["totals"]["bytes_read"] == 2 * PICTURES * row
    assert cells("--weights", "random") == [(0, PICTURES * row)] * 2
    assert cells("--no-store") == [(0, 0)] * 2
    assert main(arguments) == 0
    assert "the feature store spares 6 of these passes" in capsys.readouterr().out


def test_a_plan_knows_stored_cutoffs(
    go: Any, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "run", "--task", "vectors", "--model", "tiny-reg4", "--dataset", "generated",
        "--models", str(tiny_models), "--out", str(tmp_path / "out"), "--device", "cpu",
        "--protocol", "outliers", "--dry-run", "--overwrite", "--limit", str(PICTURES), "--json",
    ]  # fmt: skip
    go("outliers")
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0]["forward_passes_saved"] == PICTURES
