"""Find a task, and pictures for which it is applicable, and run every check on its protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.contract.checks import CHECKS, DECLARED
from harness.contract.findings import Finding, find
from harness.contract.painted import LABELLINGS, painted
from harness.contract.subject import Subject
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.language.source import cannot_read, having
from harness.options import Options
from harness.plan import open_dataset, protocols_of
from harness.progress import Progress, Silent
from harness.registry import ModelEntry, Registry, Weights
from harness.task import NotApplicable, Protocol, Task
from harness.task_names import find_task

Pictures = Callable[[], Mapping[Role, Dataset]]
"""Data sets by role, which may have to be painted."""


MODEL = "nano-reg4"
"""With which a task is checked where no model is named; one that needs texts, with the last of the
shipped nano models that read them."""


@dataclass(frozen=True)
class Trial:
    """What is to be checked, with which model and, unless some are painted, on which pictures."""

    task: str
    protocols: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    model: str = MODEL
    dataset: str | None = None
    limit: int = 24
    weights: Weights = "released"
    model_files: Sequence[Path] = ()
    dataset_files: Sequence[Path] = ()
    data_root: Path | None = None
    allow_code: bool = False


def check(trial: Trial, progress: Progress | None = None) -> list[Finding]:
    """Every finding of every protocol of a task, on the CPU. ``progress`` is told of each.

    Raises ``HarnessError`` for names that are not there, settings that no protocol has, and a
    protocol that these pictures are too few for, or that takes too long.
    """
    task = find_task(trial.task)
    protocols = _protocols(task, trial)
    registry = Registry.load(trial.model_files, trial.allow_code)
    entry = _entry(task, trial, registry)
    candidates = _candidates(trial)
    backbone = load_backbone(entry, "cpu", trial.weights, registry=registry)
    progress = progress or Silent()
    findings = []
    for protocol in protocols:
        progress.note(f"{trial.task}, protocol {protocol.name}: {len(CHECKS)} checks")
        findings += checked(task, protocol, backbone, entry, candidates, trial.weights)
    return findings


def checked(
    task: Task[Any],
    protocol: Protocol,
    backbone: Backbone,
    entry: ModelEntry,
    candidates: Sequence[Pictures],
    weights: Weights = "released",
) -> list[Finding]:
    """One protocol, on the first of ``candidates`` for which the task is applicable."""
    reasons = []
    for pictures in candidates:
        roles = task.pictures(pictures())
        subject = Subject(task, protocol, backbone, entry, roles, weights=weights)
        try:
            # Asked here for whether it is applicable; what else is wrong the checks will tell.
            subject.ask()
        except NotApplicable as error:
            reasons.append(str(error))
            continue
        except HarnessError as error:
            raise HarnessError(
                f"protocol {protocol.name} cannot be checked on so few pictures: {error} (or say "
                "so in the task's checked_with)"
            ) from None
        except Exception:  # the check `requests` tells it
            return [find(each, subject) for each in CHECKS]
        subject.refuse_long()
        return [find(each, subject) for each in CHECKS]
    why = "; ".join(dict.fromkeys(reasons))
    told = f"{why} (--dataset names other pictures, --model another model)"
    roles = task.pictures(candidates[0]())
    subject = Subject(task, protocol, backbone, entry, roles, weights=weights)
    return [
        find(each, subject)
        if each.name in DECLARED
        else Finding(protocol.name, each.name, "not applicable", each.contract, reason=told)
        for each in CHECKS
    ]


def _entry(task: Task[Any], trial: Trial, registry: Registry) -> ModelEntry:
    entry = registry.entry(trial.model)
    if (why := cannot_read(task, entry, registry)) is None:
        return entry
    able = [registry.entry(name) for name in having(registry)]
    shipped = [each for each in able if each.text is not None and each.text.nano is not None]
    if trial.model != MODEL or not shipped:
        raise HarnessError(f"task {task.name} with {entry.name}: {why}; --model names another")
    return shipped[-1]


def _protocols(task: Task[Any], trial: Trial) -> list[Protocol]:
    """Each with the settings that the task is checked with, and those that were given."""
    names = trial.protocols or list(task.protocols)
    found = []
    for protocol in protocols_of(task, [task], names, {}):
        settings = {**task.checked_with.get(protocol.name, {}), **trial.settings}
        found.append(protocol.changed(settings) if settings else protocol)
    return found


def _candidates(trial: Trial) -> list[Pictures]:
    wanted = Options(tasks=[trial.task], models=[trial.model], limit=trial.limit)
    if trial.dataset is None:
        return [partial(painted, labelling) for labelling in LABELLINGS]
    catalog = Catalog.load(trial.dataset_files, trial.data_root)
    roles = open_dataset(catalog, trial.dataset, wanted).roles
    return [lambda: roles]
