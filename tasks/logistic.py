"""Logistic regression on one frozen token a picture, its strength chosen on part of train.

Oquab et al., "DINOv2" (2023, section 7.1), as coded in facebookresearch/dinov2,
dinov2/eval/log_regression.py. With a token that is drawn (``outlier``, ``normal``, ``register``) it
asks what single tokens know of the whole picture: Darcet et al., "Vision Transformers Need
Registers" (2023), tables 1 and 4.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, model_validator

from harness.aggregates import values
from harness.backbone.architecture import Architecture
from harness.classification import (
    CollectedEvaluation,
    SelectionShare,
    TokenProtocol,
    check_classes,
    over_draws,
    request_of,
    selector_of,
)
from harness.collected import NOTED, Examples
from harness.data.dataset import ROLES, Dataset, Role
from harness.errors import HarnessError
from harness.features.extract import out_of_memory
from harness.features.select import DRAWN, Selector
from harness.multilabel import Judged, OneCFor, check_labels, judge
from harness.probes.log_losses import fit_bytes
from harness.probes.logistic import LogisticHead, logistic_path
from harness.selection import held_out
from harness.task import Context, MetricSpec, Outcome, Task, TokenRequest

_DRAWS = 5  # where none are asked for: a standard deviation with some meaning

Metric = Literal["top1", "mean_per_class"]


class PathProtocol(TokenProtocol):
    """What is fitted to choose a C, and how; the defaults are DINOv2's official code's."""

    resize: StrictInt = Field(224, ge=1, description="the shorter side, in pixels")
    c_low: float = Field(-6, ge=-12, le=12, description="log10 of the smallest C")
    c_high: float = Field(5, ge=-12, le=12, description="log10 of the largest C")
    c_count: StrictInt = Field(45, ge=1, le=1000, description="values of C, equally far in log C")
    penalty: Literal["l2, biases free"] = "l2, biases free"
    selection_share: SelectionShare = 0.1
    tolerance: float = Field(
        1e-8, gt=0, description="where a fit is done: the share of the objective left to gain"
    )
    max_steps: StrictInt = Field(1000, ge=1, description="of a fit")
    draws: StrictInt | None = Field(
        None,
        ge=1,
        le=1000,
        description="tokens drawn a picture, each with a fit of its own, of register, patch, "
        f"outlier, normal (default: {_DRAWS})",
    )

    @model_validator(mode="after")
    def _path_and_draws(self) -> Self:
        if self.c_low > self.c_high or (self.c_count == 1) != (self.c_low == self.c_high):
            raise ValueError(
                f"c_low {self.c_low}, c_high {self.c_high}, c_count {self.c_count}: a path rises "
                "from c_low to c_high; one value is c_count=1 and c_low=c_high"
            )
        if self.draws is not None and self.draws > 1 and self.token not in DRAWN:
            raise ValueError(
                f"draws {self.draws}: nothing is drawn of the token {self.token} (only of "
                f"{', '.join(sorted(DRAWN))})"
            )
        return self

    @property
    def strengths(self) -> list[float]:
        """The values of C, rising."""
        return [float(c) for c in 10.0 ** np.linspace(self.c_low, self.c_high, self.c_count)]


class LogisticProtocol(PathProtocol):
    """DINOv2's logistic regression."""

    name: str = "dinov2-logistic"
    version: str = "1.0"
    selection_metric: Metric = Field("top1", description="what the C is chosen by")
    tie_break: Literal["smallest C, lowest class"] = "smallest C, lowest class"


class MultilabelProtocol(PathProtocol):
    """The same of pictures that may show several classes: a classifier for each, against the rest.

    One C for all classes, by mAP with 11 points, is what Ericsson et al., "How Well Do
    Self-Supervised Models Transfer?" (2021), do with the same 45 values (their linear.py).
    """

    name: str = "logistic-multilabel"
    version: str = "1.0"
    average_precision: Literal["11-point", "area"] = Field(
        "11-point", description="of a class: VOC2007's, or the area below the curve"
    )
    one_c_for: OneCFor = Field("all classes", description="whether each class has a C of its own")
    unclear: Literal["left out of fit and ranking"] = "left out of fit and ranking"
    tie_break: Literal["smallest C, equal scores at once"] = "smallest C, equal scores at once"

    @property
    def aggregate(self) -> str:
        """The name of mAP in a record."""
        return f"mean_average_precision_{self.average_precision.replace('-', '_')}"


Q = TypeVar("Q", bound=PathProtocol)
D = TypeVar("D")


class PathEvaluation(CollectedEvaluation[Q], Generic[Q, D]):
    """All that is fitted is fitted at the end, one draw after the other."""

    def finish(self) -> Outcome:
        counts = self._without()
        draws: list[D] = []
        test: Examples | None = None
        while self._collectors["test"]:  # let go of one by one, as they are used
            found = {role: of.pop(0).examples() for role, of in self._collectors.items()}
            test = found["test"]
            draws.append(self._draw(found))
        assert test is not None
        return self._outcome(test, draws, counts)

    def _draw(self, found: Mapping[Role, Examples]) -> D:
        """Fitted at every C on what does not choose; then at the chosen C on all."""
        protocol, device, train = self._context.protocol, self._context.device, found["train"]
        if (chooses := found.get("select")) is None:
            held = held_out(train.ids, protocol.selection_share)
            fitted, chooses, everything = train.of(~held), train.of(held), train
        else:
            fitted, everything = train, train.and_those_of(chooses)
        try:
            return self._judged(fitted, chooses, everything, found["test"])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"logistic: out of memory on {device} with the features of "
                f"{len(everything.labels):,} pictures; --memory SIZE of less reads them in blocks, "
                "--device cpu takes the machine's"
            ) from None

    @abstractmethod
    def _judged(
        self, fitted: Examples, chooses: Examples, everything: Examples, test: Examples
    ) -> D: ...

    @abstractmethod
    def _outcome(self, test: Examples, draws: list[D], counts: dict[str, int]) -> Outcome: ...

    @property
    def _settings(self) -> tuple[str, float, int]:
        protocol = self._context.protocol
        return self._context.device, protocol.tolerance, protocol.max_steps

    @property
    def _selected_on(self) -> str:
        return "select" if "select" in self._collectors else "held-out pictures"


class _Draw(NamedTuple):
    """What came of one token a picture: the classes ``predicted [n]`` of test, per cent at every C
    on the pictures that chose, the refitted head; of all fits the most steps, and how many did not
    converge."""

    predicted: NDArray[np.int64]
    selection: tuple[float, ...]
    head: LogisticHead
    most_steps: int
    not_converged: int
    counts: Mapping[str, int]


class LogisticEvaluation(PathEvaluation[LogisticProtocol, _Draw]):
    def _judged(
        self, fitted: Examples, chooses: Examples, everything: Examples, test: Examples
    ) -> _Draw:
        protocol = self._context.protocol
        self._check(fitted, chooses)
        weights = _weights(chooses.labels, protocol.selection_metric)
        selection: list[float] = []
        fits: list[tuple[int, bool]] = []
        labels = torch.from_numpy(fitted.labels)
        for head in logistic_path(fitted.features, labels, protocol.strengths, *self._settings):
            right = head.predict(chooses.features).numpy() == chooses.labels
            selection.append(100 * float((right * weights).mean()))
            fits.append((head.steps, head.converged))
        # Equal but for rounding: the smallest C.
        chosen = protocol.strengths[int(np.argmax(np.round(selection, 9)))]
        labels = torch.from_numpy(everything.labels)
        (head,) = logistic_path(everything.features, labels, [chosen], *self._settings)
        fits.append((head.steps, head.converged))
        counts = {"train_pictures": len(everything.labels), "selection_pictures": len(chooses.ids)}
        absent = {
            "selection_pictures_of_classes_not_fitted": (chooses.labels, fitted.labels),
            "test_pictures_of_classes_not_in_train": (test.labels, everything.labels),
        }
        for name, (asked, known) in absent.items():
            if missing := int(np.isin(asked, known, invert=True).sum()):
                counts[name] = missing
        return _Draw(
            head.predict(test.features).numpy(),
            tuple(selection),
            head,
            max(steps for steps, _ in fits),
            sum(not converged for _, converged in fits),
            counts,
        )

    def _check(self, fitted: Examples, chooses: Examples) -> None:
        """Raises ``HarnessError`` where too little is left to fit or to choose."""
        present = len(np.unique(fitted.labels))
        if present < 2 or not len(chooses.ids):
            raise HarnessError(
                f"data set {self._context.datasets['train'].name!r}: {len(fitted.ids)} pictures of "
                f"{present} classes to fit on and {len(chooses.ids)} to choose C on; two classes "
                "and one picture are needed"
            )

    def _outcome(self, test: Examples, draws: list[_Draw], counts: dict[str, int]) -> Outcome:
        hits = np.stack([draw.predicted == test.labels for draw in draws])  # [draws, pictures]
        correct = hits[0] if len(draws) == 1 else hits.mean(axis=0)
        weights = _weights(test.labels, "mean_per_class")
        columns: dict[str, Any] = {
            "image_id": list(test.ids),
            "label": test.labels,
            "top1": correct,
            "mean_per_class": correct * weights,
        }
        if len(draws) == 1:
            columns["predicted"] = draws[0].predicted
        metrics = {
            "top1": MetricSpec("top1", "%", True, 100),
            "mean_per_class": MetricSpec("mean_per_class", "%", True, 100),
        }
        by_draw = {
            "top1": 100 * hits.mean(axis=1),
            "mean_per_class": 100 * (hits * weights).mean(axis=1),
        }
        metrics, drawn = over_draws(metrics, by_draw)
        protocol = self._context.protocol
        details: dict[str, Any] = {
            "strengths": protocol.strengths,
            f"{protocol.selection_metric}_on_selection": [
                [round(score, 4) for score in draw.selection] for draw in draws
            ],
            "chosen": [draw.head.c for draw in draws],
            "most_steps": max(draw.most_steps for draw in draws),
            "not_converged": sum(draw.not_converged for draw in draws),
            **drawn,
        }
        resolved = {**self._read(), "draws": len(draws)}
        if len(draws) == 1:
            resolved["c"] = draws[0].head.c
        # The same pictures have the token in every draw, and so the same counts.
        counts = {**draws[0].counts, **counts}
        return Outcome(columns, metrics, counts, resolved, self._selected_on, details)


class MultilabelEvaluation(PathEvaluation[MultilabelProtocol, Judged]):
    def _judged(
        self, fitted: Examples, chooses: Examples, everything: Examples, test: Examples
    ) -> Judged:
        protocol = self._context.protocol
        how = protocol.strengths, protocol.aggregate, protocol.one_c_for, self._settings
        return judge(fitted, chooses, everything, test, *how)

    def _outcome(self, test: Examples, draws: list[Judged], counts: dict[str, int]) -> Outcome:
        protocol = self._context.protocol
        present = draws[0].present  # the same pictures have the token in every draw
        columns: dict[str, Any] = {
            "image_id": list(test.ids),
            "scores": np.concatenate([draw.scores for draw in draws], axis=1),
            "present": present,
        }
        by_draw = np.stack([values(protocol.aggregate, [each.scores, present]) for each in draws])
        names = self._context.datasets["test"].classes
        score = MetricSpec(
            "scores", "%", True, 100, aggregate=protocol.aggregate, others=("present",)
        )
        metrics, drawn = over_draws({"map": score}, {"map": 100 * np.nanmean(by_draw, axis=1)})
        details: dict[str, Any] = {
            "strengths": protocol.strengths,
            "map_on_selection": [[round(each, 4) for each in draw.selection] for draw in draws],
            "chosen": [list(draw.chosen) for draw in draws],
            "average_precision": {
                name: None if np.isnan(precision) else round(float(precision), 4)
                for name, precision in zip(names, 100 * by_draw.mean(axis=0), strict=True)
            },
            "most_steps": max(draw.most_steps for draw in draws),
            "not_converged": sum(draw.not_converged for draw in draws),
            **drawn,
        }
        resolved = {**self._read(), "draws": len(draws)}
        if len(draws) == 1 and protocol.one_c_for == "all classes":
            (resolved["c"],) = draws[0].chosen
        counts = {**draws[0].counts, **counts}
        return Outcome(columns, metrics, counts, resolved, self._selected_on, details)


def _weights(labels: NDArray[np.int64], metric: Metric) -> NDArray[np.float64]:
    """``[n]``: what a right picture counts, so that the mean over pictures is the metric. A mean
    per class is over the classes that there are."""
    if metric == "top1":
        return np.ones(len(labels))
    present, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(labels) / (len(present) * sizes[own].astype(np.float64))
    return weights


def _used(datasets: Mapping[Role, Dataset]) -> list[Role]:
    """Train, test, and a split for selection where there is one with labels."""
    select = datasets.get("select")
    labelled = select and any(
        sample.target.label is not None or sample.target.labels for sample in select.samples
    )
    return [role for role in ROLES if role != "select" or labelled]


def _selectors(protocol: PathProtocol, architecture: Architecture, seed: int) -> list[Selector]:
    draws = (protocol.draws or _DRAWS) if protocol.token in DRAWN else 1
    return [selector_of(protocol, architecture, seed, draw) for draw in range(draws)]


class Logistic(Task[Any]):
    name: ClassVar[str] = "logistic"
    summary: ClassVar[str] = "logistic regression on one token, C chosen on held-out pictures"
    default_datasets: ClassVar[tuple[str, ...]] = ()
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"resize": 112, "crop": 112, "c_count": 3}
        for name in ("dinov2-logistic", "logistic-multilabel")
    }
    protocols: Mapping[str, PathProtocol] = {
        "dinov2-logistic": LogisticProtocol(),
        "logistic-multilabel": MultilabelProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: PathProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        roles = _used(datasets)
        check = check_labels if isinstance(protocol, MultilabelProtocol) else check_classes
        check(datasets, roles)
        selectors = _selectors(protocol, architecture, seed)
        request = request_of(protocol, architecture, selectors)
        request = replace(request, streamed_bytes=NOTED * len(selectors))
        fitted = request.bytes_per_picture + fit_bytes(
            request.bytes_per_picture // len(selectors), len(datasets["train"].classes)
        )
        return {
            role: request if role == "test" else replace(request, bytes_per_picture=fitted)
            for role in roles
        }

    def start(self, context: Context[Any]) -> LogisticEvaluation | MultilabelEvaluation:
        several = isinstance(context.protocol, MultilabelProtocol)
        evaluation = MultilabelEvaluation if several else LogisticEvaluation
        selectors = _selectors(context.protocol, context.architecture, context.seed)
        return evaluation(context, selectors, _used(context.datasets))

    def seeded(self, protocol: PathProtocol) -> bool:
        return protocol.token in DRAWN


LOGISTIC = Logistic()
