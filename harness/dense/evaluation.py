"""Dense heads trained and judged: what segmentation and depth share.

Heads are trained step by step on a stream of crops, or at the end of train on patches of fixed
views that were read once. Of test, every head that is left is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import Role, places_by_id
from harness.dense.judge import Judge, Row
from harness.dense.pictures import PictureEvaluation
from harness.dense.protocol import HeadProtocol, Stored, Streamed
from harness.dense.reading import Reading
from harness.dense.shelf import Shelf
from harness.errors import HarnessError
from harness.features.extract import out_of_memory
from harness.features.order import shuffled
from harness.probes.dense_head import DenseHead, DenseHeads
from harness.selection import held_out
from harness.task import Batch, Context, Outcome

H = TypeVar("H", bound=HeadProtocol)


class Trained(NamedTuple):
    """Heads of the grid, and over how many steps they are trained."""

    grid: tuple[DenseHead, ...]
    steps: int
    heads: DenseHeads


class Choice(NamedTuple):
    """How well each head of the grid does on the pictures that choose (higher is better, NaN where
    that cannot be told), and which of them diverged."""

    scores: tuple[float, ...]
    diverged: tuple[bool, ...]

    @property
    def best(self) -> int:
        """The first of equals, of those that did not diverge if there are any."""
        order = [
            (not bad, -np.inf if np.isnan(score) else score)
            for score, bad in zip(*self, strict=True)
        ]
        return order.index(max(order))


class HeadEvaluation(PictureEvaluation[H]):
    """Heads of 1x1 kind."""

    mergeable = False

    def __init__(self, context: Context[H], judge: Judge, reading: Reading) -> None:
        super().__init__(context, judge)
        self._protocol, self._reading = context.protocol, reading
        self._grid = context.protocol.heads()
        self._trained: Trained | None = None
        self._shelves: dict[Role, Shelf] = {}
        self._places: dict[Role, Mapping[str, int]] = {}
        self._choice: Choice | None = None
        self._failed: HarnessError | None = None
        self._counts: dict[str, int] = {}

    def learn(self, role: Role, batch: Batch) -> None:
        assert batch.dense_crops is not None
        labels, protocol = self._judge.targets(batch.dense_crops), self._protocol
        if isinstance(protocol, Streamed):
            if self._trained is None:
                self._trained = self._begin(self._grid, protocol.steps)
            name = self._context.datasets[role].name
            self._step(self._trained, self._reading.of_batch(batch, name), labels)
            return
        dataset = self._context.datasets[role]
        if role not in self._shelves:
            self._shelves[role] = Shelf(len(dataset.samples))
            self._places[role] = places_by_id(dataset)
        places = [self._places[role][batch.ids[picture]] for picture in batch.sample]
        self._shelves[role].add(places, [*self._reading.kept(batch), labels])

    def end(self, role: Role) -> None:
        """A head that cannot be had is told in ``finish``: its neighbours' pass goes on."""
        if role == "test":
            return
        try:
            if isinstance(self._protocol, Streamed):
                trained = self._ready()
                self._counts["steps"] = trained.heads.steps
                if missing := trained.steps - trained.heads.steps:  # bad pictures were skipped
                    self._counts["steps_that_were_not_taken"] = missing
                self._refuse_divergence(any(trained.heads.finite()))
            elif role == learning_roles(self._protocol, self._context.datasets)[-1]:
                self._fit()
        except HarnessError as error:
            self._failed = error

    def update(self, role: Role, batch: Batch) -> None:
        if self._failed is None:
            super().update(role, batch)

    def finish(self) -> Outcome:
        if self._failed is not None:
            raise self._failed
        return super().finish()

    def maps(self, batch: Batch, rows: slice) -> list[Tensor]:
        name = self._context.datasets["test"].name
        tokens = self._reading.of_batch(batch, name, rows).to(self._context.device)
        return list(self._ready().heads.maps(tokens))

    def best(self, scores: Sequence[float]) -> int:
        if len(scores) > 1 and self._choice is None:  # no pictures were held out: test chooses
            self._choice = self._chosen(scores)
        if self._choice is None or len(scores) == 1:
            return 0
        return self._choice.best

    def found(self, outcome: Outcome) -> Outcome:
        protocol, choice = self._protocol, self._choice
        head = self._grid[0 if choice is None else choice.best]
        resolved = {
            "layers": list(self._reading.layers),
            "learning_rate": head.learning_rate,
            "weight_decay": head.weight_decay,
            "steps": self._ready().heads.steps,
            "head_precision": self._ready().heads.precision,
        }
        outcome = replace(
            outcome,
            counts={**outcome.counts, **self._counts},
            resolved={**outcome.resolved, **resolved},
        )
        if choice is None:
            return outcome
        on = "select" if "select" in self._places else getattr(protocol, "selected_on")  # noqa: B009
        return replace(
            outcome, selected_on=on, details={**outcome.details, "grid": self._told(choice)}
        )

    def _told(self, choice: Choice) -> list[dict[str, Any]]:
        return [
            {
                "learning_rate": head.learning_rate,
                "weight_decay": head.weight_decay,
                "score_on_selection": None if np.isnan(score) else round(float(score), 6),
                "diverged": bad,
            }
            for head, score, bad in zip(self._grid, *choice, strict=True)
        ]

    def _fit(self) -> None:
        """Every head on the pictures that are not held out, and where there are several the best
        on those that are."""
        protocol, train = self._protocol, self._context.datasets["train"]
        assert isinstance(protocol, Stored)
        if "train" not in self._shelves:
            raise HarnessError(f"{protocol.name}: no train picture could be used")
        shelf = self._shelves["train"]
        places = rows = shelf.places()
        if len(self._grid) > 1:
            judge, held = shelf, np.empty(0, np.int64)
            if "select" in self._shelves:
                judge = self._shelves["select"]
                held = judge.places()
            else:
                ids = [train.samples[place].id for place in places.tolist()]
                chosen = held_out(ids, protocol.selection_share)
                held, rows = places[chosen], places[~chosen]
            if not len(held) or not len(rows):
                raise HarnessError(
                    f"data set {train.name!r}: {len(held)} pictures to choose a head and "
                    f"{len(rows)} to train it on; one of each is needed"
                )
            self._trained = self._descended(self._grid, shelf, rows)
            self._choice = self._chosen(self._held_scores(judge, held))
            self._counts["selection_pictures"] = len(held)
        if len(self._grid) == 1 or protocol.refit:
            best = self._grid[0 if self._choice is None else self._choice.best]
            rows = places
            self._trained = self._descended((best,), shelf, rows)
        self._counts |= {"train_pictures": len(rows), "steps": self._ready().steps}
        self._shelves = {}
        self._refuse_divergence(any(self._ready().heads.finite()))

    def _held_scores(self, shelf: Shelf, held: NDArray[np.int64]) -> list[float]:
        """Of every head on the pictures at ``held``, at the size of the view."""
        trained, device = self._ready(), self._context.device
        rows: list[list[Row]] = [[] for _ in trained.grid]
        for part in torch.split(torch.from_numpy(held), self._protocol.batch_size):
            *kept, labels = shelf.rows(part)
            tokens = self._reading.joined(kept, self._context.datasets["train"].name).to(device)
            labels = labels.to(device)
            size = labels.shape[1], labels.shape[2]
            for own, predicted in zip(rows, trained.heads.predict(tokens, size), strict=True):
                own += [
                    self._judge.row(*each, everywhere=True)
                    for each in zip(predicted, labels, strict=True)
                ]
        return [self._score(np.stack(own)) for own in rows]

    def _descended(
        self, grid: tuple[DenseHead, ...], shelf: Shelf, places: NDArray[np.int64]
    ) -> Trained:
        """Heads trained on the pictures at ``places``: in shuffled epochs, one after the other,
        dealt out in steps of one size, as a stream of pictures would be."""
        protocol, name = self._protocol, self._context.datasets["train"].name
        assert isinstance(protocol, Stored)
        size, steps = protocol.batch_size, protocol.steps_for(len(places), protocol.batch_size)
        trained = self._begin(grid, steps)
        order = np.frombuffer(shuffled(len(places), steps * size, self._context.seed), np.intc)
        for step in range(steps):
            part = places[order[step * size : (step + 1) * size]]
            *kept, labels = shelf.rows(torch.from_numpy(part))
            self._step(trained, self._reading.joined(kept, name), labels)
        return trained

    def _begin(self, grid: tuple[DenseHead, ...], steps: int) -> Trained:
        protocol, context = self._protocol, self._context
        heads = DenseHeads(
            grid,
            self._reading.width,
            self._judge.objective,
            protocol.form(),
            protocol.training(steps),
            context.seed,
            context.device,
            protocol.head_precision,
        )
        return Trained(grid, steps, heads)

    def _step(self, trained: Trained, tokens: Tensor, labels: Tensor) -> None:
        device = self._context.device
        try:
            trained.heads.step(tokens.to(device), labels.to(device))
        except ValueError as error:  # torch's batch norm of a single token
            raise HarnessError(f"{self._protocol.name}: a step cannot be taken: {error}") from None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"{self._protocol.name}: out of memory on {device} while {len(trained.grid)} heads "
                f"took a step of {len(tokens)} pictures; fewer heads, a smaller --set batch_size, "
                "or another --device"
            ) from None

    def _chosen(self, scores: Sequence[float]) -> Choice:
        finite = self._ready().heads.finite()
        choice = Choice(tuple(scores), tuple(not fine for fine in finite))
        self._refuse_divergence(finite[choice.best])
        return choice

    def _refuse_divergence(self, finite: bool) -> None:
        if not finite:
            raise HarnessError(
                f"{self._protocol.name}: the head diverged: the learning rate is too high for "
                "these features (--set learning_rates=1e-4 sets a lower one)"
            )

    def _ready(self) -> Trained:
        if self._trained is None:
            raise HarnessError(f"{self._protocol.name}: no train picture could be used")
        return self._trained

    def state(self) -> Any:
        trained = self._trained
        return super().state() | {
            "trained": trained and (trained.grid, trained.steps, trained.heads.state()),
            "shelves": {role: shelf.state() for role, shelf in self._shelves.items()},
            "places": dict(self._places),
            "choice": self._choice,
            "counts": dict(self._counts),
            "failed": self._failed,
        }

    def load(self, state: Any) -> None:
        super().load(state)
        self._choice, self._counts = state["choice"], dict(state["counts"])
        self._failed = state["failed"]
        self._trained, self._shelves, self._places = None, {}, dict(state["places"])
        for role, shelf in state["shelves"].items():
            self._shelves[role] = Shelf(len(self._context.datasets[role].samples))
            self._shelves[role].load(shelf)
        if state["trained"]:
            grid, steps, heads = state["trained"]
            self._trained = self._begin(grid, steps)
            self._trained.heads.load(heads)

    def merge(self, other: Self) -> None:
        raise TypeError("heads that were trained apart cannot be merged")


def learning_roles(protocol: HeadProtocol, datasets: Mapping[Role, Any]) -> list[Role]:
    """The roles that heads are trained and chosen on: select where there are several heads, and
    stored patches of it can be had."""
    stored = isinstance(protocol, Stored)
    chosen = stored and len(protocol.heads()) > 1 and "select" in datasets
    return ["train", "select"] if chosen else ["train"]
