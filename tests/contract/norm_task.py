"""A small task that keeps the contract: how long patches are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch

from harness.backbone.vit import Read
from harness.data.dataset import Dataset, Role
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


def with_protocol(protocol: Protocol, under: str | None = None) -> Norm:
    task = Norm()
    task.protocols = {under or protocol.name: protocol}
    return task


def with_evaluation(evaluation: type[NormEvaluation]) -> Norm:
    task = Norm()
    task.evaluation = evaluation
    return task
