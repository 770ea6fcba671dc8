"""The census of attention sinks: how many each layer and head has, of which kind and mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from harness.backbone.vit import Precision
from harness.data.dataset import Dataset, Role
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.layers import resolve_layers
from harness.probes.sinks import KINDS, MECHANISMS, sinks
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
    TokenRequest,
)

if TYPE_CHECKING:
    from harness.backbone.architecture import Architecture

_COLUMNS = ("sinks", "class", "register", "patch", "null", "broadcast", "norm", "rank", "drawn")


class SinkProtocol(Protocol):
    """When a token is a sink, and of which mechanism; the cut-offs are the published code's."""

    name: str = "attention-sinks"
    version: str = "1.0"
    view: Literal["whole picture, zeros right and below"] = "whole picture, zeros right and below"
    layers: Literal["all", "last", "last:4", "quarters"] | tuple[StrictInt, ...] = "all"
    share: float = Field(
        0.3, gt=0, lt=1, description="of all queries' attention; a sink draws more than that"
    )
    null_norm: float = Field(
        0.2, ge=0, description="a null-like sink's value has at most so much of the median norm"
    )
    broadcast_norm: float = Field(
        0.5, ge=0, description="a broadcast-like sink's value has at least so much of it"
    )
    broadcast_rank: float = Field(
        1.5, ge=1, description="and the head's output has at most this stable rank"
    )
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    precision: Precision = "fp32"


class SinkEvaluation(Evaluation):
    """Counts sinks. What is kept of a picture are nine numbers; of a head, sums over pictures."""

    def __init__(self, context: Context[SinkProtocol]) -> None:
        self._protocol = context.protocol
        self._layers = _layers(context.protocol, context.architecture.depth)
        self._order = {s.id: i for i, s in enumerate(context.datasets["test"].samples)}
        self._rows: dict[str, NDArray[np.float64]] = {}
        shape = len(self._layers), context.architecture.heads
        self._counts = np.zeros((*shape, len(KINDS), len(MECHANISMS)), np.int64)
        self._sums = np.zeros((*shape, 3))

    @staticmethod
    def requests(
        architecture: Architecture, datasets: Mapping[Role, Dataset], protocol: SinkProtocol
    ) -> dict[Role, TokenRequest]:
        """Every test picture whole, once. Raises ``NotApplicable``."""
        check_attention(architecture, datasets)
        return {
            "test": TokenRequest(
                view=WholePicture(architecture.patch, protocol.max_patches),
                received=_layers(protocol, architecture.depth),
                precision=protocol.precision,
                bytes_per_picture=8 * len(_COLUMNS),
            )
        }

    def update(self, role: Role, batch: Batch) -> None:
        settings = self._protocol
        found = [
            sinks(
                batch.received[layer],
                settings.share,
                settings.null_norm,
                settings.broadcast_norm,
                settings.broadcast_rank,
            )
            for layer in self._layers
        ]
        counts = np.stack([each.counts.cpu().numpy() for each in found], axis=1)
        figures = np.stack(
            [
                np.stack([part.double().cpu().numpy() for part in each[1:]], axis=-1)
                for each in found
            ],
            axis=1,
        )  # [B, layers, heads, 3]
        if not np.isfinite(figures).all():
            raise HarnessError(
                f"{settings.name}: attention is not finite (half precision, or broken weights?)"
            )
        self._counts += counts.sum(axis=0)
        self._sums += figures.sum(axis=0)
        for row, index in enumerate(batch.sample):
            self._rows[batch.ids[index]] = _of_picture(counts[row], figures[row])

    def finish(self) -> Outcome:
        ids = sorted(self._rows, key=self._order.__getitem__)
        if not ids:
            raise HarnessError(f"{self._protocol.name}: no picture was read; sinks have no count")
        table = np.stack([self._rows[image] for image in ids])
        columns: dict[str, Any] = {"image_id": ids, **dict(zip(_COLUMNS, table.T, strict=True))}
        metrics = {
            f"{name}_sinks": MetricSpec(name, "%", False, 100) for name in ("class", "register")
        }
        metrics |= {"patch_sinks": MetricSpec("patch", "%", False, 100)}
        metrics |= {
            f"{name}_like": MetricSpec(name, "%", False, 100) for name in ("null", "broadcast")
        }
        metrics |= {
            "sink_heads": MetricSpec("sinks", "%", False, 100, shown=False),
            "most_drawn": MetricSpec("drawn", "%", False, 100, shown=False),
        }
        if not np.isnan(table[:, _COLUMNS.index("norm")]).all():
            metrics |= {
                "sink_value_norm": MetricSpec("norm", "", False, shown=False, partial=True),
                "sink_rank": MetricSpec("rank", "", False, shown=False, partial=True),
            }
        resolved = {"layers": list(self._layers)}
        return Outcome(columns, metrics, resolved=resolved, details=self._details(len(ids)))

    def _details(self, pictures: int) -> dict[str, Any]:
        """For each layer and head, sinks a picture by kind and mechanism, and the mean figures of
        the token that draws most."""
        share = self._counts / pictures
        by = {kind: share[:, :, place].sum(-1) for place, kind in enumerate(KINDS)}
        by |= {name: share[:, :, :, place].sum(-1) for place, name in enumerate(MECHANISMS)}
        names = "value_norm_of_most_drawn", "most_drawn", "rank"
        by |= {name: self._sums[:, :, place] / pictures for place, name in enumerate(names)}
        return {
            "layers": list(self._layers),
            "heads": {name: np.round(values, 6).tolist() for name, values in by.items()},
        }

    def state(self) -> object:
        return self._rows, self._counts, self._sums

    def load(self, state: Any) -> None:
        self._rows, self._counts, self._sums = dict(state[0]), state[1].copy(), state[2].copy()

    def merge(self, other: Self) -> None:
        self._rows |= other._rows
        self._counts += other._counts
        self._sums += other._sums


def check_attention(architecture: Architecture, datasets: Mapping[Role, Dataset]) -> None:
    """Raises ``NotApplicable`` where there is no attention to read, or no picture to read it of."""
    if not architecture.attends:
        raise NotApplicable("its blocks have no attention of one softmax a head")
    if "test" not in datasets:
        raise NotApplicable("the data set has no test split")


def _of_picture(counts: NDArray[np.int64], figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """The columns of a picture: shares of its heads that have such a sink, and the mean of each
    figure, of norm and rank over those heads that have a sink (NaN without)."""
    any_ = counts.sum((2, 3)) > 0
    kinds = (counts.sum(3) > 0).mean((0, 1))
    mechanisms = (counts.sum(2) > 0).mean((0, 1))[:2]
    own = figures[any_][:, [0, 2]].mean(0) if any_.any() else np.full(2, np.nan)
    return np.array([any_.mean(), *kinds, *mechanisms, *own, figures[..., 1].mean()])


def _layers(protocol: SinkProtocol, depth: int) -> tuple[int, ...]:
    return tuple(each for each in resolve_layers(protocol.layers, depth) if isinstance(each, int))
