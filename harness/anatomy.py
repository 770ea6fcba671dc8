"""Anatomy of patch tokens: the fold over pictures, its columns, and what speaks for artifacts.

Darcet et al., "Vision Transformers Need Registers" (2023, section 2.1 and figures 3 to 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt
from torch import Tensor

from harness.artifacts import Evidence, summary, weigh
from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision, Read
from harness.data.coverage import BACKGROUND, by_patch, in_boxes, inside, on_objects
from harness.data.dataset import Dense, Role, places_by_id
from harness.data.fixed_size import FixedSize
from harness.data.views import View, WholePicture
from harness.errors import HarnessError
from harness.features.outliers import NO_OUTLIERS, OutlierRule, RuleText
from harness.layers import resolve_layers
from harness.probes.anatomy_tables import layers_table, positions_table, ratios, separates_at
from harness.probes.patch_anatomy import COLUMNS, PatchAnatomy
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    NotApplicable,
    Outcome,
    Protocol,
)


class AnatomyProtocol(Protocol):
    """What is looked at, what counts as an outlier, and what speaks for an artifact."""

    name: str = "anatomy"
    version: str = "1.0"
    view: Literal["middle", "whole, stretched", "whole, zeros right and below"] = Field(
        "middle", description="of the picture; of the last, patches with padding do not count"
    )
    size: StrictInt | Literal["stored"] = Field(
        "stored",
        description="side in pixels of the first two views; stored: the size that the model's "
        "position embedding was stored for",
    )
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535, description="of the last view")
    layer: StrictInt = Field(-1, description="where a patch is told to be an outlier")
    layers: Literal["all"] | tuple[StrictInt, ...] = Field("all", description="in the tables")
    outliers: RuleText = Field(
        "valley",
        description="the norm above which a patch is an outlier, before the final norm, or "
        "quantile0.98, mean+3sd, or valley: the lowest point between two modes, none without",
    )
    separation: float = Field(
        2, gt=1, description="outliers separate from the first layer on at which they have so many "
        "times the norm of other patches"
    )  # fmt: skip
    border: StrictInt = Field(1, ge=1, description="how many patches wide it is")
    object_share: float = Field(
        0.5, gt=0, le=1, description="of a patch's pixels, from which on it is on an object"
    )
    massive: float = Field(
        100, gt=1, description="a dimension is massive from so many times the median magnitude on"
    )
    redundant_by: float = Field(
        0.02, ge=0, description="cosine with neighbours above other patches': an artifact; below: "
        "a salient token"
    )  # fmt: skip
    off_objects_by: float = Field(
        0.25, ge=0, lt=1, description="less, as a share, on objects than patches are: an artifact"
    )
    local_loss: float = Field(
        0.1, ge=0, lt=1, description="worse, as a share, at its position and pixels: an artifact"
    )
    global_gain: float = Field(
        0.05, ge=0, le=1, description="more often right about the picture's class: an artifact"
    )
    precision: Precision = "fp32"


class AnatomyEvaluation(Evaluation):
    """What is kept of a picture is a number for each of ``COLUMNS``."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def __init__(self, context: Context[Any]) -> None:
        self.protocol: AnatomyProtocol = context.protocol
        self._dataset = context.datasets["test"]
        self._patch = context.architecture.patch
        self.layers, self.reading = layers_of(self.protocol, context.architecture.depth)
        self._rule = OutlierRule.parse(self.protocol.outliers)
        self._cutoff = context.cutoffs[self._rule]
        self._seen = PatchAnatomy(
            len(self.layers), self.layers.index(self.reading), self._cutoff, self.protocol.border
        )
        self._order = places_by_id(self._dataset)
        self._rows: dict[str, NDArray[np.float64]] = {}

    def update(self, role: Role, batch: Batch) -> None:
        rows, _ = self._look(batch)
        self._rows.update(zip(batch.ids, rows, strict=True))

    def _look(self, batch: Batch) -> tuple[NDArray[np.float64], Tensor]:
        """The values of ``COLUMNS`` of every picture, and which patches ``[B, N]`` are outliers."""
        tokens = [batch.tokens[Read(layer)] for layer in self.layers]
        embedding = batch.tokens[Read("embedding")].patches
        place = embedding.device
        counted, objects = None, self._on_objects(batch)
        if any(any(each.pad) for each in batch.geometry):
            counted = torch.from_numpy(inside(batch.geometry, self._patch)).to(place)
        try:
            seen = self._seen.add(
                tokens,
                embedding,
                counted,
                None if objects is None else torch.from_numpy(objects).to(place),
            )
        except ValueError as error:
            raise HarnessError(
                f"data set {self._dataset.name!r}: {error}, of {batch.ids[0]} or a picture beside "
                "it (half precision, or broken weights?); --set precision=fp32 may help"
            ) from None
        return seen.rows, seen.outliers

    def _on_objects(self, batch: Batch) -> NDArray[np.float32] | None:
        """Which patches ``[B, H, W]`` are on an object; NaN of a picture of which it is not known,
        None where it is known of none."""
        if batch.dense_crops is not None:
            labels = batch.dense_crops
            semantic, instances = (
                None if each is None else each.numpy()
                for each in (labels.semantic, labels.instances)
            )
            covered = by_patch(on_objects(Dense(semantic, instances), self._none), self._patch)
        elif batch.dense:
            pixels = [on_objects(each, self._none) for each in batch.dense]
            covered = np.stack([by_patch(each, self._patch) for each in pixels])
        elif any(target.boxes is not None for target in batch.targets):
            unknown = np.full(batch.geometry[0].padded, np.nan, np.float32)
            covered = np.stack(
                [
                    by_patch(unknown if boxes is None else in_boxes(boxes, where), self._patch)
                    for where, boxes in zip(
                        batch.geometry, (target.boxes for target in batch.targets), strict=True
                    )
                ]
            )
        else:
            return None
        known: NDArray[np.float32] = (covered >= self.protocol.object_share).astype(np.float32)
        known[np.isnan(covered)] = np.nan
        return known

    @property
    def _none(self) -> int:
        """The class of pixels that are on no object."""
        return self._dataset.semantic_classes.index(BACKGROUND)

    def finish(self) -> Outcome:
        ids = sorted(self._rows, key=self._order.__getitem__)
        if not ids:
            raise HarnessError(f"{self.protocol.name}: no picture was seen; there is no anatomy")
        if not self._seen.sums["tokens"].sum():
            raise HarnessError(
                f"{self.protocol.name}: no picture has a patch without padding (they are smaller "
                'than one); --set view="whole, stretched" enlarges them'
            )
        table = np.stack([self._rows[identity] for identity in ids])
        columns: dict[str, Any] = {"image_id": ids}
        columns |= dict(zip(self.columns, table.T, strict=True))
        metrics = {
            name: spec
            for name, spec in self._metrics().items()
            if not np.isnan(columns[spec.column]).all()
        }
        ratio = ratios(self._seen)
        reading = self.layers.index(self.reading)
        apart = separates_at(ratio, self.layers, reading, self.protocol.separation)
        tokens = self._seen.sums["tokens"].tolist()
        evidence = self._evidence(columns)
        found = self._cutoff < NO_OUTLIERS
        return Outcome(
            columns,
            metrics,
            counts={"patches": round(sum(tokens)), "outliers": round(tokens[1])},
            resolved={
                "layer": self.reading,
                "layers": list(self.layers),
                "outlier_cutoff": self._cutoff if found else None,
                **({} if found else {"outliers": "norms have one mode: no patch is an outlier"}),
            },
            details={
                "summary": summary(evidence, tokens[1] / sum(tokens), apart),
                "layers": layers_table(self._seen, self.layers, self._rule, self.protocol.massive),
                "positions": positions_table(self._seen, self.protocol.border),
            },
        )

    def _metrics(self) -> dict[str, MetricSpec]:
        def cosine(column: str, higher: bool, shown: bool = True) -> MetricSpec:
            return MetricSpec(column, "×100", higher, 100, shown, partial=True)

        return {
            "outlier_fraction": MetricSpec("outlier_share", "%", False, 100, partial=True),
            "outliers_on_border": MetricSpec("border_share", "%", False, 100, False, partial=True),
            "outliers_on_objects": MetricSpec("outliers_on_objects", "%", True, 100, partial=True),
            "patches_on_objects": MetricSpec(
                "patches_on_objects", "%", True, 100, False, partial=True
            ),
            "outlier_redundancy": cosine("outlier_neighbour_cosine", False),
            "normal_redundancy": cosine("normal_neighbour_cosine", False),
            "outlier_class_cosine": cosine("outlier_class_cosine", False, shown=False),
            "normal_class_cosine": cosine("normal_class_cosine", True, shown=False),
            "largest_norm": MetricSpec("largest_norm", "", False, shown=False, partial=True),
            "median_norm": MetricSpec("median_norm", "", False, shown=False, partial=True),
        }

    def _evidence(self, columns: Mapping[str, Any]) -> dict[str, Evidence]:
        """Means over the pictures that have both kinds of patches."""
        protocol = self.protocol

        def both(outlier: str, normal: str) -> tuple[float | None, float | None]:
            if outlier not in columns:
                return None, None
            pair = np.stack([columns[outlier], columns[normal]])
            pair = pair[:, ~np.isnan(pair).any(axis=0)]
            if not pair.shape[1]:
                return None, None
            first, second = pair.mean(axis=1)
            return float(first), float(second)

        def local(what: str) -> tuple[float | None, float | None]:
            return both(f"outlier_{what}", f"normal_{what}")

        return {
            "redundancy": weigh(
                "cosine with the four neighbours at the patch embedding",
                *both("outlier_neighbour_cosine", "normal_neighbour_cosine"),
                "more",
                protocol.redundant_by,
            ),
            "place": weigh(
                "share on objects, against that of all patches",
                *both("outliers_on_objects", "patches_on_objects"),
                "less",
                protocol.off_objects_by,
                relative=True,
            ),
            "position": weigh(
                "how often a linear probe tells the patch's position",
                *local("position_top1"),
                "less",
                protocol.local_loss,
                relative=True,
            ),
            "pixels": weigh(
                "how far a linear probe is off the patch's pixels (L2)",
                *local("pixel_l2"),
                "more",
                protocol.local_loss,
                relative=True,
            ),
            "global": weigh(
                "how often a linear probe tells the picture's class",
                *local("class_top1"),
                "more",
                protocol.global_gain,
            ),
        }

    def state(self) -> object:
        return self._seen.state(), dict(self._rows)

    def load(self, state: Any) -> None:
        self._seen.load(state[0])
        self._rows = dict(state[1])

    def merge(self, other: AnatomyEvaluation) -> None:
        self._seen.merge(other._seen)
        self._rows |= other._rows


def layers_of(protocol: AnatomyProtocol, depth: int) -> tuple[tuple[int, ...], int]:
    """The layers of the tables, rising, and the one where outliers are told, which is in them."""
    (reading,) = resolve_layers((protocol.layer,), depth)
    named = resolve_layers(protocol.layers, depth)
    assert isinstance(reading, int)
    layers = {each for each in named if isinstance(each, int)} | {reading}
    return tuple(sorted(layers)), reading


def size_of(protocol: AnatomyProtocol, architecture: Architecture) -> tuple[int, int]:
    """Height and width of the picture that the model sees, of a view of one size."""
    if protocol.size == "stored":
        return architecture.default_size
    size, patch = protocol.size, architecture.patch
    if size < patch or size % patch:
        near = max(1, size // patch) * patch
        raise NotApplicable(
            f"its patch of {patch} pixels does not divide the size of {size} (--set size={near})"
        )
    return size, size


def view_of(protocol: AnatomyProtocol, architecture: Architecture) -> View:
    if protocol.view == "whole, zeros right and below":
        return WholePicture(architecture.patch, protocol.max_patches)
    takes: Literal["middle", "whole"] = "middle" if protocol.view == "middle" else "whole"
    size = size_of(protocol, architecture)
    return FixedSize(architecture.patch, size, takes, protocol.interpolation)
