"""What a check finds, and how a check says so."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.contract.subject import Subject

State = Literal["passed", "failed", "not applicable"]
DOCS = "docs/tasks.md, What is checked"


class Failed(Exception):
    """The contract is not kept: what was expected, and what was found."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


class Skipped(Exception):
    """A check that says nothing here; the reason."""


@dataclass(frozen=True)
class Check:
    """``name``, what the ``contract`` says, and ``run``, which raises ``Failed`` where that is not
    so and ``Skipped`` where it cannot be told."""

    name: str
    contract: str
    run: Callable[[Subject], None]


@dataclass(frozen=True)
class Finding:
    """What came of a check of one protocol. ``expected`` and ``got`` are there where it failed,
    ``reason`` where it is not applicable."""

    protocol: str
    check: str
    state: State
    contract: str
    expected: str | None = None
    got: str | None = None
    reason: str | None = None
    docs: str = DOCS

    def facts(self) -> dict[str, Any]:
        """JSON-able, without what is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def find(check: Check, subject: Subject) -> Finding:
    """Run a check. Whatever a task's own code raises is a failure, told with its place."""
    about = subject.protocol.name, check.name
    try:
        check.run(subject)
    except Skipped as skipped:
        return Finding(*about, "not applicable", check.contract, reason=str(skipped))
    except Failed as failed:
        return Finding(*about, "failed", check.contract, expected=failed.expected, got=failed.got)
    except Exception as error:  # a stranger's code may raise anything
        return Finding(*about, "failed", check.contract, expected="no error", got=told(error))
    return Finding(*about, "passed", check.contract)


def told(error: Exception) -> str:
    """An error in a line; one that is no ``HarnessError`` with the place where it was raised."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, HarnessError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parent
    theirs = [frame for frame in frames if Path(frame.filename).parent != own]
    last = (theirs or frames)[-1:]
    return text + "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in last)
