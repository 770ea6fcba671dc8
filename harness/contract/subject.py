"""A task under one protocol on a few pictures: what it is fed, in any way that a check wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from harness.backbone.architecture import Architecture
from harness.backbone.arithmetic import exact_float32
from harness.backbone.vit import Backbone
from harness.contract.findings import Skipped
from harness.data.dataset import ROLES, Dataset, Role
from harness.errors import HarnessError
from harness.features.cutoffs import resolve
from harness.features.extract import Pass, Tally, stream
from harness.features.keys import RunningModel, Source
from harness.features.order import Steps, indices
from harness.features.outliers import OutlierRule
from harness.language.texts import Texts
from harness.registry import ModelEntry, Weights
from harness.task import Batch, Context, Evaluation, Outcome, Protocol, Task, TokenRequest

BATCH = 4
"""Pictures a forward pass, where a check does not say another number."""
MOST = 4096
"""Pictures that a shuffled request may read in a check."""

Stages = Mapping[Role, Sequence[Batch]]


@dataclass(frozen=True)
class Subject:
    """``roles`` are data sets for which the task is applicable; what it asks of them, and what it
    finds, is worked out once."""

    task: Task[Any]
    protocol: Protocol
    backbone: Backbone
    entry: ModelEntry
    roles: Mapping[Role, Dataset]
    seed: int = 0
    weights: Weights = "released"

    @property
    def architecture(self) -> Architecture:
        return self.backbone.architecture

    def ask(
        self,
        roles: Mapping[Role, Dataset] | None = None,
        architecture: Architecture | None = None,
    ) -> dict[Role, TokenRequest]:
        """What the task asks for, of these data sets and this model."""
        facts = architecture or self.architecture
        datasets = dict(self.roles if roles is None else roles)
        return self.task.requests(facts, datasets, self.protocol, self.seed)

    @cached_property
    def requests(self) -> dict[Role, TokenRequest]:
        return self.ask()

    @cached_property
    def cutoffs(self) -> Mapping[OutlierRule, float]:
        role = next(role for role in ROLES if role in self.requests)
        request, dataset = self.requests[role], self.roles[role]
        found, _ = resolve(
            self.backbone,
            RunningModel.of(self.backbone, self.entry, "released"),
            dataset,
            Source(dataset.name, dataset.split, "", request.view, request.precision, self.seed),
            request.ruled,
            None,
            BATCH,
            0,
            True,
        )
        return found

    @cached_property
    def text(self) -> Texts | None:
        """Of a task that needs one, the model's text tower; what it gives is not stored."""
        if not self.task.needs_text or self.entry.text is None:
            return None
        device = str(self.backbone.device)
        return Texts(self.entry, device, self.weights, self.seed, stored=False)

    @cached_property
    def stages(self) -> Stages:
        """Every role's batches, as the run would bring them."""
        return self.read()

    @cached_property
    def outcome(self) -> Outcome:
        """What comes of them. Checks that compare with it have nothing to say where this fails."""
        return self.play(self.stages)

    def compared(self) -> Outcome:
        """``outcome``. Raises ``Skipped`` where there is none."""
        try:
            return self.outcome
        except Exception:  # the check `outcome` tells it
            raise Skipped("there is no outcome to compare with (see outcome)") from None

    def read(
        self,
        batch_size: int = BATCH,
        roles: Mapping[Role, Dataset] | None = None,
    ) -> Stages:
        """Batches of every role that is asked for. Bad pictures are left out."""
        datasets = self.roles if roles is None else roles
        return {
            role: list(self._batches(role, datasets[role], batch_size))
            for role in ROLES
            if role in self.requests
        }

    def _batches(self, role: Role, dataset: Dataset, batch_size: int) -> Iterable[Batch]:
        request = self.requests[role]
        wanted = Pass(
            view=request.view,
            reads=request.reads,
            attention=frozenset(request.attention),
            received=frozenset(request.received),
            pixels=request.pixels,
            precision=request.precision,
            selectors=frozenset(request.select),
            cutoffs=self.cutoffs,
            dense=request.dense,
        )
        order = indices(request, len(dataset.samples), self.seed)
        dealt, tally = Steps(request.step_size), Tally(batch_size)
        with exact_float32():
            for batch in stream(
                self.backbone, dataset, wanted, order, tally, self.seed, 0, skip_bad=True
            ):
                yield from dealt.add(batch)
            yield from dealt.rest()

    def start(
        self,
        architecture: Architecture | None = None,
        seed: int | None = None,
        roles: Mapping[Role, Dataset] | None = None,
    ) -> Evaluation:
        context = Context(
            architecture or self.architecture,
            dict(self.roles if roles is None else roles),
            self.protocol,
            self.seed if seed is None else seed,
            self.cutoffs,
            str(self.backbone.device),
            text=self.text,
        )
        return self.task.start(context)

    def served(self, role: Role, batch: Batch) -> Batch:
        """The batch as a run gives it: what the feature store can serve brings no tokens."""
        return replace(batch, tokens={}) if self.requests[role].storable else batch

    def feed(self, evaluation: Evaluation, role: Role, batches: Iterable[Batch]) -> None:
        with exact_float32():
            for batch in batches:
                evaluation.update(role, self.served(role, batch))

    def play(
        self,
        stages: Stages,
        evaluation: Evaluation | None = None,
        change: Callable[[Role, Batch], Batch] | None = None,
    ) -> Outcome:
        """Feed an evaluation, a new one if none is given, to its end."""
        running = self.start() if evaluation is None else evaluation
        for role, batches in stages.items():
            given = batches if change is None else (change(role, each) for each in batches)
            self.feed(running, role, given)
            running.end(role)
        return running.finish()

    def refuse_long(self) -> None:
        """Raises ``HarnessError`` for a protocol that would take too long."""
        try:
            pictures = {role: request.pictures for role, request in self.requests.items()}
        except Exception:  # the check `requests` tells it
            return
        for role, count in pictures.items():
            if (count or 0) > MOST:
                raise HarnessError(
                    f"protocol {self.protocol.name} reads {count:,} pictures of {role}: a check "
                    f"takes at most {MOST:,} (--set makes it short, or the task's checked_with)"
                )


def whole_pictures(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Batches that bring crops of the same pictures, together."""
    return [list(group) for _, group in groupby(batches, key=lambda batch: batch.ids)]
