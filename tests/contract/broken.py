"""A task that keeps the contract, and one that breaks it for every check."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field

from harness.backbone.vit import Read
from harness.data.dataset import ROLES, Dataset, Role
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

READ = Read(3, "token", True)


class NormProtocol(Protocol):
    """How long patches are, and in what power."""

    name: str = "norm"
    version: str = "1.0"
    power: float = 1.0


class NormEvaluation(Evaluation):
    """The mean norm of a picture's patches, less that of train's."""

    def __init__(self, context: Context[Any]) -> None:
        self.context = context
        self.rows: dict[str, float] = {}
        self.order = {each.id: n for n, each in enumerate(context.datasets["test"].samples)}

    def patches(self, batch: Batch, row: int) -> torch.Tensor:
        return batch.tokens[READ].patches[row].flatten(0, 1)

    def value(self, batch: Batch, row: int) -> float:
        return float(self.patches(batch, row).double().norm(dim=-1).mean())

    def update(self, role: Role, batch: Batch) -> None:
        for row, picture in enumerate(batch.sample):
            self.rows[batch.ids[picture]] = self.value(batch, row)

    def ids(self) -> list[str]:
        return sorted(self.rows, key=self.order.__getitem__)

    def finish(self) -> Outcome:
        if not self.rows:
            raise HarnessError("norm: no picture was scored")
        ids = self.ids()
        values = np.array([self.rows[each] for each in ids])
        return Outcome({"image_id": ids, "norm": values}, {"norm": MetricSpec("norm", "", False)})

    def state(self) -> object:
        return dict(self.rows)

    def load(self, state: Any) -> None:
        self.rows = dict(state)

    def merge(self, other: Self) -> None:
        self.rows |= other.rows


class Norm(Task[Any]):
    name: ClassVar[str] = "norm"
    summary: ClassVar[str] = "how long patches are"
    protocols: Mapping[str, Protocol] = {"norm": NormProtocol()}
    evaluation: type[NormEvaluation] = NormEvaluation

    def requests(
        self, architecture: Any, datasets: Mapping[Role, Dataset], protocol: Any, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        if "test" not in datasets:
            raise NotApplicable("the data set has no test split")
        view = WholePicture(architecture.patch, 10_000)
        return {"test": TokenRequest(view, layers=(3,), norm=True)}

    def start(self, context: Context[Any]) -> Evaluation:
        return self.evaluation(context)

    def seeded(self, protocol: Any) -> bool:
        return False


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


def with_protocol(protocol: Protocol, under: str | None = None) -> Norm:
    task = Norm()
    task.protocols = {under or protocol.name: protocol}
    return task


def with_evaluation(evaluation: type[NormEvaluation]) -> Norm:
    task = Norm()
    task.evaluation = evaluation
    return task


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


class NoIds(NormEvaluation):
    def finish(self) -> Outcome:
        found = super().finish()
        return replace(found, columns={"norm": found.columns["norm"]})


class NotJson(NormEvaluation):
    def finish(self) -> Outcome:
        return replace(super().finish(), details={"worst": float("nan")})


class Raises(NormEvaluation):
    def finish(self) -> Outcome:
        raise KeyError("norm")


class NoColumn(NormEvaluation):
    def finish(self) -> Outcome:
        return replace(super().finish(), metrics={"norm": MetricSpec("length", "", False)})


class NoUnit(NormEvaluation):
    def finish(self) -> Outcome:
        spec: Any = MetricSpec("norm", None, False)  # type: ignore[arg-type]
        return replace(super().finish(), metrics={"norm": spec})


class NoDirection(NormEvaluation):
    def finish(self) -> Outcome:
        spec: Any = MetricSpec("norm", "", None)  # type: ignore[arg-type]
        return replace(super().finish(), metrics={"norm": spec})


class NoAggregate(NormEvaluation):
    def finish(self) -> Outcome:
        spec = MetricSpec("norm", "", False, aggregate="median")
        return replace(super().finish(), metrics={"norm": spec})


class NoValue(NormEvaluation):
    """A picture without a value, of a metric that is not partial."""

    def finish(self) -> Outcome:
        found = super().finish()
        values = np.asarray(found.columns["norm"]).astype(float)
        values[0] = np.nan
        return replace(found, columns={**found.columns, "norm": values})


class WrongIds(NormEvaluation):
    def finish(self) -> Outcome:
        found = super().finish()
        ids = [f"{each}.png" for each in found.columns["image_id"]]
        return replace(found, columns={**found.columns, "image_id": ids})


class AsTheyCame(NormEvaluation):
    """Rows in the order in which pictures came: sizes are brought together."""

    def ids(self) -> list[str]:
        return list(self.rows)


class Uncounted(NormEvaluation):
    """Leaves pictures out and does not say so."""

    def ids(self) -> list[str]:
        return super().ids()[2:]


class Short(NormEvaluation):
    def finish(self) -> Outcome:
        found = super().finish()
        return replace(found, columns={**found.columns, "more": np.zeros(1)})


class Drawing(NormEvaluation):
    """Draws from torch's own generator."""

    def value(self, batch: Batch, row: int) -> float:
        return super().value(batch, row) + float(torch.rand(()))


class Seeded(NormEvaluation):
    """The seed moves what the task says it does not move."""

    def value(self, batch: Batch, row: int) -> float:
        return super().value(batch, row) + self.context.seed


class InPlace(NormEvaluation):
    """Changes the batch that other tasks read, once."""

    def patches(self, batch: Batch, row: int) -> torch.Tensor:
        found = super().patches(batch, row)
        return found.sub_(found.mean(0))


class OfTheBatch(NormEvaluation):
    """Takes off the mean of what stands in the batch beside it."""

    def patches(self, batch: Batch, row: int) -> torch.Tensor:
        return super().patches(batch, row) - batch.tokens[READ].patches.mean((0, 1, 2))


class OfTheRow(NormEvaluation):
    """Counts pictures as they come."""

    def value(self, batch: Batch, row: int) -> float:
        return super().value(batch, row) + len(self.rows)


class Pooled(NormEvaluation):
    """Registers pooled in with patches."""

    def patches(self, batch: Batch, row: int) -> torch.Tensor:
        return torch.cat([batch.tokens[READ].registers[row], super().patches(batch, row)])


class Sliced(NormEvaluation):
    """Cuts off what it takes for registers."""

    def patches(self, batch: Batch, row: int) -> torch.Tensor:
        cut = 0 if self.context.architecture.layout.register_position == "prefix" else 4
        return super().patches(batch, row)[cut:]


class Stateless(NormEvaluation):
    """Forgets what it saw."""

    def state(self) -> object:
        return {}


class NoState(NormEvaluation):
    def state(self) -> object:
        raise NotImplementedError


class LastOnly(NormEvaluation):
    """A merge that replaces."""

    def merge(self, other: Self) -> None:
        self.rows = dict(other.rows)


class Unmergeable(LastOnly):
    mergeable = False


class Counting(NormEvaluation):
    """Wants every picture."""

    def finish(self) -> Outcome:
        if self.rows and len(self.rows) != len(self.order):
            raise ValueError("pictures are missing")
        return super().finish()


class Stubborn(NormEvaluation):
    """A number of nothing."""

    def finish(self) -> Outcome:
        if not self.rows:
            columns: dict[str, Any] = {"image_id": [], "norm": np.empty(0)}
            return Outcome(columns, {"norm": MetricSpec("norm", "", False)})
        return super().finish()


class Writing(NormEvaluation):
    def finish(self) -> Outcome:
        with Path("norms.txt").open("w") as file:
            file.write(str(self.rows))
        return super().finish()


class Calling(NormEvaluation):
    """Looks for a neighbour: port 9 of this machine, where nobody answers."""

    def finish(self) -> Outcome:
        with socket.socket() as there:
            there.settimeout(0.2)
            with contextlib.suppress(OSError):
                there.connect(("127.0.0.1", 9))
        return super().finish()
