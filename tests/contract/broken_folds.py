"""Evaluations that break the contract, each in one way."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from norm_task import READ, NormEvaluation

from harness.task import Batch, MetricSpec, Outcome


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


class Scratching(NormEvaluation):
    """Breaks nothing: what is temporary may be written."""

    def finish(self) -> Outcome:
        with tempfile.TemporaryFile() as file:
            file.write(b"norms")
        return super().finish()
