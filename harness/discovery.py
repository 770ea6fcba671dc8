"""Object discovery: one box a picture, judged by CorLoc. What LOST and its kin share.

CorLoc: the share of pictures whose box overlaps some annotated object with an IoU of at least 0.5
(Deselaers et al. 2010, as computed by valeoai/LOST, main_lost.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt
from scipy import ndimage

from harness.backbone.vit import Precision, Read
from harness.data.dataset import Boxes, Dataset, Role
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.selection import held_out
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


class DiscoveryProtocol(Protocol):
    """What a discovery of objects settles before it looks at a token."""

    version: str = "1.0"
    view: Literal["whole picture, zeros right and below"] = "whole picture, zeros right and below"
    iou: float = Field(0.5, ge=0.5, le=0.5, description="an object is found from this on")
    keep_hard: bool = Field(True, description="difficult and truncated objects count")
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    precision: Precision = "fp32"


class SweptDiscoveryProtocol(DiscoveryProtocol):
    """A discovery with several settings, of which the one that finds most is reported."""

    selected_on: Literal["held-out pictures", "test"]
    selection_share: float = Field(0.2, gt=0, lt=1)


class Found(NamedTuple):
    """What a setting finds in a picture: the row-major index of the seed, a mask
    ``[rows, columns]``, and what else is to be told of it, in the order of ``flags``."""

    seed: int
    mask: NDArray[np.bool_]
    told: tuple[bool, ...]


class Discovered(NamedTuple):
    """What LOST sees in one picture: the row-major index of the ``seed``, of each patch how many
    others have a positive affinity with it (``degree [rows, columns]``), the patches voted for
    (``mask``), the ``box`` as of ``component_box``, and whether other patches ``tied`` with the
    seed."""

    seed: int
    degree: NDArray[np.integer]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    tied: bool


class DiscoveryEvaluation(Evaluation):
    """Boxes at every point of a grid of settings (of one, where nothing is swept), their CorLoc.

    A discovery fills ``found``. ``flags`` name what it tells of a picture beside the box, each
    with the metric that counts it. What is kept of a picture is four bytes for every number of a
    point's row and its id: with the 504 points of LOST's sweep, 16 KB.
    """

    flags: ClassVar[Mapping[str, str]]

    def __init__(self, context: Context[Any], points: Sequence[Mapping[str, Any]]) -> None:
        self.protocol: DiscoveryProtocol = context.protocol
        self._patch = context.architecture.patch
        self._points = points
        self._order = {s.id: i for i, s in enumerate(context.datasets["test"].samples)}
        self._rows: dict[str, NDArray[np.int32]] = {}
        self._skipped = 0

    @classmethod
    def requests(
        cls,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: DiscoveryProtocol,
        reads: Sequence[Read],
        points: int,
    ) -> dict[Role, TokenRequest]:
        """Every test picture whole, once. Raises ``NotApplicable`` where there are no boxes."""
        if "test" not in datasets or not datasets["test"].has_boxes:
            raise NotApplicable("the data set has no boxes")
        request = TokenRequest(
            view=WholePicture(architecture.patch, protocol.max_patches),
            layers=tuple(dict.fromkeys(read.layer for read in reads)),
            facets=tuple(dict.fromkeys(read.facet for read in reads)),
            norm=any(read.norm for read in reads),
            precision=protocol.precision,
            bytes_per_picture=4 * (6 + len(cls.flags)) * points,
        )
        return {"test": request}

    @abstractmethod
    def found(self, batch: Batch, row: int) -> Iterator[Found]:
        """Of the picture in that row of the batch, at each point of the grid in its order."""

    def update(self, role: Role, batch: Batch) -> None:
        for row, index in enumerate(batch.sample):
            targets = objects(batch.targets[index].boxes, self.protocol.keep_hard)
            if not len(targets):
                self._skipped += 1
                continue
            rows: list[tuple[int, ...]] = []
            for seed, mask, told in self.found(batch, row):
                box = component_box(mask, seed, self._patch, batch.geometry[row].stored)
                rows.append((*box, seed, finds(box, targets), *told))
            self._rows[batch.ids[index]] = np.array(rows, np.int32)

    def finish(self) -> Outcome:
        ids = sorted(self._rows, key=self._order.__getitem__)
        if not ids:
            name = self.protocol.name
            raise HarnessError(f"{name}: no picture with a box was scored; CorLoc has no value")
        counts = {"skipped_no_box": self._skipped}
        if not isinstance(self.protocol, SweptDiscoveryProtocol):
            return self._outcome(ids, 0, counts)
        held = _held_out(ids, self.protocol)
        choosing = [image for image, keep in zip(ids, held, strict=True) if keep]
        hits = np.mean([self._rows[image][:, 5] for image in choosing], axis=0)
        best = int(np.argmax(hits))  # the first of equals, in grid order
        reported = np.ones(len(ids), bool) if self.protocol.selected_on == "test" else ~held
        counts |= {"selection_pictures": int(held.sum())}
        scored = [image for image, keep in zip(ids, reported, strict=True) if keep]
        outcome = self._outcome(scored, best, counts)
        sweep = [
            {**point, "corloc_on_selection": round(100 * float(hit), 4)}
            for point, hit in zip(self._points, hits, strict=True)
        ]
        return Outcome(
            outcome.columns,
            outcome.metrics,
            counts,
            outcome.resolved,
            self.protocol.selected_on,
            {"chosen": sweep[best], "sweep": sweep},
        )

    def _outcome(self, ids: list[str], point: int, counts: Mapping[str, int]) -> Outcome:
        """The outcome of these pictures at one point of the grid."""
        table = np.stack([self._rows[image][point] for image in ids])
        columns: dict[str, Any] = {"image_id": ids}
        columns |= dict(zip(("x0", "y0", "x1", "y1", "seed"), table.T, strict=False))
        facts = table[:, 5:].T.astype(bool)
        columns |= dict(zip(("hit", *self.flags), facts, strict=True))
        metrics = {"corloc": MetricSpec("hit", "%", True, 100)}
        metrics |= {
            metric: MetricSpec(flag, "%", False, 100) for flag, metric in self.flags.items()
        }
        return Outcome(columns, metrics, counts, resolved=self._points[point])

    def state(self) -> object:
        return self._rows, self._skipped

    def load(self, state: Any) -> None:
        self._rows, self._skipped = dict(state[0]), state[1]

    def merge(self, other: Self) -> None:
        self._rows |= other._rows
        self._skipped += other._skipped


def _held_out(ids: Sequence[str], protocol: SweptDiscoveryProtocol) -> NDArray[np.bool_]:
    """Which pictures choose the setting: all of them, or a share."""
    if protocol.selected_on == "test":
        return np.ones(len(ids), bool)
    if len(ids) < 2:
        raise HarnessError(f"{protocol.name}: two pictures with boxes are needed, {len(ids)} given")
    return held_out(ids, protocol.selection_share)


def component_box(
    mask: NDArray[np.bool_], seed: int, patch: int, picture: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box round the 4-connected component of ``mask`` ``[rows, columns]`` that holds a patch.

    ``seed`` is a row-major patch index. In pixels of the picture ``(width, height)``: x0, y0, x1,
    y1, the last two exclusive, clipped to the picture (padding lies right and below). A seed
    outside the mask, which a negative bias makes possible, gives the seed's own patch.
    """
    row, column = divmod(seed, mask.shape[1])
    if mask[row, column]:
        labels, _ = ndimage.label(mask)
        component = labels == labels[row, column]
        rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
        top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    else:
        top = bottom = row
        left = right = column
    width, height = picture
    return (
        int(left) * patch,
        int(top) * patch,
        min((int(right) + 1) * patch, width),
        min((int(bottom) + 1) * patch, height),
    )


def intersection_over_union(
    box: tuple[int, int, int, int], others: NDArray[np.int64]
) -> NDArray[np.float32]:
    """IoU of one box with others ``[n, 4]``, in the float32 arithmetic of the official code.

    It adds 1e-7 to heights and union, as yolov5's function does: in float32 that vanishes beside a
    pixel, so that an IoU of exactly one half counts as found; in float64 it would not.
    """
    epsilon = np.float32(1e-7)
    x0, y0, x1, y1 = (np.int64(value) for value in box)
    inter = np.clip(np.minimum(x1, others[:, 2]) - np.maximum(x0, others[:, 0]), 0, None)
    inter = inter * np.clip(np.minimum(y1, others[:, 3]) - np.maximum(y0, others[:, 1]), 0, None)
    inter = inter.astype(np.float32)
    own = np.float32(x1 - x0) * (np.float32(y1 - y0) + epsilon)
    widths = (others[:, 2] - others[:, 0]).astype(np.float32)
    heights = (others[:, 3] - others[:, 1]).astype(np.float32) + epsilon
    result: NDArray[np.float32] = inter / (own + widths * heights - inter + epsilon)
    return result


def objects(boxes: Boxes | None, keep_hard: bool = True) -> NDArray[np.int64]:
    """The boxes ``[n, 4]`` that count for CorLoc: no crowds, rounded to whole pixels (half to
    even), as LOST's reader does; without ``keep_hard`` no difficult or truncated ones either."""
    if boxes is None or not len(boxes.xyxy):
        return np.zeros((0, 4), np.int64)
    counts = ~boxes.crowd
    if not keep_hard:
        counts &= ~(boxes.difficult | boxes.truncated)
    return np.rint(boxes.xyxy[counts]).astype(np.int64)


def finds(box: tuple[int, int, int, int], targets: NDArray[np.int64]) -> bool:
    """Does the box overlap any target ``[n, 4]`` with an IoU of at least 0.5?"""
    return bool((intersection_over_union(box, targets) >= 0.5).any())
