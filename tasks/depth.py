"""Depth: how far every pixel is, told from frozen patch tokens (RMSE in metres).

Oquab et al., "DINOv2" (2023, section 7.4): a linear layer on patch tokens gives the weights of 256
bins of depth, whose mean is the depth, as coded in facebookresearch/dinov2, dinov2/eval/depth;
DINOv3 (Siméoni et al., 2025) with other settings. ``linear-depth`` trains such a head on patches
that are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.data.dataset import Dataset, Dense, Role
from harness.data.depth_views import Cut, DepthTraining, WholeCentred
from harness.data.joint import centred
from harness.data.photometric import GammaColour
from harness.data.views import Geometry
from harness.dense.evaluation import HeadEvaluation, learning_roles
from harness.dense.judge import Judge, Row
from harness.dense.protocol import (
    Decays,
    HeadProtocol,
    Rates,
    Size,
    Stored,
    Streamed,
)
from harness.dense.reading import Reading
from harness.dense.requests import NEEDED, check_splits, shelved, stored, streamed
from harness.features.windows import full_size
from harness.pictured.contract import PicturedTask
from harness.probes.dense_losses import DepthBins
from harness.probes.depth_metrics import (
    Alignment,
    Crop,
    DepthErrors,
    aligned,
    depth_errors,
    valid_depth,
)
from harness.task import (
    Context,
    DenseCrops,
    MetricSpec,
    NotApplicable,
    Outcome,
    TokenRequest,
)

_NYU = 640, 480
_LEAST = 100
"""Pixels: scale and shift fitted to a few of them leave no error, which would say nothing."""
_BRIEF = {"steps": 4, "batch_size": 8, "crop": 42, "cut": None, "evaluated": "none"}
_METRICS: dict[str, MetricSpec] = {
    "rmse": MetricSpec("rmse", "m", False),
    "abs_rel": MetricSpec("abs_rel", "", False),
    "delta1": MetricSpec("delta1", "%", True, 100),
    "delta2": MetricSpec("delta2", "%", True, 100, shown=False),
    "delta3": MetricSpec("delta3", "%", True, 100, shown=False),
    "log10": MetricSpec("log10", "", False, shown=False),
    "rmse_log": MetricSpec("rmse_log", "", False, shown=False),
    "silog": MetricSpec("silog", "", False, shown=False),
    "sq_rel": MetricSpec("sq_rel", "m", False, shown=False),
    "mae": MetricSpec("mae", "m", False, shown=False),
}


class DepthHeadProtocol(HeadProtocol):
    """The bins, and where a prediction is judged."""

    learning_rates: Rates
    weight_decays: Decays = (0.01,)
    bins: StrictInt = Field(256, ge=2, le=4096)
    nearest: float = Field(1e-3, ge=1e-6, description="metres: the first bin, and what is judged")
    farthest: float = Field(10.0, le=1e6, description="metres: the last bin, and what is judged")
    enlarge: StrictInt = Field(1, ge=1, le=8, description="of the logits before the bins' mean")
    loss_warm_up: StrictInt = Field(
        100, ge=0, description="steps in which only the mean of the log ratio counts"
    )
    learn_beyond: bool = Field(True, description="whether depths beyond farthest are learned")
    evaluated: Crop = Field(
        "nyu-eigen", description="part of a picture that is judged; none: all of it"
    )
    align: Alignment = Field("none", description="what of the prediction is adjusted to the truth")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.nearest >= self.farthest:
            raise ValueError(f"nearest {self.nearest} is not below farthest {self.farthest}")
        if self.batch_norm and self.enlarge > 1:
            raise ValueError("enlarge: 1 with a batch norm, which would see enlarged tokens")
        return self

    def objective(self) -> DepthBins:
        highest = None if self.learn_beyond else self.farthest
        return DepthBins(
            self.bins, self.nearest, self.farthest, self.enlarge, self.loss_warm_up, highest
        )


class StoredDepthProtocol(Stored, DepthHeadProtocol):
    """The default: fixed views, read once."""

    name: str = "linear-depth"
    size: Size = Field((480, 640), description="height and width in pixels; one number: both")
    learning_rates: Rates = (1e-3,)
    schedule: Literal["poly", "cosine", "one cycle"] = "cosine"
    warm_up: float = Field(0.0375, ge=0, lt=1, description="share of the steps")
    learn_beyond: bool = Field(False, description="whether depths beyond farthest are learned")


class StreamedDepthProtocol(Streamed, DepthHeadProtocol):
    """Random crops to train, whole pictures and their mirror images to test; the defaults are
    DINOv2's ``lin. 1``."""

    name: str = "dinov2-linear-depth"
    norm: bool = Field(False, description="final norm")
    class_token: bool = Field(True, description="each layer's class token behind its patches")
    batch_norm: bool = False
    init_std: float | None = Field(
        None, gt=0, description="of the first weights; None: torch's Conv2d"
    )
    learning_rates: Rates = (1e-4,)
    pictures_per_loss: StrictInt | None = Field(
        2, ge=1, description="a loss of so many pictures (as on a GPU), and the mean of losses"
    )
    steps: StrictInt = Field(38_400, ge=1)
    schedule: Literal["poly", "cosine", "one cycle"] = "cosine"
    floor: float = Field(1e-8, ge=0, lt=1, description="where the learning rate ends, a share")
    warm_up: float = Field(
        12_800 / 38_400, ge=0, lt=1, description="share of the steps: 12,800 of 38,400"
    )
    warm_up_ratio: float = Field(1e-3, ge=0, le=1, description="where the warm-up begins")
    momentum: Literal["constant", "one cycle", "after warm-up"] = "one cycle"
    clip: float | None = Field(35, gt=0, description="most that a gradient's norm may be")
    enlarge: StrictInt = Field(4, ge=1, le=8, description="of the logits before the bins' mean")
    cut: Cut | None = Field("nyu", description="part of a picture that crops are drawn from")
    crop: Size = Field((416, 544), description="height and width in pixels; one number: both")
    degrees: float = Field(2.5, ge=0, le=45, description="that a crop is turned, at most")
    rotate: float = Field(0.5, ge=0, le=1, description="of crops that are turned")
    flip: float = Field(0.5, ge=0, le=1)
    colours: bool = Field(True, description="gamma, brightness and colour, half the time")
    test_cut: Cut | None = Field(None, description="part of a picture that is seen in test")
    test_flip: bool = Field(True, description="mean of the picture's and its mirror image's depth")
    max_patches: StrictInt = Field(16_384, ge=1, le=65_535)
    stretched: bool = Field(
        True, description="maps are laid over crops without their padding, as DINOv2's code does"
    )

    def train_view(self, patch: int) -> DepthTraining:
        return DepthTraining(
            patch,
            self.crop,
            self.cut,
            self.degrees,
            self.rotate,
            self.flip,
            GammaColour() if self.colours else None,
        )

    def test_view(self, patch: int) -> WholeCentred:
        return WholeCentred(patch, self.max_patches, self.test_flip, self.test_cut)


class DepthJudge(Judge):
    """A picture's values are its errors, in the order of ``DepthErrors``."""

    kind: ClassVar[Literal["classes", "depth"]] = "depth"

    def __init__(self, protocol: DepthHeadProtocol, patch: int) -> None:
        self._protocol, self._patch = protocol, patch
        self.objective = protocol.objective()
        self.counts = f" (between {protocol.nearest:g} and {protocol.farthest:g} m"
        self.counts += f", within {protocol.evaluated})" if protocol.evaluated != "none" else ")"
        streamed = isinstance(protocol, StreamedDepthProtocol) and protocol.stretched
        self._crop = getattr(protocol, "crop") if streamed else None  # noqa: B009

    def targets(self, labels: DenseCrops) -> Tensor:
        assert labels.depth is not None
        if self._crop is None:
            return labels.depth
        height, width = self._crop
        left, top, _, _ = centred(width, height, self._patch)
        return labels.depth[:, top : top + height, left : left + width]

    def prediction(self, maps: Sequence[Tensor], geometry: Sequence[Geometry]) -> Tensor:
        return full_size(maps, geometry, self._crop is not None)[0]

    def truth(self, dense: Dense) -> Tensor:
        assert dense.depth is not None
        return torch.from_numpy(dense.depth)

    def row(self, prediction: Tensor, truth: Tensor, everywhere: bool = False) -> Row:
        truth, valid, said = self._counted(prediction, truth, everywhere)
        if self._protocol.align != "none" and int(valid.sum()) < _LEAST:
            return np.full(len(DepthErrors._fields), np.nan)
        found = depth_errors(said, truth, valid)
        return np.full(len(DepthErrors._fields), np.nan) if found is None else np.array(found)

    def _counted(
        self, prediction: Tensor, truth: Tensor, everywhere: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The truth, where it counts, and the prediction as it is judged; on the CPU."""
        low, high = self._protocol.nearest, self._protocol.farthest
        truth, prediction = truth.cpu(), prediction.cpu()
        part = "none" if everywhere else self._protocol.evaluated
        valid = valid_depth(truth, low, high, part)
        valid &= torch.isfinite(prediction)  # beyond test_cut nothing is said
        return truth, valid, aligned(prediction, truth, valid, self._protocol.align, low, high)

    def score(self, rows: NDArray[np.float64]) -> float:
        if not len(rows):
            return float("nan")
        return -float(rows[:, DepthErrors._fields.index("rmse")].mean())

    def told(self, row: Row) -> str:
        return f"RMSE {row[DepthErrors._fields.index('rmse')]:.3f} m"

    def drawn(self, prediction: Tensor, truth: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        truth, valid, said = self._counted(prediction, truth, False)
        return said.numpy(), torch.where(valid, truth, 0).numpy()

    def outcome(self, rows: NDArray[np.float64]) -> Outcome:
        columns = dict(zip(DepthErrors._fields, rows.T, strict=True))
        return Outcome(columns, _METRICS)


class Depth(PicturedTask[Any]):
    name: ClassVar[str] = "depth"
    summary: ClassVar[str] = "how far every pixel is, from frozen patches (RMSE)"
    default_datasets: ClassVar[tuple[str, ...]] = ("nyu",)
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "linear-depth": {"size": 56, "steps": 8, "evaluated": "none"},
        "dinov2-linear-depth": _BRIEF,
        "dinov2-linear-depth-4": _BRIEF,
        "dinov3-linear-depth": _BRIEF,
    }
    protocols: Mapping[str, DepthHeadProtocol] = {
        "linear-depth": StoredDepthProtocol(),
        "dinov2-linear-depth": StreamedDepthProtocol(),
        "dinov2-linear-depth-4": StreamedDepthProtocol(
            name="dinov2-linear-depth-4", layers="quarters"
        ),
        "dinov3-linear-depth": StreamedDepthProtocol(
            name="dinov3-linear-depth",
            norm=True,
            class_token=False,
            batch_norm=True,
            init_std=0.01,
            learning_rates=(3e-4,),
            schedule="one cycle",
            floor=1 / 25_000,
            warm_up=0,
            warm_up_ratio=1e-6,
            momentum="after warm-up",
            enlarge=1,
            stretched=False,
            precision="bf16",
        ),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: DepthHeadProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        _check(datasets, protocol)
        reading, patch = _reading(protocol, architecture), architecture.patch
        if isinstance(protocol, StreamedDepthProtocol):
            views = protocol.train_view(patch), protocol.test_view(patch)
            return streamed(reading, protocol, protocol.steps, *views)
        assert isinstance(protocol, StoredDepthProtocol)
        view, learning = protocol.view(patch), learning_roles(protocol, datasets)
        kept = shelved(reading, architecture, view, 4)
        return stored(reading, view, protocol.precision, learning, kept)

    def start(self, context: Context[Any]) -> HeadEvaluation[Any]:
        judge = DepthJudge(context.protocol, context.architecture.patch)
        return HeadEvaluation(context, judge, _reading(context.protocol, context.architecture))


def _reading(protocol: DepthHeadProtocol, architecture: Architecture) -> Reading:
    half = getattr(protocol, "stored_as", "fp32") == "fp16"
    return Reading.of(architecture, protocol.layers, protocol.norm, protocol.class_token, half)


def _check(datasets: Mapping[Role, Dataset], protocol: DepthHeadProtocol) -> None:
    """Raises ``NotApplicable`` where depth is not known, or pictures are not NYU's in size where
    NYU's crop is to be judged."""
    check_splits(datasets)
    for role in {*NEEDED, *learning_roles(protocol, datasets)}:
        if not datasets[role].has_depth:
            raise NotApplicable("the data set has no depth")
    sizes = datasets["test"].sizes() - {(0, 0)}
    if protocol.evaluated == "nyu-eigen" and sizes - {_NYU}:
        width, height = min(sizes - {_NYU})
        raise NotApplicable(
            f"nyu-eigen judges a part of pictures of 640x480, and some are of {width}x{height} "
            "(--set evaluated=none judges all of each)"
        )


DEPTH = Depth()
