"""Every check of the contract passes a task that keeps it, and fails one that does not."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import broken
import broken_folds
import pytest
from norm_task import Norm, NormProtocol, with_evaluation, with_protocol

import harness.task_names
from harness import load_backbone
from harness.backbone.vit import Backbone
from harness.cli import main
from harness.contract import check as checking
from harness.contract import declared
from harness.contract.check import Trial, check, checked
from harness.contract.checks import CHECKS
from harness.contract.findings import Finding, find
from harness.contract.painted import painted
from harness.contract.subject import Subject
from harness.errors import HarnessError
from harness.registry import Registry
from harness.task import Task
from harness.task_names import find_task, task_names

BY_NAME = {each.name: each for each in CHECKS}
BROKEN: dict[str, list[tuple[Any, str]]] = {
    "names": [
        (broken.BadName, "'nor m'"),
        (broken.Stranger, "'no-entry-point'"),
        (broken.Unsummed, "' '"),
        (lambda: with_protocol(NormProtocol(version="first")), "'first'"),
        (lambda: with_protocol(NormProtocol(), under="other"), "other"),
    ],
    "settings": [
        (lambda: with_protocol(broken.Untyped()), "Any"),
        (lambda: with_protocol(broken.Loose()), "a list"),
        (lambda: with_protocol(broken.Thawed()), "it can be set"),
        (lambda: with_protocol(broken.Unhashed()), "left out"),
        (lambda: with_protocol(broken.HalfHashed()), "the same"),
        (lambda: with_protocol(broken.Undescribed()), "no docstring"),
    ],
    "requests": [
        (broken.Forgetful, "others"),
        (broken.Greedy, "'train'"),
        (broken.Silent, "none"),
        (broken.Crashing, "Error"),
    ],
    "outcome": [
        (lambda: with_evaluation(broken_folds.NoIds), "norm"),
        (lambda: with_evaluation(broken_folds.NotJson), "not JSON compliant"),
        (lambda: with_evaluation(broken_folds.Raises), "KeyError: 'norm' (broken_folds.py:"),
    ],
    "metrics": [
        (lambda: with_evaluation(broken_folds.NoColumn), "not there"),
        (lambda: with_evaluation(broken_folds.NoUnit), "None"),
        (lambda: with_evaluation(broken_folds.NoDirection), "None"),
        (lambda: with_evaluation(broken_folds.NoAggregate), "'median'"),
    ],
    "rows": [
        (lambda: with_evaluation(broken_folds.NoValue), "NaN in 1 rows"),
        (lambda: with_evaluation(broken_folds.WrongIds), "'test-000.png'"),
        (lambda: with_evaluation(broken_folds.AsTheyCame), "another order"),
        (lambda: with_evaluation(broken_folds.Uncounted), "2 of 12"),
        (lambda: with_evaluation(broken_folds.Short), "1"),
    ],
    "seed": [
        (lambda: with_evaluation(broken_folds.Drawing), "when run again"),
        (lambda: with_evaluation(broken_folds.Seeded), "with another seed"),
    ],
    "shared": [(lambda: with_evaluation(broken_folds.InPlace), "changed numbers")],
    "batch": [(lambda: with_evaluation(broken_folds.OfTheBatch), "with a forward batch of 1")],
    "arrival": [(lambda: with_evaluation(broken_folds.OfTheRow), "the other way round")],
    "registers": [(lambda: with_evaluation(broken_folds.Pooled), "with other register values")],
    "layout": [(lambda: with_evaluation(broken_folds.Sliced), "registers are a suffix")],
    "state": [(lambda: with_evaluation(broken_folds.Stateless), "in the middle of test")],
    "merge": [(lambda: with_evaluation(broken_folds.LastOnly), "two halves")],
    "bad picture": [(lambda: with_evaluation(broken_folds.Counting), "pictures are missing")],
    "empty": [(lambda: with_evaluation(broken_folds.Stubborn), "an outcome of 0 pictures")],
    "outside": [
        (lambda: with_evaluation(broken_folds.Writing), "norms.txt"),
        (lambda: with_evaluation(broken_folds.Calling), "socket.connect"),
    ],
}
CASES = [
    pytest.param(name, make, said, id=f"{name}-{number}")
    for name, cases in BROKEN.items()
    for number, (make, said) in enumerate(cases)
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("nano-reg4", device="cpu")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tasks here are known as if a package had brought them, and write where nothing lies."""
    names = (*task_names(), "norm", "nor m")
    monkeypatch.setattr(declared, "task_names", lambda: names)
    monkeypatch.chdir(tmp_path)


def subject(made: Task[Any], backbone: Backbone) -> Subject:
    (protocol,) = made.protocols.values()
    entry = Registry.load().entry("nano-reg4")
    return Subject(made, protocol, backbone, entry, {"test": painted("a class")["test"]})


def found(name: str, made: Task[Any], backbone: Backbone) -> Finding:
    return find(BY_NAME[name], subject(made, backbone))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_a_task_that_keeps_the_contract_passes(name: str, backbone: Backbone) -> None:
    finding = found(name, Norm(), backbone)
    assert finding.state == "passed", finding


@pytest.mark.parametrize(("name", "make", "said"), CASES)
def test_a_task_that_breaks_the_contract_is_told_what_was_expected_and_found(
    name: str, make: Any, said: str, backbone: Backbone
) -> None:
    finding = found(name, make(), backbone)
    assert finding.state == "failed"
    assert finding.expected and said in (finding.got or "")
    assert finding.contract == BY_NAME[name].contract


def test_every_check_is_seen_to_fail() -> None:
    assert list(BROKEN) == list(BY_NAME)


def test_what_a_task_says_it_does_not_offer_is_not_applicable(backbone: Backbone) -> None:
    merge = found("merge", with_evaluation(broken_folds.Unmergeable), backbone)
    state = found("state", with_evaluation(broken_folds.NoState), backbone)
    assert merge.state == state.state == "not applicable"
    assert "mergeable = False" in str(merge.reason) and "no state" in str(state.reason)


def test_without_registers_there_is_nothing_to_permute(backbone: Backbone) -> None:
    plain = subject(Norm(), load_backbone("nano", device="cpu"))
    for name in ("registers", "layout"):
        assert find(BY_NAME[name], plain).reason == "nano has no registers"


def test_temporary_files_may_be_written(backbone: Backbone) -> None:
    assert found("outside", with_evaluation(broken_folds.Scratching), backbone).state == "passed"


def test_a_check_that_has_no_outcome_says_so(backbone: Backbone) -> None:
    finding = found("batch", with_evaluation(broken_folds.Raises), backbone)
    assert finding.state == "not applicable" and "see outcome" in str(finding.reason)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "lots"}, "did you mean lost"),
        ({"protocols": ["loost"]}, "did you mean lost"),
        ({"settings": {"bais": 1}}, "did you mean bias"),
        ({"model": "nan"}, "did you mean nano"),
        ({"dataset": "generatd"}, "did you mean generated"),
        ({"limit": 0}, "--limit 0: at least 1"),
    ],
)
def test_names_that_are_not_there_are_bad_input(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        check(Trial(**{"task": "lost", "protocols": ["lost"], **change}))


def test_a_protocol_that_is_too_long_or_too_large_says_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear = find_task("linear")
    monkeypatch.setattr(type(linear), "checked_with", {})
    with pytest.raises(HarnessError, match=r"reads 1,600,000 pictures of train.*--set"):
        check(Trial("linear", ["dinov2-linear"], {"steps": 12_500, "batch_size": 128}))
    knn = find_task("knn")
    monkeypatch.setattr(type(knn), "checked_with", {})
    with pytest.raises(HarnessError, match=r"so few pictures.*--set k="):
        check(Trial("knn"))


def test_a_data_set_that_says_nothing_to_a_task_is_told() -> None:
    findings = check(Trial("knn", dataset="generated", limit=2))
    reasons = {each.reason for each in findings if each.state == "not applicable"}
    assert len(reasons) == 1 and "no train split" in str(reasons)
    assert {each.check for each in findings if each.state == "passed"} == {"names", "settings"}


def test_the_command_prints_and_its_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "CHECKS", (BY_NAME["names"], BY_NAME["rows"]))
    monkeypatch.setattr(checking, "find_task", lambda name: Norm())
    assert main(["tasks", "check", "norm"]) == 0
    assert "2 passed, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr(checking, "find_task", lambda name: with_evaluation(broken_folds.Uncounted))
    assert main(["tasks", "check", "norm", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["failed"]) == (1, 1)
    assert told["findings"][1]["got"].startswith("2 of 12")
    assert main(["tasks", "check", "norm"]) == 1
    shown = capsys.readouterr().out
    assert "expected: counts that say why" in shown and "docs/tasks.md" in shown


def test_the_command_needs_a_name_and_lists_without_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tasks", "check"]) == 2
    assert "which?" in capsys.readouterr().err
    assert main(["tasks", "list", "lost"]) == 2
    assert "harness describe" in capsys.readouterr().err
    assert main(["tasks"]) == 0
    assert "tokencut" in capsys.readouterr().out


def test_a_strangers_broken_package_does_not_hide_the_other_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = EntryPoints(
        [
            EntryPoint("lost", "harness.tasks.lost:LOST", "harness.tasks"),
            EntryPoint("gone", "no_such_package:TASK", "harness.tasks"),
            EntryPoint("none", "broken:NormProtocol", "harness.tasks"),
            EntryPoint("bare", "broken:BARE", "harness.tasks"),
            EntryPoint("empty", "broken:EMPTY", "harness.tasks"),
        ]
    )
    monkeypatch.setattr(harness.task_names, "entry_points", lambda group: points)
    task_names.cache_clear()
    try:
        assert main(["tasks", "--json"]) == 0
        told = capsys.readouterr()
        assert main(["tasks", "check", "empty"]) == 2
    finally:
        task_names.cache_clear()
    assert [each["name"] for each in json.loads(told.out)] == ["lost"]
    for said in ("'gone'", "'none'", "has no summary and no protocols", "is no mapping of names"):
        assert said in told.err
    assert "at least one" in capsys.readouterr().err


def test_requests_of_another_kind_are_a_failure_and_no_crash(backbone: Backbone) -> None:
    entry = Registry.load().entry("nano-reg4")
    (protocol,) = Norm().protocols.values()
    for made in (broken.Listing(), broken.Refusing()):
        findings = checked(made, protocol, backbone, entry, [lambda: painted("a class")])
        states = {each.check: each.state for each in findings}
        assert states["requests"] == "failed" and states["names"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("name", task_names())
def test_every_built_in_task_keeps_the_contract(name: str) -> None:
    findings = check(Trial(name))
    failed = [each for each in findings if each.state == "failed"]
    assert not failed
    unsaid = [each for each in findings if each.state == "not applicable"]
    assert {each.check for each in unsaid} <= {"merge", "registers", "arrival"}
