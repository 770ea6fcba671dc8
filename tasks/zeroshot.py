"""Zero-shot: a picture's class is the one whose texts are nearest. Nothing is trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), section 3.1; the vectors of a class's texts are averaged as in the notebook
Prompt_Engineering_for_ImageNet of openai/CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from harness.aggregates import values
from harness.backbone.architecture import Architecture
from harness.classification import CollectedEvaluation, several_classes
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.language.class_texts import Prompts, class_texts, texts_digest
from harness.language.pictures import PictureProtocol, request_of, resolved, selector_of
from harness.language.texts import Texts
from harness.language.zero_shot import (
    check_labels,
    cosines,
    number_cut,
    ranks,
    right_ones,
    weights_per_class,
)
from harness.task import Context, MetricSpec, NotApplicable, Outcome, Task, TokenRequest

_TOP = (1, 5)


class _ClassesByTexts(PictureProtocol):
    """How texts stand for classes."""

    version: str = "1.0"
    prompts: Prompts = "own"
    averaged: Literal["unit vectors, then of unit length again"] = (
        "unit vectors, then of unit length again"
    )


class ZeroshotProtocol(_ClassesByTexts):
    """A picture is right where the nearest class is (one of) its own."""

    name: str = "zeroshot"
    tie_break: Literal["lowest class"] = "lowest class"


class MultilabelProtocol(_ClassesByTexts):
    """Pictures that show several classes: each class ranks them by cosine."""

    name: str = "zeroshot-multilabel"
    average_precision: Literal["11-point", "area"] = "11-point"

    @property
    def aggregate(self) -> str:
        """The name of mAP in a record."""
        return f"mean_average_precision_{self.average_precision.replace('-', '_')}"


ZeroshotProtocols = ZeroshotProtocol | MultilabelProtocol


class ZeroshotEvaluation(CollectedEvaluation[Any]):
    """Texts are encoded at the end: the pictures' features are in the store by then."""

    def __init__(self, context: Context[Any]) -> None:
        super().__init__(context, [selector_of(context.architecture)], ["test"])

    def finish(self) -> Outcome:
        context = self._context
        protocol, dataset, text = context.protocol, context.datasets["test"], context.text
        assert isinstance(text, Texts)
        groups = class_texts(dataset.name, dataset.classes, protocol.prompts)
        (collector,) = self._collectors.pop("test")
        test = collector.examples()
        scores = cosines(text, test.features, text.means(groups)).numpy()
        counts = {"texts": sum(map(len, groups)), "texts_cut": number_cut(text, groups)}
        facts = {
            **resolved(protocol, context.architecture),
            "texts_sha256": texts_digest(groups),
            "first_text": groups[0][0],
        }
        outcome = (
            _several(protocol, dataset, test.ids, test.labels, scores)
            if isinstance(protocol, MultilabelProtocol)
            else _nearest(dataset, test.ids, test.labels, scores)
        )
        columns, metrics, more, details = outcome
        return Outcome(columns, metrics, {**counts, **more}, facts, details=details)


_Found = tuple[dict[str, Any], dict[str, MetricSpec], dict[str, int], dict[str, Any]]


def _nearest(dataset: Dataset, ids: tuple[str, ...], labels: Any, scores: Any) -> _Found:
    """Accuracies; of pictures with several classes any is right, and those with none are left
    out."""
    right = right_ones(labels, len(dataset.classes))
    there = right.any(axis=1)
    rank = ranks(scores[there], right[there])
    columns: dict[str, Any] = {
        "image_id": [each for each, own in zip(ids, there, strict=True) if own]
    }
    if labels.ndim == 1:
        columns["label"] = labels
    columns["predicted"] = scores[there].argmax(axis=1)
    metrics = {}
    for top in _TOP:
        if top == 1 or len(dataset.classes) > top:
            columns[f"top{top}"] = rank < top
            metrics[f"top{top}"] = MetricSpec(f"top{top}", "%", True, 100)
    if labels.ndim == 1:
        columns["mean_per_class"] = (rank < 1) * weights_per_class(labels)
        metrics["mean_per_class"] = MetricSpec("mean_per_class", "%", True, 100)
    without = int((~there).sum())
    return columns, metrics, {"pictures_without_class": without} if without else {}, {}


def _several(
    protocol: MultilabelProtocol, dataset: Dataset, ids: tuple[str, ...], labels: Any, scores: Any
) -> _Found:
    present = labels.astype(np.int8)
    columns = {"image_id": list(ids), "scores": scores, "present": present}
    how, others = protocol.aggregate, ("present",)
    metrics = {"map": MetricSpec("scores", "%", True, 100, aggregate=how, others=others)}
    precisions = 100 * values(how, [scores, present])
    told = {
        name: None if np.isnan(each) else round(float(each), 4)
        for name, each in zip(dataset.classes, precisions, strict=True)
    }
    lacking = int((~(present == 1).any(axis=0)).sum())
    counts = {"classes_not_in_test": lacking} if lacking else {}
    return columns, metrics, counts, {"average_precision": told}


class Zeroshot(Task[Any]):
    name: ClassVar[str] = "zeroshot"
    summary: ClassVar[str] = "the class whose texts are nearest, by the model's own text tower"
    default_datasets: ClassVar[tuple[str, ...]] = ()
    needs_text: ClassVar[bool] = True
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        name: {"size": 112, "prompts": "plain"} for name in ("zeroshot", "zeroshot-multilabel")
    }
    protocols: Mapping[str, ZeroshotProtocols] = {
        "zeroshot": ZeroshotProtocol(),
        "zeroshot-multilabel": MultilabelProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: ZeroshotProtocols,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        check_labels(datasets)
        test = datasets["test"]
        if isinstance(protocol, MultilabelProtocol) and not several_classes(test):
            raise NotApplicable("its pictures have one class (the protocol zeroshot judges those)")
        class_texts(test.name, test.classes, protocol.prompts)  # a class without a name ends here
        return {"test": request_of(protocol, architecture)}

    def seeded(self, protocol: ZeroshotProtocols) -> bool:
        return False

    def start(self, context: Context[Any]) -> ZeroshotEvaluation:
        if context.text is None:
            raise HarnessError("task zeroshot: the model has no text tower")
        return ZeroshotEvaluation(context)


ZEROSHOT = Zeroshot()
