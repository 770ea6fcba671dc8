"""Test pictures judged one by one, from what is said of their crops."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import Dense, Role
from harness.data.views import Geometry
from harness.dense.judge import Judge, has_value
from harness.errors import HarnessError
from harness.pictured.contract import PicturedEvaluation, Shown
from harness.task import Batch, Context, Outcome, Protocol

P = TypeVar("P", bound=Protocol)

_ROWS = 8  # crops that a head is given at a time


class Seen(NamedTuple):
    """A picture of which all crops are there: ``maps[head][crop] [C, H, W]`` at the size of the
    patch grid, each crop's geometry, and the labels at the stored size."""

    id: str
    maps: list[list[Tensor]]
    geometry: list[Geometry]
    dense: Dense


class PictureEvaluation(PicturedEvaluation, Generic[P]):
    """Of every test picture, and of every head that may be reported, the values that ``judge``
    gives it: no more is kept of it. Crops may come in several batches."""

    def __init__(self, context: Context[P], judge: Judge) -> None:
        self._context, self._judge = context, judge
        self._waiting: dict[str, tuple[list[list[Tensor]], list[Geometry]]] = {}
        self._rows: dict[str, NDArray[np.float64]] = {}
        self._reported = 0

    @abstractmethod
    def learn(self, role: Role, batch: Batch) -> None:
        """A batch of another role than test."""

    @abstractmethod
    def maps(self, batch: Batch, rows: slice) -> list[Tensor]:
        """What each head says of these rows of the batch, ``[B, C, H, W]``."""

    @abstractmethod
    def best(self, scores: Sequence[float]) -> int:
        """Which head is reported; ``scores`` are theirs on test."""

    @abstractmethod
    def found(self, outcome: Outcome) -> Outcome:
        """The outcome with what is to be told of the reported head."""

    def update(self, role: Role, batch: Batch) -> None:
        if role != "test":
            self.learn(role, batch)
            return
        for seen in self._seen(batch):
            truth = self._judge.truth(seen.dense)
            each = [self._judge.prediction(maps, seen.geometry) for maps in seen.maps]
            self._rows[seen.id] = np.stack([self._judge.row(one, truth) for one in each])

    def _seen(self, batch: Batch) -> Iterator[Seen]:
        """Pictures that are complete with this batch. Of those that are not, the maps wait."""
        for begin in range(0, len(batch.sample), _ROWS):
            rows = slice(begin, begin + _ROWS)
            found = self.maps(batch, rows)
            for row, picture in enumerate(batch.sample[rows]):
                identity = batch.ids[picture]
                of_heads, geometry = self._waiting.setdefault(identity, ([[] for _ in found], []))
                for crops, each in zip(of_heads, found, strict=True):
                    crops.append(each[row])
                geometry.append(batch.geometry[begin + row])
                if len(geometry) == batch.crops[picture]:
                    del self._waiting[identity]
                    yield Seen(identity, of_heads, geometry, batch.dense[picture])

    def finish(self) -> Outcome:
        """Raises ``HarnessError`` where no test picture has a value."""
        assert not self._waiting, "crops of a picture did not come"
        test = self._context.datasets["test"]
        samples = [sample for sample in test.samples if sample.id in self._rows]
        rows = [self._rows[sample.id] for sample in samples]
        table = np.stack(rows, axis=1) if rows else np.empty((1, 0, 1))  # [heads, n, k]
        if not any(has_value(each).any() for each in table):
            raise HarnessError(
                f"data set {test.name!r}: of {len(samples)} test pictures that were seen none has "
                f"a pixel that counts{self._judge.counts}"
            )
        self._reported = self.best([self._score(each) for each in table])
        return self.found(self._judge.of_pictures(samples, table[self._reported]))

    def standing(self) -> Mapping[str, float]:
        of_pictures = {name: rows[self._reported] for name, rows in self._rows.items()}
        return {
            name: self._judge.score(row[None])
            for name, row in of_pictures.items()
            if not np.isnan(row).any()
        }

    def shown(self, batch: Batch) -> Iterator[Shown]:
        for seen in self._seen(batch):
            truth = self._judge.truth(seen.dense)
            said = self._judge.prediction(seen.maps[self._reported], seen.geometry)
            told = self._judge.told(self._judge.row(said, truth))
            yield Shown(seen.id, *self._judge.drawn(said, truth), self._judge.kind, told)

    def _score(self, rows: NDArray[np.float64]) -> float:
        return self._judge.score(rows[has_value(rows)])

    def state(self) -> Any:
        """Between two batches of one picture the crops that wait are part of it."""
        waiting = {
            name: ([list(maps) for maps in of_heads], list(geometry))
            for name, (of_heads, geometry) in self._waiting.items()
        }
        return {"rows": dict(self._rows), "waiting": waiting}

    def load(self, state: Any) -> None:
        self._rows, self._waiting = dict(state["rows"]), dict(state["waiting"])

    def merge(self, other: Self) -> None:
        self._rows |= other._rows
