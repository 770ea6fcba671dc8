"""Instance retrieval: which pictures of a gallery show what a query shows. Nothing is trained.

Radenović et al., "Revisiting Oxford and Paris" (CVPR 2018, arXiv 1803.11285), with frozen features
as in DINO (Caron et al., 2021; facebookresearch/dino, eval_image_retrieval.py): the gallery is
ranked by the cosine of global features, and the mean average precision over queries is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision
from harness.classification import FLOAT, CollectedEvaluation
from harness.data.dataset import Dataset, Query, Role
from harness.data.within_side import WithinSide, WithinSideThrice
from harness.errors import HarnessError
from harness.features.select import Selector, applicable, width
from harness.layers import resolve_layers
from harness.probes.ranking import average_precision, precision_at, ranked, ranks
from harness.task import (
    Context,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

_ROLES: tuple[Role, Role] = ("train", "test")
_SETUPS = ("medium", "hard", "easy")


class RetrievalProtocol(Protocol):
    """Ranking by a global feature; the defaults are DINO's code's, with queries cut to their boxes
    as the benchmark demands."""

    name: str
    version: str = "1.0"
    longest: StrictInt = Field(
        224, ge=1, description="the longer side, in pixels; what is smaller stays as it is"
    )
    interpolation: Literal["lanczos", "bicubic", "bilinear"] = "lanczos"
    query: Literal["box", "whole"] = Field(
        "box", description="what is seen of a query: its box, or the whole picture, as by DINO"
    )
    multiscale: bool = Field(
        False, description="the mean feature at that size, at 1/√2 and at 1/2 of it"
    )
    token: Literal["global", "cls", "registers-mean", "patch-mean", "cls+patch-mean", "center"] = (
        "global"
    )
    layer: StrictInt = -1
    norm: bool = Field(True, description="final norm")
    similarity: Literal["cosine"] = "cosine"
    average_precision: Literal["trapezoids"] = "trapezoids"
    precision_at: tuple[Annotated[StrictInt, Field(ge=1)], ...] = (1, 5, 10)
    tie_break: Literal["lowest gallery index"] = "lowest gallery index"
    precision: Precision = "fp32"


def answers(query: Query, setup: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which places in the gallery are positive in a setup, and which are ignored (paper, section
    2.3)."""
    match setup:
        case "easy":
            return query.easy, query.hard + query.junk
        case "medium":
            return query.easy + query.hard, query.junk
        case "hard":
            return query.hard, query.easy + query.junk
    raise ValueError(setup)


class _Features(NamedTuple):
    """Pictures that were seen, in the data set's order: their ``places [n]`` in it and unit
    ``vectors [n, D]``."""

    places: NDArray[np.int64]
    vectors: torch.Tensor


class RetrievalEvaluation(CollectedEvaluation[RetrievalProtocol]):
    """Gallery and queries, ranked once all of both are there."""

    def finish(self) -> Outcome:
        gallery, asked = map(self._features, _ROLES)
        # As places in the data set, by which queries speak of the gallery.
        order = gallery.places[ranked(asked.vectors, gallery.vectors)]
        samples = self._context.datasets["test"].samples
        absent = 0
        ids, rows = [], []
        for place, row in zip(asked.places, order, strict=True):
            query = samples[place].target.query
            assert query is not None
            known, without = _among(query, gallery.places)
            absent += without
            values = self._judged(known, row)
            if any(np.isfinite(value) for value in values.values()):
                ids.append(samples[place].id)
                rows.append(values)
        if not rows:
            raise HarnessError(
                f"data set {self._context.datasets['test'].name!r}: no query has an answer in the "
                "gallery that was read (with --limit, the beginning of it); mAP has no value"
            )
        counts = {"gallery_pictures": len(gallery.places)}
        if len(asked.places) > len(ids):
            counts["queries_without_answer"] = len(asked.places) - len(ids)
        if absent:
            counts["answers_not_in_gallery"] = absent
        return self._outcome(ids, rows, counts)

    def _features(self, role: Role) -> _Features:
        """The mean over the crops of each picture, to unit length."""
        (collector,) = self._collectors[role]
        of_crop, values = collector.rows()
        if not len(of_crop):
            name = self._context.datasets[role].name
            raise HarnessError(f"data set {name!r}: none of its pictures could be used")
        places, crops = np.unique(of_crop, return_counts=True)
        rows = torch.from_numpy(np.repeat(np.arange(len(places)), crops))
        sums = torch.zeros(len(places), values.shape[1]).index_add_(0, rows, values)
        return _Features(places, torch.nn.functional.normalize(sums))

    def _judged(self, query: Query, order: NDArray[np.int64]) -> dict[str, float]:
        """Every measure of one query, by its column; NaN in setups in which it has no answer."""
        values = {}
        for setup in _SETUPS:
            positive, ignored = answers(query, setup)
            found = ranks(order, positive, ignored) if positive else None
            values[f"ap_{setup}"] = (
                np.nan if found is None else average_precision(found, len(positive))
            )
            for k in self._context.protocol.precision_at:
                values[f"p{k}_{setup}"] = np.nan if found is None else precision_at(found, k)
        return values

    def _outcome(
        self, ids: list[str], rows: list[dict[str, float]], counts: dict[str, int]
    ) -> Outcome:
        columns: dict[str, Any] = {"image_id": ids}
        metrics = {}
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            if np.isnan(values).all():
                continue  # a benchmark without that setup
            measure, setup = name.split("_")
            if measure == "ap":
                counts[f"queries_{setup}"] = int(np.isfinite(values).sum())
            columns[name] = values
            shown = name in {"ap_medium", "ap_hard"}
            metrics[f"m{name}"] = MetricSpec(name, "%", True, 100, shown=shown, partial=True)
        return Outcome(columns, metrics, counts, self._read())


def _among(query: Query, places: NDArray[np.int64]) -> tuple[Query, int]:
    """The query with only those answers that are among ``places``, and how many are not."""
    lists = [np.array(each, np.int64) for each in (query.easy, query.hard, query.junk)]
    known = [tuple(each[np.isin(each, places)].tolist()) for each in lists]
    absent = sum(len(all_of) - len(some) for all_of, some in zip(lists[:2], known, strict=False))
    return Query(query.region, *known), absent


class InstanceRetrieval(Task[RetrievalProtocol]):
    name: ClassVar[str] = "instance-retrieval"
    summary: ClassVar[str] = "pictures of the same place, ranked by the global feature (mAP)"
    default_datasets: ClassVar[tuple[str, ...]] = ("roxford5k",)
    protocols: Mapping[str, RetrievalProtocol] = {
        "retrieval": RetrievalProtocol(name="retrieval"),
        "dino-retrieval": RetrievalProtocol(name="dino-retrieval", query="whole"),
        "dino-retrieval-multiscale": RetrievalProtocol(
            name="dino-retrieval-multiscale", longest=512, query="whole", multiscale=True
        ),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: RetrievalProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        if "train" not in datasets:
            raise NotApplicable("the data set has no gallery (its split for train)")
        if "test" not in datasets or any(
            sample.target.query is None for sample in datasets["test"].samples
        ):
            raise NotApplicable("the pictures of its test split are no queries")
        if protocol.longest < architecture.patch:
            raise NotApplicable(
                f"its patch of {architecture.patch} pixels is more than longest {protocol.longest}"
            )
        selector = _selector(protocol, architecture)
        view = WithinSideThrice if protocol.multiscale else WithinSide
        request = TokenRequest(
            view=view(
                architecture.patch,
                protocol.longest,
                protocol.interpolation,
                protocol.query == "box",
            ),
            select=(selector,),
            precision=protocol.precision,
            bytes_per_picture=FLOAT * width(selector, architecture) * view.crops_per_picture,
        )
        return dict.fromkeys(_ROLES, request)

    def start(self, context: Context[RetrievalProtocol]) -> RetrievalEvaluation:
        selector = _selector(context.protocol, context.architecture)
        return RetrievalEvaluation(context, [selector], _ROLES)

    def seeded(self, protocol: RetrievalProtocol) -> bool:
        return False


def _selector(protocol: RetrievalProtocol, architecture: Architecture) -> Selector:
    (layer,) = resolve_layers((protocol.layer,), architecture.depth)
    assert isinstance(layer, int)
    selector = Selector(protocol.token, layer, protocol.norm)
    applicable(selector, architecture)
    return selector


INSTANCE_RETRIEVAL = InstanceRetrieval()
