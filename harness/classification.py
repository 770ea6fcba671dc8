"""Judging one feature a picture by its class: what kNN, linear and logistic probes share.

Which token stands for the picture and how the picture is cut (their protocols' common fields), the
labels and what may be wrong with them (of several classes a picture: `multilabel.py`), and the
columns of an outcome. Features are put in the data set's order in `collected.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Generic, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, model_validator

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision
from harness.collected import check_finite, collectors, several_classes
from harness.data.dataset import Dataset, Role, Sample, Target
from harness.data.views import CentreCrop
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule, RuleText
from harness.features.select import DRAWN, Selector, TokenName, applicable, width
from harness.layers import resolve_layers
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    P,
    Protocol,
    TokenRequest,
)

FLOAT = 4  # bytes
TOP = (1, 5)

SelectionShare = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="of train, by the hash of the id; a split for selection is taken where the "
        "data set has one",
    ),
]
"""A protocol's field of this kind says how much of train chooses hyper-parameters."""


class TokenProtocol(Protocol):
    """The fields that say what is read of a picture; the defaults are DINOv2's evaluations'."""

    resize: StrictInt = Field(256, ge=1, description="the shorter side, in pixels")
    crop: StrictInt = Field(224, ge=1, description="side of the middle that is cut out")
    tokens: StrictInt | None = Field(
        None,
        ge=1,
        description="patches a picture, in place of crop: 1024 is 448 px for patch 14 and 512 for "
        "16; resize grows with it",
    )
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    token: TokenName = "global"
    layer: StrictInt = -1
    norm: bool = Field(True, description="final norm")
    outliers: RuleText | None = Field(
        None,
        description="of the tokens outlier and normal: the norm above which a patch is one, or "
        "quantile0.98, mean+3sd (the default) or valley",
    )
    precision: Precision = "fp16"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tokens is None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is more than what resize {self.resize} leaves")
        if self.outliers is not None and self.token not in {"outlier", "normal"}:
            raise ValueError(f"outliers: of the tokens outlier and normal, not of {self.token}")
        if self.tokens is not None and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"tokens {self.tokens}: a square number is needed, such as 1024")
        return self


def view_of(protocol: TokenProtocol, architecture: Architecture) -> CentreCrop:
    """How pictures are cut for this model. Raises ``NotApplicable`` where the patch does not
    divide the crop."""
    resize, crop = protocol.resize, protocol.crop
    if protocol.tokens is not None:
        side = math.isqrt(protocol.tokens) * architecture.patch
        resize, crop = max(side, round(resize * side / crop)), side
    if crop % architecture.patch:
        lower = crop // architecture.patch * architecture.patch
        raise NotApplicable(
            f"its patch of {architecture.patch} pixels does not divide the crop of {crop} (--set "
            f"crop={lower or architecture.patch})"
        )
    return CentreCrop(resize, crop, protocol.interpolation)


def selector_of(
    protocol: TokenProtocol, architecture: Architecture, seed: int = 0, draw: int = 0
) -> Selector:
    """The token that the protocol names, for this model. Raises ``NotApplicable`` where it has
    none such."""
    (layer,) = resolve_layers((protocol.layer,), architecture.depth)
    assert isinstance(layer, int)
    rule = None
    if protocol.token in {"outlier", "normal"}:
        rule = OutlierRule.parse("mean+3sd" if protocol.outliers is None else protocol.outliers)
    drawn = (draw, seed) if protocol.token in DRAWN else (0, 0)
    selector = Selector(protocol.token, layer, protocol.norm, rule, *drawn)
    applicable(selector, architecture)
    return selector


def request_of(
    protocol: TokenProtocol, architecture: Architecture, selectors: Sequence[Selector]
) -> TokenRequest:
    """A request for these tokens of every picture, each read once."""
    return TokenRequest(
        view=view_of(protocol, architecture),
        select=tuple(selectors),
        precision=protocol.precision,
        bytes_per_picture=FLOAT * sum(width(each, architecture) for each in selectors),
    )


def check_classes(datasets: Mapping[Role, Dataset], needed: Sequence[Role]) -> None:
    """Raises ``NotApplicable`` where classification makes no sense on a data set: a split or its
    labels are not there, pictures have several classes, or train has one class only; and
    ``HarnessError`` for labels that are wrong: out of range, or of other classes in one split than
    in another."""
    for role in needed:
        if role not in datasets:
            raise NotApplicable(f"the data set has no {role} split")
        if several_classes(datasets[role]):
            raise NotApplicable(
                "a picture of it may have several classes (the protocol logistic-multilabel of "
                "logistic judges those)"
            )
        if all(sample.target.label is None for sample in datasets[role].samples):
            raise NotApplicable(f"its {role} split has no labels")
    train = datasets["train"]
    for role in needed:
        dataset = datasets[role]
        check_same_classes(train, dataset, role)
        for sample in dataset.samples:
            label = sample.target.label
            if label is None:
                raise HarnessError(f"data set {dataset.name!r}: {sample.id} has no label")
            check_label(dataset, sample, label)
    if len({sample.target.label for sample in train.samples}) < 2:
        raise NotApplicable("its train split has pictures of one class only")


def check_same_classes(train: Dataset, dataset: Dataset, role: Role) -> None:
    """Raises ``HarnessError`` where a split has other classes than train, or another order."""
    if dataset.classes != train.classes:
        raise HarnessError(
            f"data set {dataset.name!r}: the classes of its {role} split are not those of its "
            f"train split ({_difference(train.classes, dataset.classes)})"
        )


def check_further(head: Sequence[str], test: Dataset) -> None:
    """Raises ``NotApplicable`` where a head that tells the classes ``head`` apart says nothing of
    ``test``, and ``HarnessError`` for a class that it does not know and for labels out of range."""
    if not any(right_classes(sample.target) for sample in test.samples):
        raise NotApplicable(f"its {test.split} split has no labels")
    if len(test.classes) < 2:
        raise NotApplicable("its pictures are of one class only, and so each would be right")
    strange = [name for name in test.classes if name not in set(head)]
    if strange:
        some = ", ".join(strange[:3]) + (" …" if len(strange) > 3 else "")
        raise HarnessError(
            f"data set {test.name!r}: {len(strange)} of its {len(test.classes)} classes are none "
            f"of the {len(head)} that the head was trained for ({some})"
        )
    for sample in test.samples:
        for label in right_classes(sample.target):
            check_label(test, sample, label)
        if sample.target.label is None and sample.target.labels is None:
            raise HarnessError(f"data set {test.name!r}: {sample.id} has no label")


def check_label(dataset: Dataset, sample: Sample, label: int) -> None:
    """Raises ``HarnessError`` for a label of ``sample`` that is none of the classes."""
    if not 0 <= label < len(dataset.classes):
        raise HarnessError(
            f"data set {dataset.name!r}: the label of {sample.id}, {label}, is none of the "
            f"{len(dataset.classes)} classes"
        )


def right_classes(target: Target) -> tuple[int, ...]:
    """The classes of which any is right for a picture; there may be none."""
    if target.labels is not None:
        return target.labels.present
    return () if target.label is None else (target.label,)


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    apart = sorted(set(ours) ^ set(theirs))
    return f"{', '.join(apart[:3])}{' …' if len(apart) > 3 else ''}" if apart else "another order"


def joined(
    batch: Batch, selectors: Sequence[Selector], dataset: str
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Of every row the picture's id, the vectors of all ``selectors`` side by side ``[B, W]``, and
    on the CPU whether it has all of them ``[B]``. Raises ``HarnessError`` for a feature that is not
    finite."""
    found = [batch.selected[each] for each in selectors]
    features = torch.cat([each.values for each in found], dim=1)
    ids = [batch.ids[picture] for picture in batch.sample]
    check_finite(features, ids, dataset)
    return ids, features, torch.stack([each.there for each in found]).all(0).cpu()


class CollectedEvaluation(Evaluation, Generic[P]):
    """Keeps the features of whole splits, or with ``Context.block`` where the feature store has
    them, and computes in ``finish``, in the data set's order: no batch and no order of arrival
    shows, and an error there costs no neighbour its pass.

    There is one selector for each draw of a token. ``self._collectors[role]`` are let go of as
    they are used.
    """

    def __init__(
        self, context: Context[P], selectors: Sequence[Selector], roles: Iterable[Role]
    ) -> None:
        self._context, self._selectors = context, selectors
        self._collectors = {
            role: collectors(context.datasets[role], selectors, context.block is not None)
            for role in roles
        }

    def update(self, role: Role, batch: Batch) -> None:
        for collector in self._collectors[role]:
            collector.add(batch)

    def _without(self) -> dict[str, int]:
        """Counts of the pictures that lack the token, the same ones in every draw."""
        return {
            f"{role}_without_token": of[0].without
            for role, of in self._collectors.items()
            if of[0].without
        }

    def _read(self) -> dict[str, Any]:
        """What of the token was resolved for this model."""
        first = self._selectors[0]
        read: dict[str, Any] = {"layer": first.layer}
        if first.rule is not None:
            read["outlier_cutoff"] = self._context.cutoffs[first.rule]
        return read

    def state(self) -> object:
        return {role: [each.state() for each in of] for role, of in self._collectors.items()}

    def load(self, state: Any) -> None:
        for role, of in self._collectors.items():
            for collector, stored in zip(of, state[role], strict=True):
                collector.load(stored)

    def merge(self, other: Self) -> None:
        for role, of in self._collectors.items():
            for ours, theirs in zip(of, other._collectors[role], strict=True):
                ours.merge(theirs)


def over_draws(
    metrics: Mapping[str, MetricSpec], scores: Mapping[str, NDArray[np.float64]]
) -> tuple[dict[str, MetricSpec], dict[str, Any]]:
    """Metrics with their standard deviation over the draws that gave ``scores``, ``[draws]`` each,
    and ``details`` that tell them. Of one draw there is nothing to say."""
    if any(len(values) == 1 for values in scores.values()):
        return dict(metrics), {}
    spread = {
        name: replace(spec, sd=float(scores[name].std(ddof=1))) for name, spec in metrics.items()
    }
    return spread, {"draws": {name: values.tolist() for name, values in scores.items()}}
