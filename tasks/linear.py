"""Linear classification of frozen features: the best of a grid of heads, trained together.

Oquab et al., "DINOv2" (2023, section 7.1), as coded in facebookresearch/dinov2,
dinov2/eval/linear.py. A head sees a token of the last n blocks, with or without the mean of the
last block's patches behind it, and has a learning rate of its own. ``dinov2-linear`` trains them on
a stream of augmented pictures and reports the head that is best on test; ``linear`` trains the same
ones on features that are read once, and chooses on pictures held out of train.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.classification import (
    TOP,
    check_classes,
    check_further,
    joined,
    request_of,
    view_of,
)
from harness.collected import NOTED, collectors
from harness.data.dataset import Dataset, Role, places_by_id
from harness.data.views import RandomResizedCropFlip
from harness.errors import HarnessError
from harness.features.extract import out_of_memory
from harness.features.order import shuffled
from harness.features.select import Selector
from harness.gathered import Gathered, gather
from harness.heads import Head
from harness.judged import JudgedEvaluation, linear_head
from harness.linear_grid import (
    Choice,
    LinearProtocol,
    Point,
    StoredLinearProtocol,
    StreamedLinearProtocol,
    kept_roles,
    selectors_of,
)
from harness.probes.linear import Descent, LinearHeads
from harness.probes.linear import Head as GridHead
from harness.task import Batch, Context, Evaluation, HeadTask, MetricSpec, Outcome, TokenRequest

_JUDGED_BYTES = 8  # a picture and head: the class, and the rank of the right one


class _Trained(NamedTuple):
    """Heads of the grid, in the order in which ``heads`` has them, and over how many steps."""

    points: tuple[Point, ...]
    steps: int
    heads: LinearHeads


class LinearEvaluation(Evaluation):
    """Heads trained step by step as train is streamed, or at its end where features are kept; of
    test, what every head that is left says of each picture."""

    mergeable: bool = False

    def __init__(self, context: Context[LinearProtocol], selectors: Sequence[Selector]) -> None:
        self._context, self._protocol = context, context.protocol
        self._selectors, self._points = selectors, tuple(context.protocol.points())
        self._collectors = {
            role: collectors(context.datasets[role], selectors, context.block is not None)
            for role in kept_roles(context.protocol, context.datasets)
        }
        self._places = {
            role: places_by_id(dataset)
            for role, dataset in context.datasets.items()
            if role not in self._collectors
        }
        self._widths: tuple[int, ...] = ()
        self._trained: _Trained | None = None
        self._choice: Choice | None = None
        self._counts: dict[str, int] = {}
        self._judged: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]] = []

    def update(self, role: Role, batch: Batch) -> None:
        self._widths = tuple(batch.selected[each].values.shape[1] for each in self._selectors)
        if role in self._collectors:
            for collector in self._collectors[role]:
                collector.add(batch)
            return
        dataset, device = self._context.datasets[role], self._context.device
        ids, features, there = joined(batch, self._selectors, dataset.name)
        if not there.all():  # of the tokens outlier and normal
            features = features[there.to(features.device)]
            self._count(f"{role}_without_token", int((~there).sum()))
        places = np.array([self._places[role][each] for each in ids], np.int64)[there.numpy()]
        features, labels = features.to(device), _labels(dataset, places).to(device)
        if role == "train":
            assert isinstance(self._protocol, StreamedLinearProtocol)
            if self._trained is None:
                self._trained = self._begin(self._points, self._protocol.steps)
            self._trained.heads.step(features, labels)
            self._count("steps", 1)
            return
        judged = self._ready().heads.judge(features, labels)
        predicted, rank = (each.to(torch.int32).cpu().numpy() for each in judged)
        self._judged.append((places, predicted, rank))

    def end(self, role: Role) -> None:
        if not self._collectors or role != list(self._collectors)[-1]:
            return
        try:
            self._fit()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"{self._protocol.name}: out of memory on {self._context.device} with "
                f"{len(self._points)} heads; fewer --set learning_rates, or another --device"
            ) from None

    def _fit(self) -> None:
        """Every head on the pictures that are not held out, and the best on those that are."""
        protocol = self._protocol
        assert isinstance(protocol, StoredLinearProtocol)
        device = self._context.device
        gathered = gather(self._collectors, self._widths, protocol.selection_share, device)
        for role, count in gathered.without.items():
            self._count(f"{role}_without_token", count)
        rows = torch.from_numpy(np.flatnonzero(~gathered.held))
        held = torch.from_numpy(np.flatnonzero(gathered.held))
        if not len(held) or len(np.unique(gathered.labels[rows].numpy())) < 2:
            raise HarnessError(
                f"data set {self._context.datasets['train'].name!r}: {len(held)} pictures to "
                f"choose a head and {len(rows)} to train it on; one is needed to choose, and two "
                "classes to train"
            )
        self._trained = self._descended(self._points, gathered, rows)
        hits = torch.zeros(len(self._points), dtype=torch.int64)
        for near in gathered.near(torch.split(held, protocol.batch_size), device):
            judged = self._trained.heads.judge(*near)
            hits += (judged.rank == 0).sum(0).cpu()
        self._choice = self._chosen((100 * hits.double() / len(held)).tolist())
        self._counts |= {"train_pictures": len(rows), "selection_pictures": len(held)}
        if protocol.refit:
            everything = torch.arange(len(gathered.labels))
            best = (self._points[self._choice.best],)
            self._trained = self._descended(best, gathered, everything)
            self._refuse_divergence(self._trained.heads.finite()[0])
            self._counts["train_pictures"] = len(everything)
        self._counts["steps"] = self._trained.steps

    def _descended(self, points: tuple[Point, ...], gathered: Gathered, rows: Tensor) -> _Trained:
        """Heads trained on ``rows``: in shuffled epochs, one after the other, dealt out in steps of
        one size, as a stream of pictures would be."""
        protocol = self._protocol
        assert isinstance(protocol, StoredLinearProtocol)
        size = protocol.batch_size
        steps = max(protocol.min_steps, math.ceil(protocol.epochs * len(rows) / size))
        trained = self._begin(points, steps)
        order = np.frombuffer(shuffled(len(rows), steps * size, self._context.seed), np.intc)
        dealt = (order[step * size : (step + 1) * size].astype(np.int64) for step in range(steps))
        parts = (rows[torch.from_numpy(part)] for part in dealt)
        for near in gathered.near(parts, self._context.device):
            trained.heads.step(*near)
        return trained

    def _begin(self, points: tuple[Point, ...], steps: int) -> _Trained:
        protocol = self._protocol
        heads = [self._sees(point) for point in points]
        descent = Descent(steps, protocol.momentum, protocol.weight_decay, protocol.init_std)
        classes = len(self._context.datasets["train"].classes)
        return _Trained(
            points,
            steps,
            LinearHeads(heads, classes, descent, self._context.seed, self._context.device),
        )

    def _chosen(self, scores: Sequence[float]) -> Choice:
        finite = self._ready().heads.finite()
        choice = Choice(tuple(scores), tuple(not fine for fine in finite))
        self._refuse_divergence(finite[choice.best])
        return choice

    def _refuse_divergence(self, finite: bool) -> None:
        if not finite:
            raise HarnessError(
                f"{self._protocol.name}: the best head diverged: the learning rates are too high "
                "for these features (--set learning_rates=[1e-5,1e-4] sets lower ones)"
            )

    def _ready(self) -> _Trained:
        if self._trained is None:
            raise HarnessError(f"{self._protocol.name}: no train picture could be used")
        return self._trained

    def _ends(self) -> list[int]:
        """Where each selector's columns begin in a matrix of all, and where all end."""
        return [0, *itertools.accumulate(self._widths)]

    def _sees(self, point: Point) -> GridHead:
        protocol = self._protocol
        return point.head(self._ends(), max(protocol.n_last_blocks), protocol.batch_size)

    def _count(self, name: str, more: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + more

    def finish(self) -> Outcome:
        test, trained = self._context.datasets["test"], self._ready()
        if not self._judged:
            raise HarnessError(f"{self._protocol.name}: no test picture was scored")
        places, predicted, rank = (np.concatenate(each) for each in zip(*self._judged, strict=True))
        order = np.argsort(places, kind="stable")
        places, predicted, rank = places[order], predicted[order], rank[order]
        choice = self._choice  # or else every head was judged on test, and test chooses
        if choice is None:
            choice = self._chosen((100 * (rank == 0).mean(axis=0)).tolist())
        best = self._points[choice.best]
        head = trained.points.index(best)
        labels = _labels(test, places).numpy()
        known = {sample.target.label for sample in self._context.datasets["train"].samples}
        counts = dict(self._counts)
        if absent := sum(label not in known for label in labels.tolist()):
            counts["test_pictures_of_classes_not_in_train"] = absent
        grid = choice.grid(self._points)
        resolved = {**best._asdict(), "layers": [each.layer for each in self._selectors]}
        for rule in (each.rule for each in self._selectors if each.rule is not None):
            resolved["outlier_cutoff"] = self._context.cutoffs[rule]
        columns: dict[str, Any] = {
            "image_id": [test.samples[place].id for place in places.tolist()],
            "label": labels,
            "predicted": predicted[:, head],
            **{f"top{top}": rank[:, head] < top for top in TOP},
        }
        return Outcome(
            columns,
            {f"top{top}": MetricSpec(f"top{top}", "%", True, 100) for top in TOP},
            counts,
            resolved,
            "select" if "select" in self._collectors else self._protocol.selected_on,
            {"chosen": grid[choice.best], "grid": grid},
            linear_head(
                trained.heads.weights(head),
                self._sees(best),
                self._selectors,
                self._context,
                resolved,
            ),
        )

    def state(self) -> object:
        trained = self._trained
        return {
            "collected": {r: [each.state() for each in of] for r, of in self._collectors.items()},
            "widths": self._widths,
            "trained": trained and (trained.points, trained.steps, trained.heads.state()),
            "choice": self._choice,
            "counts": dict(self._counts),
            "judged": list(self._judged),
        }

    def load(self, state: Any) -> None:
        for role, stored in state["collected"].items():
            # Those that were fitted to are gone.
            self._collectors[role] = self._collectors[role][: len(stored)]
            for collector, one in zip(self._collectors[role], stored, strict=True):
                collector.load(one)
        self._widths, self._choice = state["widths"], state["choice"]
        self._counts, self._judged = dict(state["counts"]), list(state["judged"])
        self._trained = None
        if state["trained"]:
            points, steps, heads = state["trained"]
            self._trained = self._begin(points, steps)
            self._trained.heads.load(heads)

    def merge(self, other: Self) -> None:
        raise TypeError("heads that were trained apart cannot be merged")


def _labels(dataset: Dataset, places: NDArray[np.int64]) -> Tensor:
    labels = [dataset.samples[place].target.label for place in places.tolist()]
    return torch.from_numpy(np.array(labels, np.int64))


class Linear(HeadTask[LinearProtocol]):
    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "linear classifiers, a grid trained together (top-1, top-5)"
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "linear": {"resize": 112, "crop": 112, "epochs": 1, "min_steps": 20},
        "dinov2-linear": {"resize": 112, "crop": 112, "steps": 4, "batch_size": 16},
    }
    protocols: Mapping[str, LinearProtocol] = {
        "linear": StoredLinearProtocol(),
        "dinov2-linear": StreamedLinearProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: LinearProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        kept = kept_roles(protocol, datasets)
        check_classes(datasets, ["train", *kept[1:], "test"])
        request = request_of(protocol, architecture, selectors_of(protocol, architecture, seed))
        heads = len(protocol.points())
        test = replace(request, bytes_per_picture=_JUDGED_BYTES * heads)
        if not isinstance(protocol, StreamedLinearProtocol):
            train = replace(request, streamed_bytes=NOTED * len(request.select))
            return {**dict.fromkeys(kept, train), "test": test}
        view = view_of(protocol, architecture)
        train = replace(
            request,
            view=view
            if protocol.augment == "none"
            else RandomResizedCropFlip(view.crop, protocol.interpolation),
            order="shuffled",
            steps=protocol.steps,
            step_size=protocol.batch_size,
            bytes_per_picture=0,
        )
        return {"train": train, "test": test}

    def start(self, context: Context[LinearProtocol]) -> LinearEvaluation:
        return LinearEvaluation(
            context, selectors_of(context.protocol, context.architecture, context.seed)
        )

    def further(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        test: Dataset,
        protocol: LinearProtocol,
        seed: int = 0,
    ) -> TokenRequest:
        check_further(datasets["train"].classes, test)
        request = request_of(protocol, architecture, selectors_of(protocol, architecture, seed))
        return replace(request, bytes_per_picture=_JUDGED_BYTES)

    def judge(self, context: Context[LinearProtocol], head: Head) -> JudgedEvaluation:
        selectors = selectors_of(context.protocol, context.architecture, context.seed)
        return JudgedEvaluation(context, head, selectors)


LINEAR = Linear()
