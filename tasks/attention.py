"""Attention: does the class token, or a register, look at the objects?

The last block's attention to the patches as a map over the picture, judged against masks of
objects, or their boxes: the pointing game, the attention inside objects, the overlap at the best
threshold and at a fixed mass (DINO's figures keep 60 %), and as a segmentation ("Vision
Transformers Don't Need Trained Registers", table 4). The protocol ``attention-sinks`` counts sinks
(``harness/sink_census.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, StringConstraints
from torch import Tensor

from harness.aggregates import values
from harness.backbone.architecture import Architecture
from harness.backbone.layout import TokenLayout
from harness.backbone.vit import Precision
from harness.data.dataset import IGNORED, Dataset, Dense, Role, Target, places_by_id
from harness.data.fixed_size import FixedSize
from harness.data.views import Geometry, View, WholePicture
from harness.discovery import objects
from harness.errors import HarnessError
from harness.features.windows import full_size
from harness.layers import resolve_layers
from harness.probes.attention_maps import entropy, localisation
from harness.selection import held_out
from harness.sink_census import SinkEvaluation, SinkProtocol, check_attention
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

_PIXELS = 2**22
"""Of resized maps that are ranked at a time: some 400 MB."""
_METRICS = {
    "pointing_game": MetricSpec("pointing", "%", True, 100),
    "attention_inside": MetricSpec("inside", "%", True, 100),
    "iou_at_mass": MetricSpec("mass_iou", "%", True, 100, shown=False),
    "best_iou": MetricSpec("best_iou", "%", True, 100, shown=False),
    "miou": MetricSpec(
        "intersection",
        "%",
        True,
        100,
        aggregate="mean_intersection_over_union",
        others=("predicted", "labelled"),
    ),
    "pixel_accuracy": MetricSpec(
        "intersection",
        "%",
        True,
        100,
        aggregate="pixel_accuracy",
        others=("predicted", "labelled"),
    ),
    "map": MetricSpec("precision", "%", True, 100),
    "object_share": MetricSpec("objects", "%", True, 100, shown=False),
}
"""Where there are objects; the last is what a map without any idea of them has inside."""
_ALWAYS = {
    "entropy": MetricSpec("entropy", "%", False, 100),
    "to_patches": MetricSpec("to_patches", "%", True, 100, shown=False),
}
_COUNTS = "intersection", "predicted", "labelled"
_SINGLE = "pointing", "inside", "best_iou", "mass_iou", "precision", "objects"
_SEEN = 2
_NUMBERS = _SEEN + len(_SINGLE) + 2 * len(_COUNTS)

Against = Literal["masks", "boxes"]
Source = Annotated[
    str, StringConstraints(pattern=r"^(class else registers|class|registers|register[1-9][0-9]*)$")
]


class AttentionProtocol(Protocol):
    """Whose attention is a map, how it is laid over the picture, and what it is held against."""

    name: str = "attention"
    version: str = "1.0"
    side: StrictInt | None = Field(
        None,
        ge=1,
        description="of the square that every picture is resized to, in pixels; none: its stored "
        "size, zeros right and below",
    )
    layers: Literal["all", "last", "last:4", "quarters"] | tuple[StrictInt, ...] = Field(
        "last", description="details tell of all of them; the last named is the one reported"
    )
    source: Source = Field(
        "class else registers",
        description="class, register1 …, or registers, which is their mean",
    )
    heads: Literal["mean", "best on held-out pictures", "best on test"] | StrictInt = "mean"
    chosen_by: Literal["iou_at_mass"] = "iou_at_mass"
    selection_share: float = Field(0.2, gt=0, lt=1)
    objects: Literal["masks else boxes", "masks", "boxes"] = "masks else boxes"
    keep_hard: bool = Field(True, description="difficult and truncated boxes count")
    resized: Literal["maps, bilinear, to the stored size"] = "maps, bilinear, to the stored size"
    mass: float = Field(0.6, gt=0, le=1, description="of iou_at_mass")
    threshold: Literal["mean of the map"] = Field(
        "mean of the map", description="of miou and pixel_accuracy"
    )
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    precision: Precision = "fp32"


class AttentionEvaluation(Evaluation):
    """Scores the map of every head, and that of their mean, in every layer.

    What is kept of a picture are 14 numbers for each of these.
    """

    def __init__(self, context: Context[AttentionProtocol]) -> None:
        self._protocol = context.protocol
        self._layers = _layers(context.protocol, context.architecture.depth)
        self._source, self._rows = source_of(context.protocol, context.architecture.layout)
        test = context.datasets["test"]
        self._against = against(context.protocol, test)
        self._order = places_by_id(test)
        self._tables: dict[str, NDArray[np.float64]] = {}
        self._skipped = 0

    def update(self, role: Role, batch: Batch) -> None:
        for row, index in enumerate(batch.sample):
            geometry, where = batch.geometry[row], None
            if self._against is not None:
                dense = batch.dense[index] if batch.dense else Dense()
                hard = self._protocol.keep_hard
                where = regions(self._against, batch.targets[index], dense, geometry.stored, hard)
                if not where[0].any():
                    self._skipped += 1
                    continue
            parts = [
                self._scores(batch.attention[layer][row, :, self._rows], geometry, where)
                for layer in self._layers
            ]
            self._tables[batch.ids[index]] = np.stack(parts)

    def _scores(
        self, rows: Tensor, geometry: Geometry, where: tuple[NDArray[np.bool_], ...] | None
    ) -> NDArray[np.float64]:
        """Of rows ``[heads, sources, H, W]`` the numbers of the heads' mean and of each head,
        ``[1 + heads, n]``."""
        heads = rows.float().mean(1)
        if not torch.isfinite(heads).all():
            raise HarnessError(
                f"{self._protocol.name}: attention is not finite (half precision, or broken "
                "weights?)"
            )
        maps = torch.cat((heads.mean(0, keepdim=True), heads))
        seen = torch.stack((entropy(maps), maps.double().sum((1, 2))), 1).cpu().numpy()
        if where is None:
            return seen
        return np.concatenate((seen, found(maps, *where, geometry, self._protocol.mass)), axis=1)

    def finish(self) -> Outcome:
        ids, heads = sorted(self._tables, key=self._order.__getitem__), self._protocol.heads
        if not ids:
            raise HarnessError(
                f"{self._protocol.name}: no picture with an object was scored; there is no value"
            )
        table = np.stack([self._tables[image] for image in ids])  # [n, layers, 1 + heads, numbers]
        counts = {} if self._against is None else {"skipped_no_object": self._skipped}
        point, reported, selected_on = 0, np.ones(len(ids), bool), None
        if isinstance(heads, int):
            point = 1 + heads
        elif heads != "mean":
            selected_on = heads.removeprefix("best on ")
            choosing = reported
            if heads == "best on held-out pictures":
                if len(ids) < 2:
                    raise HarnessError(
                        f"{self._protocol.name}: two pictures with objects are needed, 1 given"
                    )
                choosing = held_out(ids, self._protocol.selection_share)
                reported = ~choosing
            overlap = table[choosing, -1, 1:, _SEEN + _SINGLE.index("mass_iou")].mean(0)
            point = 1 + int(np.argmax(overlap))  # the first of equals
            counts["selection_pictures"] = int(choosing.sum())
        table = table[reported]
        scored = [image for image, keep in zip(ids, reported, strict=True) if keep]
        metrics = dict(_ALWAYS)
        if self._against is not None:
            metrics = {**_METRICS, **{k: replace(v, shown=False) for k, v in _ALWAYS.items()}}
        return Outcome(
            {"image_id": scored, **_columns(table[:, -1, point])},
            metrics,
            counts,
            {
                "layers": list(self._layers),
                "layer": self._layers[-1],
                "source": self._source,
                "head": "mean" if point == 0 else point - 1,
                "objects": self._against or "none",
            },
            selected_on,
            {
                "layers": [
                    self._told(layer, part)
                    for layer, part in zip(self._layers, table.swapaxes(0, 1), strict=True)
                ]
            },
        )

    def _told(self, layer: int, table: NDArray[np.float64]) -> dict[str, Any]:
        """The metrics of the heads' mean and of every head in one layer."""
        by_point = [_scored(_columns(each)) for each in table.swapaxes(0, 1)]
        return {"layer": layer, "mean": by_point[0], "heads": by_point[1:]}

    def state(self) -> object:
        return self._tables, self._skipped

    def load(self, state: Any) -> None:
        self._tables, self._skipped = dict(state[0]), state[1]

    def merge(self, other: Self) -> None:
        self._tables |= other._tables
        self._skipped += other._skipped


def source_of(protocol: AttentionProtocol, layout: TokenLayout) -> tuple[str, slice]:
    """Whose attention is read: its name, and its rows among those of class and register tokens.
    Raises ``NotApplicable`` where the model has no such token."""
    wanted, first = protocol.source, layout.classes
    if wanted == "class else registers":
        if not layout.extra:
            raise NotApplicable("it has neither a class token nor registers")
        wanted = "class" if layout.classes else "registers"
    if wanted == "class":
        if not layout.classes:
            raise NotApplicable("it has no class token (--set source=registers)")
        return wanted, slice(0, 1)
    if not layout.registers:
        raise NotApplicable("it has no registers")
    if wanted == "registers":
        return wanted, slice(first, first + layout.registers)
    number = int(wanted.removeprefix("register"))
    if number > layout.registers:
        raise NotApplicable(f"it has no register {number}: they are {layout.registers}")
    return wanted, slice(first + number - 1, first + number)


def against(protocol: AttentionProtocol, dataset: Dataset) -> Against | None:
    """What says where objects are; None where nothing does. Raises ``NotApplicable`` where that was
    asked for by name."""
    if protocol.objects != "boxes" and dataset.semantic_classes[:1] == ("background",):
        return "masks"
    if protocol.objects != "masks" and dataset.has_boxes:
        return "boxes"
    if protocol.objects == "masks else boxes":
        return None
    raise NotApplicable(f"the data set has no {protocol.objects} of objects")


def regions(
    kind: Against, target: Target, dense: Dense, size: tuple[int, int], keep_hard: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the objects of a picture of stored ``size`` (width, height) are, and which of its
    pixels count: ``[height, width]`` each."""
    width, height = size
    counted = np.ones((height, width), bool)
    if kind == "masks":
        if dense.semantic is not None:
            counted = dense.semantic != IGNORED
        labels = dense.semantic if dense.instances is None else dense.instances
        assert labels is not None
        return (labels > 0) & counted, counted
    there = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in np.maximum(objects(target.boxes, keep_hard), 0):
        there[y0:y1, x0:x1] = True
    return there, counted


def found(
    maps: Tensor,
    there: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    geometry: Geometry,
    mass: float,
) -> NDArray[np.float64]:
    """What ``maps [M, H, W]`` over a picture's patches tell of where objects are, ``[M, n]``: the
    numbers of ``_SINGLE``, then the counts of ``_COUNTS``, of the rest and of objects."""
    place = torch.from_numpy(counted).to(maps.device)
    inside = torch.from_numpy(there).to(maps.device)[place]
    area = inside.sum()
    labelled = torch.stack((len(inside) - area, area))
    parts = []
    for some in maps.split(max(1, _PIXELS // place.numel())):
        scores = localisation(full_size([some], [geometry])[:, place], inside, mass)
        single = [getattr(scores, name).double() for name in _SINGLE[:-1]]
        single.append((area / len(inside)).double().expand(len(some)))
        counts = [scores.intersection, scores.predicted, labelled.expand(len(some), 2)]
        parts.append(torch.cat((torch.stack(single, 1), *(each.double() for each in counts)), 1))
    table: NDArray[np.float64] = torch.cat(parts).cpu().numpy()
    return table


def _columns(table: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """``[pictures, numbers]`` as the columns of an outcome."""
    columns = {"entropy": table[:, 0], "to_patches": table[:, 1]}
    if table.shape[1] > _SEEN:
        columns |= {name: table[:, _SEEN + place] for place, name in enumerate(_SINGLE)}
        first = _SEEN + len(_SINGLE)
        columns |= {
            name: table[:, first + 2 * place : first + 2 * place + 2]
            for place, name in enumerate(_COUNTS)
        }
    return columns


def _scored(columns: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The metrics of these columns, rounded."""
    every = {name: spec for name, spec in {**_METRICS, **_ALWAYS}.items() if spec.column in columns}
    return {
        name: round(
            spec.scale
            * float(
                np.nanmean(
                    values(spec.aggregate, [columns[c] for c in (spec.column, *spec.others)])
                )
            ),
            4,
        )
        for name, spec in every.items()
    }


def _layers(protocol: AttentionProtocol, depth: int) -> tuple[int, ...]:
    return tuple(each for each in resolve_layers(protocol.layers, depth) if isinstance(each, int))


class Attention(Task[Any]):
    name: ClassVar[str] = "attention"
    summary: ClassVar[str] = "whether class and register tokens look at objects; a census of sinks"
    default_datasets: ClassVar[tuple[str, ...]] = ("voc07",)
    protocols: Mapping[str, AttentionProtocol | SinkProtocol] = {
        "attention": AttentionProtocol(),
        "attention-sinks": SinkProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: AttentionProtocol | SinkProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        if isinstance(protocol, SinkProtocol):
            return SinkEvaluation.requests(architecture, datasets, protocol)
        check_attention(architecture, datasets)
        source_of(protocol, architecture.layout)
        layers, heads = _layers(protocol, architecture.depth), protocol.heads
        kind = against(protocol, datasets["test"])
        if isinstance(heads, int) and not 0 <= heads < architecture.heads:
            raise NotApplicable(f"head {heads} of a model with {architecture.heads}, from 0")
        if isinstance(heads, str) and heads != "mean" and kind is None:
            raise NotApplicable("the data set has neither masks nor boxes to choose a head by")
        view: View = WholePicture(architecture.patch, protocol.max_patches)
        if protocol.side is not None:
            view = FixedSize(architecture.patch, (protocol.side, protocol.side))
        return {
            "test": TokenRequest(
                view=view,
                attention=layers,
                precision=protocol.precision,
                dense="pictures" if kind == "masks" else None,
                bytes_per_picture=8 * _NUMBERS * len(layers) * (1 + architecture.heads),
            )
        }

    def start(self, context: Context[Any]) -> Evaluation:
        if isinstance(context.protocol, SinkProtocol):
            return SinkEvaluation(context)
        return AttentionEvaluation(context)

    def seeded(self, protocol: AttentionProtocol | SinkProtocol) -> bool:
        return False


ATTENTION = Attention()
