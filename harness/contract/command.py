"""``harness tasks``: list them, or check that one keeps the contract."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.typed import names as typed_names
from harness.typed import settings as typed_settings

if TYPE_CHECKING:
    from harness.contract.findings import Finding

EXIT_KEPT, EXIT_BROKEN = 0, 1


def tasks(options: argparse.Namespace) -> int:
    """What was typed after ``harness tasks``. 0, or 1 where a check failed."""
    if options.action == "check":
        return _check(options)
    if options.name:
        raise HarnessError(f"harness tasks list {options.name}: `harness describe` tells of one")
    from harness import terminal
    from harness.describe import describe_task
    from harness.task_names import find_task, task_names

    facts = []
    for name in task_names():
        try:
            facts.append(describe_task(find_task(name)))
        except HarnessError as error:  # a stranger's package is not to hide the other tasks
            print(f"harness: {error}", file=sys.stderr)
    if options.json:
        print(_json(facts))
    else:
        terminal.show_tasks(facts)
    return EXIT_KEPT


def _check(options: argparse.Namespace) -> int:
    from harness.contract.check import Trial, check
    from harness.progress import Silent, for_stream

    if not options.name:
        raise HarnessError("harness tasks check NAME: which? `harness tasks` lists them")
    trial = Trial(
        task=options.name,
        protocols=typed_names("protocol", options.protocol),
        settings=typed_settings(options.set),
        model=options.model,
        dataset=options.dataset,
        limit=options.limit,
        weights=options.weights,
        model_files=options.models,
        allow_code=options.allow_code,
        dataset_files=options.datasets,
        data_root=options.data_root,
    )
    with Silent() if options.json else for_stream() as progress:
        findings = check(trial, progress)
    if options.json:
        print(_json(summary(options.name, findings)))
    else:
        _show(options.name, findings)
    return EXIT_BROKEN if any(each.state == "failed" for each in findings) else EXIT_KEPT


def summary(task: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """JSON-able: how many there are of each kind, and all of them."""
    return {"task": task, **_counts(findings), "findings": [each.facts() for each in findings]}


def _counts(findings: Sequence[Finding]) -> Mapping[str, int]:
    states: list[str] = [each.state for each in findings]
    kinds = "passed", "failed", "not applicable"
    return {kind.replace(" ", "_"): states.count(kind) for kind in kinds}


def _show(task: str, findings: Sequence[Finding]) -> None:
    from rich.markup import escape

    from harness.console import plain_table, standard_output

    console = standard_output()
    for protocol in dict.fromkeys(each.protocol for each in findings):
        table = plain_table("check", "result", "what", title=f"{task}, protocol {protocol}")
        for each in findings:
            if each.protocol == protocol:
                table.add_row(each.check, each.state, escape(_words(each)))
        console.print(table)
    counts = _counts(findings)
    console.print(
        f"{counts['passed']} passed, {counts['failed']} failed, "
        f"{counts['not_applicable']} not applicable"
    )


def _words(finding: Finding) -> str:
    if finding.state == "failed":
        return (
            f"{finding.contract}\nexpected: {finding.expected}\ngot: {finding.got}\n"
            f"see {finding.docs}"
        )
    return finding.contract if finding.reason is None else finding.reason


def _json(facts: Any) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
