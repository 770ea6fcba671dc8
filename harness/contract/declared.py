"""What a task and its protocols say of themselves, without a picture."""

from __future__ import annotations

import re
import warnings
from typing import Any

from pydantic import ValidationError

from harness.contract.findings import Failed, Skipped
from harness.contract.painted import Unlabelled
from harness.contract.subject import Subject
from harness.data.dataset import ROLES, Dataset, Role
from harness.documents import name_problem
from harness.errors import HarnessError
from harness.task import NotApplicable, Protocol, TokenRequest
from harness.task_names import task_names

_VERSION = re.compile(r"\d+\.\d+")
_CHANGED = "changed for the check"
_LOOSE = (Any, object)


def names(subject: Subject) -> None:
    task, protocol = subject.task, subject.protocol
    for kind, name in (("task", task.name), ("protocol", protocol.name)):
        if problem := name_problem(name):
            raise Failed(f"a {kind} name that a file can have: {problem}", repr(name))
    if task.name not in task_names():
        raise Failed("the entry point's name, as the task's", repr(task.name))
    if protocol.name not in task.protocols:
        raise Failed(
            f"`protocols` to map a protocol's own name ({protocol.name})",
            ", ".join(task.protocols),
        )
    if not _VERSION.fullmatch(protocol.version):
        raise Failed("a version such as 1.0", repr(protocol.version))
    if not task.summary.strip() or "\n" in task.summary:
        raise Failed("a summary of one line", repr(task.summary))


def settings(subject: Subject) -> None:
    protocol = subject.protocol
    if not (type(protocol).__doc__ or "").strip():
        raise Failed(f"{type(protocol).__name__} to say what its settings are", "no docstring")
    for name, field in type(protocol).model_fields.items():
        if field.annotation in _LOOSE:
            raise Failed(f"a type for the field {name}", f"{field.annotation}")
        _is_frozen(protocol, name)
        _is_hashed(protocol, name)
    try:
        protocol.changed({"no_such_setting": 1})
    except HarnessError:
        return
    raise Failed("a setting that is not there to be refused", "it was taken")


def _is_frozen(protocol: Protocol, name: str) -> None:
    value = getattr(protocol, name)
    try:
        setattr(protocol, name, value)
    except (ValidationError, AttributeError, TypeError):
        pass
    else:
        raise Failed(f"a frozen field {name}", "it can be set")
    try:
        hash(value)
    except TypeError:
        kind = type(value).__name__
        raise Failed(
            f"a value of {name} that nobody can change in place", f"a {kind} (a tuple would do)"
        ) from None


def _is_hashed(protocol: Protocol, name: str) -> None:
    if name not in protocol.settings():
        raise Failed(f"{name} among the settings that `harness describe` tells", "it is left out")
    other = protocol.model_copy(update={name: _CHANGED})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a text where a number was expected
        if other.hash() == protocol.hash():
            raise Failed(f"another hash where {name} is another", "the same")


def requests(subject: Subject) -> None:
    """Pure: asked twice it says the same, and the data sets stay as they are."""
    before = {role: [each.id for each in data.samples] for role, data in subject.roles.items()}
    first, second = subject.ask(), subject.ask()
    if first != second:
        raise Failed("the same requests when asked twice", "others (views are compared by value)")
    after = {role: [each.id for each in data.samples] for role, data in subject.roles.items()}
    if before != after:
        raise Failed("data sets as they were", "changed samples")
    _check(first, subject.roles)
    if not first:
        raise Failed("a request for some role", "none")
    for roles in _less(subject):
        _may_refuse(subject, roles)


def _less(subject: Subject) -> list[dict[Role, Dataset]]:
    """The data sets with less: without a role, without labels, without anything."""
    bare: dict[Role, Dataset] = {role: Unlabelled(data) for role, data in subject.roles.items()}
    alone: list[dict[Role, Dataset]] = [{role: data} for role, data in subject.roles.items()]
    return [*alone, bare, {}]


def _may_refuse(subject: Subject, roles: dict[Role, Dataset]) -> None:
    there = " and ".join(roles) or "no role"
    try:
        found = subject.ask(roles)
    except NotApplicable as error:
        if not str(error).strip():
            raise Failed("NotApplicable with a reason", f"none (given {there})") from None
        return
    except HarnessError:
        return
    except Exception as error:
        raise Failed(
            f"requests or NotApplicable(reason), given {there} of a data set that lacks something",
            f"{type(error).__name__}: {error}",
        ) from error
    _check(found, roles)


def _check(found: Any, roles: Any) -> None:
    for role, request in found.items():
        if role not in ROLES or role not in roles:
            raise Failed(f"requests for roles that are there ({', '.join(roles)})", f"{role!r}")
        if not isinstance(request, TokenRequest):
            raise Failed(f"a TokenRequest for {role}", type(request).__name__)


def merges(subject: Subject) -> None:
    """Raises ``Skipped`` where the task says that nothing can be merged."""
    if not subject.start().mergeable:
        raise Skipped("it says mergeable = False")
