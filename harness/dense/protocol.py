"""The settings of a dense head: what it is given, its form, and how it is trained."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StrictInt, model_validator

from harness.backbone.vit import Precision
from harness.classification import SelectionShare
from harness.data.fixed_size import FixedSize
from harness.data.joint import Interpolation
from harness.probes.dense_head import DenseHead, Form, Training
from harness.probes.schedules import Schedule
from harness.task import Protocol


def _several(value: object) -> object:
    """One number is a list of one; YAML takes 1e-4, without a point, for text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return (float(value),)
    return (value,) if isinstance(value, int | float) else value


def _both(value: object) -> object:
    """One number is the height and the width."""
    return (value, value) if isinstance(value, int) else value


Side = Annotated[StrictInt, Field(ge=1, le=8192)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_both)]
"""(height, width) in pixels."""
Layers = Literal["last", "last:4", "quarters"] | tuple[StrictInt, ...]
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(_several)
]
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, le=16)], ...],
    Field(min_length=1),
    BeforeValidator(_several),
]
Decays = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1), BeforeValidator(_several)
]


class HeadProtocol(Protocol):
    """One head for each learning rate and weight decay. The published protocols are values of
    these fields; those here are what they agree on."""

    version: str = "1.0"
    layers: Layers = Field(
        "last", description="blocks whose patches stand side by side, counted from either end"
    )
    norm: bool = Field(True, description="final norm")
    class_token: bool = Field(False, description="each layer's class token behind its patches")
    precision: Precision = "fp32"
    batch_norm: bool = True
    dropout: float = Field(0.0, ge=0, lt=1, description="share of channels that a picture loses")
    dropout_before_norm: bool = False
    init_std: float | None = Field(
        0.01, gt=0, description="of the first weights; None: torch's Conv2d"
    )
    learning_rates: Rates
    weight_decays: Decays
    batch_size: StrictInt = Field(16, ge=1, description="pictures a step")
    pictures_per_loss: StrictInt | None = Field(
        None, ge=1, description="a loss of so many pictures (as on a GPU), and the mean of losses"
    )
    schedule: Literal["poly", "cosine", "one cycle"]
    power: float = Field(1.0, gt=0, description="of poly")
    floor: float = Field(0.0, ge=0, lt=1, description="where the learning rate ends, a share of it")
    warm_up: float = Field(ge=0, lt=1, description="share of the steps")
    warm_up_ratio: float = Field(1e-6, ge=0, le=1, description="where the warm-up begins")
    momentum: Literal["constant", "one cycle", "after warm-up"] = "constant"
    clip: float | None = Field(None, gt=0, description="most that a gradient's norm may be")
    head_precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _can_warm_up(self) -> Self:
        if self.schedule == "one cycle" and self.warm_up and not self.warm_up_ratio:
            raise ValueError("warm_up_ratio: with one cycle a warm-up begins at more than 0")
        return self

    def heads(self) -> tuple[DenseHead, ...]:
        """The grid, learning rates outermost, each head once."""
        every = dict.fromkeys(itertools.product(self.learning_rates, self.weight_decays))
        return tuple(DenseHead(f"{rate!r} {decay!r}", rate, decay) for rate, decay in every)

    def form(self) -> Form:
        return Form(self.batch_norm, self.dropout, self.dropout_before_norm, self.init_std)

    def training(self, steps: int) -> Training:
        schedule = Schedule(
            steps,
            self.schedule,
            self.power,
            self.floor,
            min(round(self.warm_up * steps), steps - 1),
            self.warm_up_ratio,
            self.momentum,
        )
        return Training(schedule, clip=self.clip, pictures_per_loss=self.pictures_per_loss)


class Streamed(BaseModel):
    """Beside the fields of a head: trained on crops that are drawn anew each time; of several heads
    test chooses the best, as published sweeps do."""

    steps: StrictInt = Field(ge=1)
    selected_on: Literal["test"] = "test"


def check_windows(window: int, stride: int) -> None:
    """Raises ``ValueError`` where windows so far apart leave gaps."""
    if stride > window:
        raise ValueError(f"stride {stride}: windows of {window} would leave gaps")


class FixedView(BaseModel):
    """Beside other fields: patches of one view of each picture, which the feature store keeps."""

    size: Size = Field((512, 512), description="height and width in pixels; one number: both")
    interpolation: Interpolation = "bicubic"
    stored_as: Literal["fp16", "fp32"] = "fp16"

    def view(self, patch: int) -> FixedSize:
        return FixedSize(patch, self.size, interpolation=self.interpolation)


class Stored(FixedView):
    """Beside the fields of a head: trained on patches of fixed views, which are read once. Of
    several heads pictures held out of train choose one."""

    precision: Precision = "fp16"
    epochs: float = Field(10, gt=0, description="passes over the pictures")
    min_steps: StrictInt = Field(1000, ge=1, description="of a data set too small for them")
    steps: StrictInt | None = Field(None, ge=1, description="in place of both")
    selected_on: Literal["held-out pictures"] = "held-out pictures"
    selection_share: SelectionShare = 0.1
    refit: bool = Field(True, description="the chosen head is trained again, on all pictures")

    def steps_for(self, pictures: int, batch_size: int) -> int:
        if self.steps is not None:
            return self.steps
        return max(self.min_steps, math.ceil(self.epochs * pictures / batch_size))
