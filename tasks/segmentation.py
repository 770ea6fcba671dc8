"""Segmentation: what class every pixel is of, told from frozen patch tokens (mIoU).

Oquab et al., "DINOv2" (2023, section 7.4): a linear layer on patch tokens, its logits made as large
as the picture, judged by mmsegmentation's metrics; DINOv3 (Siméoni et al., 2025, appendix D.1)
with other settings. ``linear-seg`` trains such a head on patches that are read once. ``knn-seg``
trains nothing: a patch is what the most similar patches of train are (Balažević et al., "Towards
In-Context Scene Understanding", 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Precision
from harness.data.dataset import IGNORED, Dataset, Role
from harness.data.fixed_size import FixedSize
from harness.data.joint import Interpolation
from harness.data.photometric import PhotometricDistortion
from harness.data.segmentation_views import SegmentationTraining, SlidingWindows
from harness.dense.classes import ClassJudge
from harness.dense.evaluation import HeadEvaluation, learning_roles
from harness.dense.pictures import PictureEvaluation
from harness.dense.protocol import (
    Decays,
    FixedView,
    HeadProtocol,
    Layers,
    Rates,
    Scales,
    Side,
    Stored,
    Streamed,
    check_windows,
)
from harness.dense.reading import Reading
from harness.dense.requests import NEEDED, check_splits, shelved, stored, streamed
from harness.errors import HarnessError
from harness.features.extract import out_of_memory
from harness.pictured.contract import PicturedTask
from harness.probes.dense_losses import ClassMap
from harness.probes.dense_retrieval import Patches, PatchMemory, PatchRetrieval, patch_shares
from harness.probes.neighbours import MOST
from harness.task import (
    Batch,
    Context,
    NotApplicable,
    Outcome,
    Protocol,
    TokenRequest,
)

_BRIEF = {"steps": 4, "batch_size": 8, "crop": 56, "short": 56, "window": 42, "stride": 28}


class SegmentationHeadProtocol(HeadProtocol):
    """The head and its training as DINOv2 has them."""

    learning_rates: Rates = (1e-3,)
    weight_decays: Decays = (1e-4,)
    schedule: Literal["poly", "cosine", "one cycle"] = "poly"
    warm_up: float = Field(0.0375, ge=0, lt=1, description="share of the steps: 1,500 of 40,000")
    loss_average: Literal["all", "labelled"] = Field(
        "all", description="pixels that the loss is averaged over; mmsegmentation takes all"
    )


class StoredSegmentationProtocol(Stored, SegmentationHeadProtocol):
    """The default: fixed views, read once."""

    name: str = "linear-seg"
    loss_average: Literal["all", "labelled"] = "labelled"


class StreamedSegmentationProtocol(Streamed, SegmentationHeadProtocol):
    """Random crops to train, sliding windows to test; the defaults are DINOv2's ``lin.``."""

    name: str = "dinov2-linear-seg"
    steps: StrictInt = Field(40_000, ge=1)
    short: Side = Field(512, description="the shorter side, in pixels, before the scale")
    longest: Side | None = Field(None, description="the longer side, at most")
    scale: tuple[float, float] = Field((0.5, 2.0), description="drawn for every crop")
    crop: Side = 512
    most_of_one: float = Field(0.75, gt=0, le=1, description="of a crop that is of one class")
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = True
    interpolation: Interpolation = "bilinear"
    window: Side = 512
    stride: Side = 341
    test_scales: Scales = (1.0,)
    test_flip: bool = False
    stretched: bool = Field(
        True, description="maps are laid over crops without their padding, as DINOv2's code does"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale {list(self.scale)}: two numbers above 0, the lower first")
        check_windows(self.window, self.stride)
        return self

    def train_view(self, patch: int) -> SegmentationTraining:
        return SegmentationTraining(
            patch,
            self.crop,
            self.short,
            self.scale,
            self.longest,
            self.most_of_one,
            self.flip,
            PhotometricDistortion() if self.photometric else None,
            self.interpolation,
        )

    def test_view(self, patch: int) -> SlidingWindows:
        return SlidingWindows(
            patch,
            self.short,
            self.window,
            self.stride,
            self.test_scales,
            self.test_flip,
            self.longest,
            self.interpolation,
        )


class RetrievalProtocol(FixedView, Protocol):
    """Segmentation by the nearest patches; the defaults are those of open-hummingbird-eval."""

    name: str = "knn-seg"
    version: str = "1.0"
    layer: StrictInt = -1
    norm: bool = Field(True, description="final norm")
    precision: Precision = "fp16"
    k: StrictInt = Field(30, ge=1, le=MOST)
    temperature: float = Field(0.02, ge=1e-4)
    memory: StrictInt | None = Field(
        1_024_000,
        ge=1,
        description="patches that are remembered, at most: of each picture as many as there is "
        "room for, rare classes first; None: all",
    )


class RetrievalEvaluation(PictureEvaluation[RetrievalProtocol]):
    """Patches of train remembered; of test, every patch's nearest ones looked up."""

    mergeable = False

    def __init__(
        self, context: Context[RetrievalProtocol], judge: ClassJudge, reading: Reading
    ) -> None:
        super().__init__(context, judge)
        self._reading, train = reading, context.datasets["train"]
        memory, pictures = context.protocol.memory, len(train.samples)
        most = None if memory is None else memory // pictures
        self._classes = len(train.semantic_classes)
        self._memory = PatchMemory(self._classes, most, context.seed)
        self._retrieval: PatchRetrieval | None = None
        self._remembered = 0

    def learn(self, role: Role, batch: Batch) -> None:
        assert batch.dense_crops is not None and batch.dense_crops.semantic is not None
        tokens = self._reading.of_batch(batch, self._context.datasets[role].name)
        for row, picture in enumerate(batch.sample):
            grid = tokens.shape[1], tokens.shape[2]
            shares = patch_shares(batch.dense_crops.semantic[row], grid, self._classes, IGNORED)
            self._memory.add(batch.ids[picture], tokens[row], shares)

    def end(self, role: Role) -> None:
        if role == "test":
            return
        train, device = self._context.datasets["train"], self._context.device
        self._remembered = len(self._memory)
        if not self._remembered:
            raise HarnessError(f"data set {train.name!r}: no labelled patch of train is remembered")
        try:
            self._retrieval = self._memory.retrieval(device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"knn-seg: out of memory on {device} with {self._remembered:,} patches; a smaller "
                "--set memory, or --device cpu"
            ) from None
        self._memory = PatchMemory(self._classes)  # what was copied together is let go of

    def maps(self, batch: Batch, rows: slice) -> list[Tensor]:
        assert self._retrieval is not None
        protocol = self._context.protocol
        tokens = self._reading.of_batch(batch, self._context.datasets["test"].name, rows)
        shares = [
            self._retrieval.label_shares(each, protocol.k, protocol.temperature) for each in tokens
        ]
        return [torch.stack(shares).permute(0, 3, 1, 2)]

    def best(self, scores: Sequence[float]) -> int:
        return 0

    def found(self, outcome: Outcome) -> Outcome:
        return replace(
            outcome,
            resolved={**outcome.resolved, "layers": list(self._reading.layers)},
            counts={**outcome.counts, "train_patches": self._remembered},
        )

    def state(self) -> Any:
        return super().state() | {
            "memory": self._memory.state(),
            "retrieval": self._retrieval and tuple(self._retrieval.patches),
            "remembered": self._remembered,
        }

    def load(self, state: Any) -> None:
        super().load(state)
        self._memory.load(state["memory"])
        self._remembered, self._retrieval = state["remembered"], None
        if state["retrieval"]:
            patches = Patches(*state["retrieval"])
            self._retrieval = PatchRetrieval(patches, self._context.device)

    def merge(self, other: Self) -> None:
        raise TypeError("pictures are judged by all that is remembered, which no part of train is")


class Segmentation(PicturedTask[Any]):
    name: ClassVar[str] = "segmentation"
    summary: ClassVar[str] = "what class every pixel is of, from frozen patches (mIoU)"
    default_datasets: ClassVar[tuple[str, ...]] = ("ade20k",)
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "linear-seg": {"size": 56, "steps": 8},
        "knn-seg": {"size": 56},
        "dinov2-linear-seg": _BRIEF,
        "dinov2-linear-seg-ms": {**_BRIEF, "test_scales": [1.0, 1.5]},
        "dinov3-linear-seg": _BRIEF,
    }
    protocols: Mapping[str, Protocol] = {
        "linear-seg": StoredSegmentationProtocol(),
        "dinov2-linear-seg": StreamedSegmentationProtocol(),
        "dinov2-linear-seg-ms": StreamedSegmentationProtocol(
            name="dinov2-linear-seg-ms",
            layers="last:4",
            short=640,
            crop=640,
            window=640,
            stride=320,
            test_scales=(1.0, 1.32, 1.73, 2.28, 3.0),
            test_flip=True,
        ),
        "dinov3-linear-seg": StreamedSegmentationProtocol(
            name="dinov3-linear-seg",
            dropout=0.1,
            dropout_before_norm=True,
            learning_rates=(1e-4, 3e-4, 1e-3),
            weight_decays=(1e-4, 1e-3),
            schedule="one cycle",
            floor=1 / 25_000,
            momentum="after warm-up",
            clip=35,
            photometric=False,
            most_of_one=1.0,
            stretched=False,
            precision="bf16",
        ),
        "knn-seg": RetrievalProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: Protocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        _check(datasets)
        reading, patch = _reading(protocol, architecture), architecture.patch
        if isinstance(protocol, StreamedSegmentationProtocol):
            views = protocol.train_view(patch), protocol.test_view(patch)
            return streamed(reading, protocol, protocol.steps, *views)
        assert isinstance(protocol, StoredSegmentationProtocol | RetrievalProtocol)
        view, learning = protocol.view(patch), list[Role](["train"])
        if isinstance(protocol, StoredSegmentationProtocol):
            learning = learning_roles(protocol, datasets)
            kept = shelved(reading, architecture, view, 1)
        else:
            kept = _remembered(protocol, architecture, view, datasets["train"])
        return stored(reading, view, protocol.precision, learning, kept)

    def start(self, context: Context[Any]) -> PictureEvaluation[Any]:
        protocol, architecture = context.protocol, context.architecture
        classes = context.datasets["train"].semantic_classes
        average = getattr(protocol, "loss_average", "labelled")
        stretched = isinstance(protocol, StreamedSegmentationProtocol) and protocol.stretched
        judge = ClassJudge(
            classes,
            ClassMap(len(classes), IGNORED, average),
            protocol.crop if stretched else None,
            architecture.patch,
        )
        reading = _reading(protocol, architecture)
        if isinstance(protocol, RetrievalProtocol):
            return RetrievalEvaluation(context, judge, reading)
        return HeadEvaluation(context, judge, reading)

    def seeded(self, protocol: Protocol) -> bool:
        return not isinstance(protocol, RetrievalProtocol) or protocol.memory is not None


def _reading(protocol: Protocol, architecture: Architecture) -> Reading:
    if isinstance(protocol, RetrievalProtocol):
        layers: Layers = (protocol.layer,)
        half = protocol.stored_as == "fp16"
        return Reading.of(architecture, layers, protocol.norm, half=half)
    assert isinstance(protocol, HeadProtocol)
    half = getattr(protocol, "stored_as", "fp32") == "fp16"
    return Reading.of(architecture, protocol.layers, protocol.norm, protocol.class_token, half)


def _remembered(
    protocol: RetrievalProtocol, architecture: Architecture, view: FixedSize, train: Dataset
) -> int:
    """Bytes that are kept of a picture, while what is remembered is copied together. Raises
    ``HarnessError`` where there is no room for a patch of each picture."""
    height, width = view.padded
    patches, pictures = height * width // architecture.patch**2, len(train.samples)
    if protocol.memory is not None:
        if protocol.memory < pictures:
            raise HarnessError(
                f"data set {train.name!r}: memory {protocol.memory:,} is less than a patch for "
                f"each of its {pictures:,} train pictures"
            )
        patches = min(patches, protocol.memory // pictures)
    return 2 * 4 * patches * (architecture.width + len(train.semantic_classes))


def _check(datasets: Mapping[Role, Dataset]) -> None:
    """Raises ``NotApplicable`` where pixels have no classes, ``HarnessError`` where splits have
    different ones."""
    check_splits(datasets)
    for role in NEEDED:
        if not datasets[role].semantic_classes:
            raise NotApplicable("the data set has no class for every pixel (no masks)")
    train = datasets["train"]
    for role, dataset in datasets.items():
        if dataset.semantic_classes != train.semantic_classes:
            raise HarnessError(
                f"data set {dataset.name!r}: the classes of pixels of its {role} split are not "
                "those of its train split"
            )


SEGMENTATION = Segmentation()
