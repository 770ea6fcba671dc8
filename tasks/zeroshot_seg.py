"""Zero-shot segmentation: what class every pixel is of, told from patches and the classes' names.

Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP" (MaskCLIP, ECCV 2022): a patch, projected
as the picture's global feature is, is of the class whose text it is nearest to. Nothing is trained.
What is read is the last block's value path, which does without its attention (``value``; section
3.2), or the patch token as it is (``token``). Without the paper's key smoothing and prompt
denoising, and without the refinements of its successors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.layout import DenseFacet, Facet
from harness.backbone.vit import Precision, Read
from harness.data.dataset import Dataset, Role
from harness.data.joint import Interpolation
from harness.data.segmentation_views import SlidingWindows
from harness.dense.pictures import PictureEvaluation
from harness.dense.protocol import FixedView, Side, Size, check_windows
from harness.dense.text_classes import (
    Background,
    Templates,
    TextClasses,
    TextJudge,
    name_texts,
    text_classes,
)
from harness.errors import HarnessError
from harness.features.select import Selector, patch_grid
from harness.language.class_texts import Prompts, texts_digest
from harness.language.zero_shot import number_cut
from harness.pictured.contract import PicturedTask
from harness.probes.text_maps import cosines
from harness.task import Batch, Context, NotApplicable, Outcome, Protocol, TokenRequest


class ZeroShotSegmentationProtocol(Protocol):
    """What is read of a patch, and what of a class."""

    version: str = "1.0"
    read: Literal["value", "token"] = Field(
        "value", description="the last block's value path in the place of its attention, or tokens"
    )
    block: Literal["whole", "attention alone"] = Field(
        "whole",
        description="of read=value: with the last block's residual connection and MLP, as in "
        "MaskCLIP's code; or neither, as in ClearCLIP's and NACLIP's (whose attention is another)",
    )
    prompts: Prompts = "own"
    templates: Templates = Field(
        "imagenet", description="CLIP's 80 of ImageNet, for every data set; or those of prompts"
    )
    background: Background = Field(
        "words",
        description="of a class called background: what its words name, or what no class is sure "
        "of (threshold), or its pixels count for nothing (left out)",
    )
    scale: float = Field(40.0, gt=0, description="of cosines before that threshold's softmax")
    threshold: float = Field(0.1, ge=0, le=1, description="probability of the likeliest class")
    precision: Precision = "fp16"

    @model_validator(mode="after")
    def _has_a_block(self) -> Self:
        if self.read == "token" and self.block != "whole":
            raise ValueError(f"block {self.block}: a token is what the whole block gives")
        return self


class StoredProtocol(FixedView, ZeroShotSegmentationProtocol):
    """The default: the whole picture at one size. Its patches are stored, so that other texts cost
    no forward pass."""

    name: str = "zeroshot-seg"
    size: Size = Field((448, 448), description="height and width in pixels; one number: both")


class WindowsProtocol(ZeroShotSegmentationProtocol):
    """Sliding windows, whose cosines are averaged where they overlap; the defaults are those of
    SCLIP (Wang et al., ECCV 2024) and NACLIP for VOC. Nothing is stored."""

    name: str = "zeroshot-seg-windows"
    short: Side = Field(336, description="the shorter side, in pixels")
    longest: Side | None = Field(2048, description="the longer side, at most")
    window: Side = 224
    stride: Side = 112
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_windows(self.window, self.stride)
        return self

    def view(self, patch: int) -> SlidingWindows:
        return SlidingWindows(
            patch,
            self.short,
            self.window,
            self.stride,
            longest=self.longest,
            interpolation=self.interpolation,
        )


class ZeroShotEvaluation(PictureEvaluation[ZeroShotSegmentationProtocol]):
    """Patches of test, each against every text. Texts that cannot be had are told in ``finish``:
    its neighbours' pass goes on."""

    mergeable = True

    def __init__(
        self, context: Context[ZeroShotSegmentationProtocol], classes: TextClasses
    ) -> None:
        protocol, patch = context.protocol, context.architecture.patch
        super().__init__(context, TextJudge(classes, patch, protocol.scale, protocol.threshold))
        self._classes = classes
        self._texts: Tensor | None = None
        self._failed: HarnessError | None = None

    def learn(self, role: Role, batch: Batch) -> None:
        raise AssertionError("nothing is trained")

    def update(self, role: Role, batch: Batch) -> None:
        if self._failed is not None:
            return
        try:
            super().update(role, batch)
        except HarnessError as error:
            self._failed = error

    def maps(self, batch: Batch, rows: slice) -> list[Tensor]:
        text = self._context.text
        assert text is not None
        if self._texts is None:
            self._texts = text.means(self._prompts())
        patches = text.project(self._patches(batch, rows).to(self._context.device))
        if not bool(torch.isfinite(patches).all()):
            raise HarnessError(
                f"data set {self._context.datasets['test'].name!r}: a projected patch is not "
                "finite (half precision, or broken weights?); --set precision=fp32 may help"
            )
        return [cosines(patches, self._texts)]

    def _patches(self, batch: Batch, rows: slice) -> Tensor:
        """``[B, H, W, D]``, stored or just read."""
        context = self._context
        read = _read(context.protocol, context.architecture)
        if not isinstance(context.protocol, StoredProtocol):
            return batch.tokens[read].patches[rows]
        values = batch.selected[_selector(context.protocol, read)].values[rows]
        return patch_grid(values, batch.geometry[0].padded, context.architecture.patch)

    def _prompts(self) -> list[list[str]]:
        protocol, name = self._context.protocol, self._context.datasets["test"].name
        return name_texts(name, self._classes.names, protocol.prompts, protocol.templates)

    def best(self, scores: Sequence[float]) -> int:
        return 0

    def finish(self) -> Outcome:
        if self._failed is not None:
            raise self._failed
        return super().finish()

    def found(self, outcome: Outcome) -> Outcome:
        text, groups = self._context.text, self._prompts()
        assert text is not None
        counts = {"names": len(groups), "texts": sum(map(len, groups))}
        if cut := number_cut(text, groups):
            counts["texts_cut"] = cut
        read = _read(self._context.protocol, self._context.architecture)
        return replace(
            outcome,
            counts={**outcome.counts, **counts},
            resolved={
                **outcome.resolved,
                "layer": read.layer,
                "facet": read.facet,
                "text_tower": text.name,
                "texts": texts_digest(groups),
            },
        )

    def state(self) -> Any:
        return {**super().state(), "failed": self._failed}

    def load(self, state: Any) -> None:
        super().load(state)
        self._failed = state["failed"]

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._failed = self._failed or other._failed


class ZeroShotSegmentation(PicturedTask[Any]):
    name: ClassVar[str] = "zeroshot-seg"
    summary: ClassVar[str] = "what class every pixel is of, from patches and class names (mIoU)"
    default_datasets: ClassVar[tuple[str, ...]] = ("voc12-seg",)
    needs_text: ClassVar[bool] = True
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "zeroshot-seg": {"size": 56, "templates": "prompts"},
        "zeroshot-seg-windows": {
            "short": 56,
            "window": 42,
            "stride": 28,
            "templates": "prompts",
        },
    }
    protocols: Mapping[str, Protocol] = {
        "zeroshot-seg": StoredProtocol(),
        "zeroshot-seg-windows": WindowsProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: Protocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        assert isinstance(protocol, StoredProtocol | WindowsProtocol)
        if "test" not in datasets:
            raise NotApplicable("the data set has no test split")
        if not datasets["test"].semantic_classes:
            raise NotApplicable("the data set has no class for every pixel (no masks)")
        _classes(datasets["test"], protocol)
        read, view = _read(protocol, architecture), protocol.view(architecture.patch)
        how: dict[str, Any] = {"dense": "pictures", "precision": protocol.precision}
        if isinstance(protocol, StoredProtocol):
            how["select"] = (_selector(protocol, read),)
        else:
            how["beside"] = (read,)
        classes = len(datasets["test"].semantic_classes)
        return {"test": TokenRequest(view, bytes_per_picture=3 * 8 * classes, **how)}

    def start(self, context: Context[Any]) -> ZeroShotEvaluation:
        return ZeroShotEvaluation(context, _classes(context.datasets["test"], context.protocol))

    def seeded(self, protocol: Protocol) -> bool:
        return False


def _classes(dataset: Dataset, protocol: ZeroShotSegmentationProtocol) -> TextClasses:
    return text_classes(
        dataset.name, dataset.semantic_classes, protocol.prompts, protocol.background
    )


def _read(protocol: ZeroShotSegmentationProtocol, architecture: Architecture) -> Read:
    """What is projected. Raises ``NotApplicable`` where the model has nothing of the kind."""
    facet: Facet | DenseFacet = "token"
    if architecture.global_feature == "attention pooling":
        if protocol.read == "token" or protocol.block != "whole":
            raise NotApplicable(
                "its tokens are not in the space of its texts, from which attention pooling parts "
                "them (--set read=value pools each patch alone)"
            )
        facet = "pooled-alone"
    elif protocol.read == "value":
        if not architecture.attends:
            raise NotApplicable("its attention is no softmax a head, and has no value path")
        facet = "value-path" if protocol.block == "whole" else "value-written"
    return Read(architecture.depth - 1, facet, True)


def _selector(protocol: StoredProtocol, read: Read) -> Selector:
    half = protocol.stored_as == "fp16"
    assert isinstance(read.layer, int)
    return Selector("patches", read.layer, read.norm, half=half, facet=read.facet)


ZEROSHOT_SEG = ZeroShotSegmentation()
