"""The workflow and the examples of docs/ci.md are what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.arguments import parser
from harness.gate.cells import STATES
from harness.gate.gate_file import Gate, States

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "regression.yml"
DOCS = (ROOT / "docs" / "ci.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS, re.M | re.S)


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def workflows() -> list[Any]:
    examples = [text for text in blocks("yaml") if "runs-on" in text]
    assert len(examples) == 1
    return [yaml.safe_load(text) for text in (WORKFLOW.read_text(), *examples)]


@pytest.mark.parametrize("place", [0, 1])
def test_actions_are_pinned_to_a_version_and_rights_are_named(place: int) -> None:
    workflow = workflows()[place]
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", each) for each in used)
    rights = workflow["permissions"]
    assert rights.pop("contents") == "read" and set(rights) <= {"pull-requests"}
    assert not any("${{" in step.get("run", "") for step in steps(workflow)), "nothing is injected"


@pytest.mark.parametrize("place", [0, 1])
def test_every_command_of_the_workflows_can_be_typed(place: int) -> None:
    typed = [
        shlex.split(line)
        for step in steps(workflows()[place])
        for line in step.get("run", "").splitlines()
        if re.match(r"(\.venv/bin/)?harness ", line)
    ]
    assert typed
    for words in typed:
        parser().parse_args(words[1:])


def test_this_repositorys_workflow_gates_the_demo_and_always_tells() -> None:
    workflow = workflows()[0]
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    found = steps(workflow)
    (gate,) = (step["run"] for step in found if "harness regress --" in step.get("run", ""))
    options = parser().parse_args(shlex.split(gate)[1:])
    assert str(options.baseline) == "results/baseline" and options.format == "github"
    assert f"--out {options.candidate}" in (ROOT / "Makefile").read_text()
    (summary,) = (step for step in found if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    assert summary["if"] == "always()" and str(options.out) in summary["run"]


def test_the_gate_file_of_the_docs_is_one_and_names_every_key(tmp_path: Path) -> None:
    (text,) = (text for text in blocks("yaml") if "tolerance:" in text)
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    gate = Gate.load(path)
    assert gate.speed == 0.8 and len(gate.ignore) == 1
    assert len(gate.tolerance) == len(Gate.load().tolerance) + 3
    assert set(yaml.safe_load(text)["states"]) == set(States.model_fields)


def test_the_docs_name_every_state_and_what_the_shipped_gate_makes_of_it() -> None:
    rows = dict(re.findall(r"^\| ([a-z ]+) \| .* \| (fails|passes|told|warns) \|$", DOCS, re.M))
    assert set(rows) == set(STATES)
    told = {"fail": "fails", "warn": "warns", "ignore": "told"}
    gate = Gate.load()
    for name in States.model_fields:
        assert rows[name.replace("_", " ")] == told[gate.action(name)], name


def test_the_first_commands_of_the_docs_can_be_typed() -> None:
    lines = blocks("")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        parser().parse_args(shlex.split(line.partition(" >>")[0])[1:])


def test_links_of_the_docs_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", DOCS)
    assert links and all((ROOT / "docs" / link).exists() for link in links)
