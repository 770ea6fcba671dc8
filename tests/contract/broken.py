"""Protocols and tasks that break the contract, each in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from norm_task import Norm, NormProtocol, with_protocol
from pydantic import Field

from harness.data.dataset import ROLES, Dataset, Role
from harness.task import NotApplicable, Task, TokenRequest


class Loose(NormProtocol):
    """Lists can be changed in place."""

    powers: list[float] = Field(default=[1.0, 2.0])


class Untyped(NormProtocol):
    """Anything goes."""

    power: Any = 1.0


class Thawed(NormProtocol, frozen=False):
    """Fields can be set."""


class Unhashed(NormProtocol):
    """One field is left out of the hash."""

    power: float = Field(1.0, exclude=True)


class Undescribed(NormProtocol):
    __doc__ = None


class HalfHashed(NormProtocol):
    """The hash does not follow the power."""

    def hash(self) -> str:
        return NormProtocol(name=self.name, version=self.version).hash()


class BadName(Norm):
    name: ClassVar[str] = "nor m"


class Stranger(Norm):
    name: ClassVar[str] = "no-entry-point"


class Unsummed(Norm):
    summary: ClassVar[str] = " "


class Forgetful(Norm):
    """Asks for something else the second time."""

    def __init__(self) -> None:
        self.asked = 0

    def requests(self, *given: Any, **named: Any) -> dict[Role, TokenRequest]:
        self.asked += 1
        found = super().requests(*given, **named)
        return {role: replace(each, layers=(self.asked % 2, 3)) for role, each in found.items()}


class Greedy(Norm):
    """Asks for a role that the data set may lack."""

    def requests(self, *given: Any, **named: Any) -> dict[Role, TokenRequest]:
        request = super().requests(*given, **named)["test"]
        return {"train": request, "test": request}


class Silent(Norm):
    """Refuses without a word."""

    def requests(
        self, architecture: Any, datasets: Mapping[Role, Dataset], protocol: Any, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        if "test" in datasets and not datasets["test"].has_boxes:
            raise NotApplicable("")
        return super().requests(architecture, datasets, protocol, seed)


class Crashing(Norm):
    """Takes it for granted that there is something."""

    def requests(
        self, architecture: Any, datasets: Mapping[Role, Dataset], protocol: Any, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        assert set(datasets) <= set(ROLES) and datasets["test"].samples[0].target.boxes is not None
        return super().requests(architecture, datasets, protocol, seed)


class Listing(Norm):
    """Gives a list in place of a request for each role."""

    def requests(self, *given: Any, **named: Any) -> Any:
        return list(super().requests(*given, **named).values())


class Refusing(Norm):
    """Fails with an error of its own."""

    def requests(self, *given: Any, **named: Any) -> dict[Role, TokenRequest]:
        raise LookupError("nothing here")


class Bare(Task[Any]):
    """Says nothing of itself."""

    name: ClassVar[str] = "bare"
    requests = Norm.requests
    start = Norm.start


BARE = Bare()
EMPTY = with_protocol(NormProtocol())
EMPTY.protocols = {}
