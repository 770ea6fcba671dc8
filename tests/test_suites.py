"""Suites: what a file may say, and that a suite is its runs brought together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbone.vit import Backbone
from harness.cli import main
from harness.data.catalog import Catalog
from harness.documents import name_problem
from harness.errors import HarnessError
from harness.plan import plan
from harness.records import read
from harness.registry import Registry
from harness.suites import SHIPPED, Suites


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------ the shipped file


def test_the_demo_is_there_and_downloads_nothing() -> None:
    suite = Suites.load().suite("demo")
    assert suite.models == ("nano", "nano-reg4", "pixels", "chance")
    assert [str(run) for run in suite.runs] == [
        "lost on scenes-demo",
        "lost on scenes-demo (facet=value)",
        "tokencut on scenes-demo",
        "attention on scenes-few (models nano, nano-reg4)",
        "anatomy on scenes-few (models nano, nano-reg4; local-information; outliers=29.5)",
        "segmentation on scenes-few (models nano, nano-reg4, pixels; size=128; steps=200)",
        "segmentation on scenes-few (models nano, nano-reg4, pixels; knn-seg; size=128; "
        "memory=15000)",
        "depth on scenes-few (models nano, nano-reg4, pixels; size=128; steps=200; evaluated=none; "
        "farthest=25)",
        "knn, logistic on scenes-demo (resize=128; crop=128)",
        "linear on scenes-demo (resize=128; crop=128; min_steps=100)",
        "logistic on scenes-demo (models nano, nano-reg4; resize=128; crop=128; token=normal; "
        "outliers=29.5; draws=2; c_low=-3; c_high=2; c_count=11)",
        "logistic on scenes-demo (models nano, nano-reg4; resize=128; crop=128; token=outlier; "
        "outliers=29.5; draws=2; c_low=-3; c_high=2; c_count=11)",
        "logistic on scenes-demo (models nano, nano-reg4; resize=128; crop=128; token=register; "
        "draws=2; c_low=-3; c_high=2; c_count=11)",
        "zeroshot on scenes-demo (models nano-clip, nano-clip-reg4)",
        "text-retrieval on scenes-captions (models nano-clip, nano-clip-reg4)",
        "typographic on scenes-few (models nano-clip, nano-clip-reg4)",
        "zeroshot-seg on scenes-few (models nano-clip, nano-clip-reg4; size=128; "
        "templates=prompts; background=left out)",
    ]


@pytest.mark.parametrize("name", Suites.load().names())
def test_every_name_in_a_shipped_suite_is_known(name: str) -> None:
    assert name_problem(name) is None
    suites = Suites.load()
    assert suites.suite(name).note
    suites.check(name, Registry.load(), Catalog.load())


# ------------------------------------------------------------------------------------ the format


def test_a_users_file_adds_suites_and_replaces_those_of_the_same_name(tmp_path: Path) -> None:
    first = write(tmp_path, "demo: {runs: [{tasks: [lost]}]}\n", "first.yaml")
    second = write(tmp_path, "more: {models: [vits], runs: [{tasks: [lost]}]}\n", "second.yaml")
    suites = Suites.load([first, second])
    assert suites.suite("demo").models == (), "replaced whole, not merged"
    assert suites.names() == [*Suites.load().names(), "more"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: lost\n", 1, "a: a suite is a mapping"),
        ("a: {note: x}\n", 1, "a.runs: Field required"),
        ("a:\n  runs: []\n", 2, "a.runs: Tuple should have at least 1 item"),
        ("a:\n  runs:\n    - {tasks: []}\n", 3, "a.runs.0.tasks: "),
        ("a:\n  runs:\n    - {datasets: [voc07]}\n", 3, "a.runs.0.tasks: Field required"),
        ("a:\n  runs:\n    - {tasks: lost}\n", 3, "a.runs.0.tasks: a list is needed"),
        ("a:\n  runs: {tasks: [lost]}\n", 2, "a.runs: a list is needed"),
        ("a:\n  runs:\n    - {tasks: [lost], dataset: [x]}\n", 3, "did you mean datasets?"),
        ("a:\n  model: [vits]\n  runs: [{tasks: [lost]}]\n", 2, "did you mean models?"),
        ("a:\n  name: b\n  runs: [{tasks: [lost]}]\n", 2, "a.name: unknown key"),
        ("a:\n  models: [x, x]\n  runs: [{tasks: [lost]}]\n", 2, "'x' stands twice"),
        ("a:\n  models: [1]\n  runs: [{tasks: [lost]}]\n", 2, "a.models.0: "),
        ("a:\n  runs:\n    - tasks: [lost]\n      settings: {bias: .nan}\n", 3, "a.runs.0: "),
        ("a:\n  runs:\n    - tasks: [lost]\n      settings: [k]\n", 4, "a.runs.0.settings: "),
        ("../a: {runs: [{tasks: [lost]}]}\n", 1, "a name is made of"),
        ("a: {runs: [{tasks: [lost]}]}\na: {}\n", 2, "'a' stands twice"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HarnessError) as caught:
        Suites.load([path])
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a:\n  models: [vits, vits-reg]\n  runs: [{tasks: [lost]}]\n", 2, "mean vits-reg4"),
        ("a:\n  runs:\n    - {tasks: [los]}\n", 3, "runs.0.tasks.0: no task 'los': did you mean"),
        ("a:\n  runs:\n    - {tasks: [lost], datasets: [voc7]}\n", 3, "did you mean voc07"),
        ("a:\n  runs:\n    - {tasks: [lost], protocols: [lost-swep]}\n", 3, "mean lost-swept"),
        ("a:\n  runs:\n    - {tasks: [lost], settings: {bais: 1}}\n", 3, "did you mean bias"),
        ("a:\n  runs:\n    - {tasks: [lost], settings: {k: 0}}\n", 3, "a.runs.0: protocol lost: k"),
    ],
)
def test_an_unknown_name_in_a_suite_is_told_with_file_and_line(
    tmp_path: Path, text: str, line: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    arguments = ["--suites", str(path), "--out", str(tmp_path / "out"), "--dry-run"]
    models = [] if "models" in text else ["--model", "vits"]
    assert main(["run", "--suite", "a", *models, *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"harness: {path}:{line}: ")
    assert says in told


# --------------------------------------------------------------------------------------- running

BOTH = """
both:
  note: two runs that overlap
  models: [tiny, tiny-reg4]
  runs:
    - {tasks: [lost], datasets: [generated]}
    - {tasks: [lost], datasets: [generated], protocols: [lost, lost-swept-on-test]}
    - {tasks: [lost], datasets: [generated], settings: {k: 5}}
quick:
  models: [tiny, tiny-reg4]
  runs:
    - {tasks: [lost], datasets: [generated]}
    - {tasks: [lost], datasets: [generated], settings: {k: 5}}
    - {tasks: [lost], datasets: [generated], protocols: [lost]}
any:
  runs:
    - {tasks: [lost], datasets: [generated], settings: {k: 7}}
"""


@pytest.fixture
def command(tiny_models: Path, tmp_path: Path) -> list[str]:
    files = ["--models", str(tiny_models), "--suites", str(write(tmp_path, BOTH))]
    machine = ["--workers", "0", "--device", "cpu"]
    return ["run", "--out", str(tmp_path / "out"), *files, *machine]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_cells_of_one_model_stand_together_and_each_is_there_once(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--suite", "both", "--suite", "any", "--model", "tiny-reg4,tiny",
                 "--dry-run", "--json"]) == 0  # fmt: skip
    cells = [(cell["model"], Path(cell["path"]).stem) for cell in printed(capsys)]
    protocols = [protocol for model, protocol in cells if model == "tiny"]
    assert protocols[:2] == ["lost", "lost-swept-on-test"] and len(set(protocols)) == 4
    assert cells == [(model, p) for model in ("tiny-reg4", "tiny") for p in protocols]


def test_runs_of_a_suite_share_forward_passes_and_are_not_run_again(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    seen: list[int] = []
    original = Backbone.__call__

    def counted(self: Backbone, pixels: torch.Tensor, *rest: Any) -> Any:
        seen.append(len(pixels))
        return original(self, pixels, *rest)

    monkeypatch.setattr(Backbone, "__call__", counted)
    command += ["--limit", "3", "--suite", "quick"]
    assert main(command) == 0
    assert sum(seen) == 2 * 3, "one pass a model"
    shown = capsys.readouterr().out
    records = sorted((tmp_path / "out").glob("*/*/*/*.json"))
    assert len(records) == 4
    assert all(f"record: {path}\n" in shown for path in records)
    assert read(records[0]).provenance.command == ["harness", *command]
    assert main(command) == 0
    assert sum(seen) == 2 * 3, "all was done"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name a --task and a --model, or a --suite"),
        (["--task", "lost"], "name a --task and a --model, or a --suite"),
        (["--model", "tiny"], "name a --task and a --model, or a --suite"),
        (["--suite", "both", "--task", "lost"], "--task: not with --suite"),
        (["--suite", "both", "--dataset", "generate"], "no data set 'generate': did you mean"),
        (["--suite", "both", "--protocol", "lost"], "--protocol: not with --suite"),
        (["--suite", "both", "--set", "k=1"], "--set: not with --suite"),
        (["--suite", "any"], "suite 'any' is for any model: name some with --model"),
        (["--suite", "bot"], "no suite 'bot': did you mean both"),
        (["--suite", ","], "--suite: at least one name"),
        (["--suite", "both", "--model", "tin"], "no model 'tin': did you mean tiny"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_message(
    command: list[str], arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_suite_can_be_listed_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, BOTH))
    assert main(["suites", "--suites", file, "--json"]) == 0
    assert [suite["name"] for suite in printed(capsys)] == [
        *Suites.load().names(),
        "both",
        "quick",
        "any",
    ]
    assert main(["describe", "both", "--suites", file, "--json"]) == 0
    facts = printed(capsys)
    assert facts["models"] == ["tiny", "tiny-reg4"]
    assert facts["runs"][2]["settings"] == {"k": 5}
    assert main(["describe", "both", "--suites", file]) == 0
    assert "lost on generated (lost, lost-swept-on-test)" in capsys.readouterr().out
    assert main(["suites", "--suites", file]) == 0
    assert "(name them with --model)" in " ".join(capsys.readouterr().out.split())


def test_a_run_may_be_of_some_models_alone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
some:
  models: [tiny, tiny-reg4]
  runs:
    - {tasks: [lost], datasets: [generated]}
    - {tasks: [lost], datasets: [generated], settings: {k: 5}, models: [tiny-reg4]}
"""
    command += ["--suites", str(write(tmp_path, text)), "--suite", "some", "--dry-run", "--json"]
    assert main(command) == 0
    assert [cell["model"] for cell in printed(capsys)] == ["tiny", "tiny-reg4", "tiny-reg4"]
    assert main([*command, "--model", "tiny"]) == 0
    assert [cell["model"] for cell in printed(capsys)] == ["tiny", "tiny"]


def test_data_sets_that_are_named_take_the_place_of_the_suites_own(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "classification", "--model", "tiny", "--dataset", "scenes-demo"]
    assert main([*command, *arguments, "--dry-run", "--json"]) == 0
    cells = printed(capsys)
    assert {cell["dataset"] for cell in cells} == {"scenes-demo"}
    assert [(cell["task"], Path(cell["path"]).stem.split("~")[0]) for cell in cells] == [
        ("knn", "dinov2-knn"),
        ("linear", "linear"),
        ("logistic", "dinov2-logistic"),
        ("logistic", "dinov2-logistic"),  # C chosen by the mean per class
    ]


def test_a_single_run_plans_as_it_would_in_a_suite(tiny_models: Path, tmp_path: Path) -> None:
    suites = Suites.load([write(tmp_path, BOTH)])
    common: dict[str, Any] = {"out": tmp_path / "out", "model_files": [tiny_models]}
    runs = suites.options(["both"], ["tiny"], [], common)
    paths = [cell.path for cell in plan(*runs)]
    apart = dict.fromkeys(cell.path for run in runs for cell in plan(run))
    assert paths == list(apart)


def test_the_shipped_file_is_where_the_package_is() -> None:
    assert SHIPPED.is_file()
