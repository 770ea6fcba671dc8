"""DINOv2's grid of linear classifiers: its settings, what its heads see, and how fast they learn.

Oquab et al., "DINOv2" (2023, section 7.1), as coded in facebookresearch/dinov2,
dinov2/eval/linear.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from harness.backbone.architecture import Architecture
from harness.classification import SelectionShare, TokenProtocol, selector_of
from harness.data.dataset import Dataset, Role
from harness.features.select import Selector, TokenName, applicable
from harness.probes.linear import Head
from harness.task import NotApplicable

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_RATED_AT = 256  # pictures a step that a learning rate is meant for; it grows with the batch


def _several(value: object) -> object:
    """One number is a list of one."""
    return (value,) if isinstance(value, bool | int | float) else value


_Blocks = Annotated[
    tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(min_length=1), BeforeValidator(_several)
]
_Choices = Annotated[tuple[bool, ...], Field(min_length=1), BeforeValidator(_several)]
_Rates = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(_several)
]


class LinearProtocol(TokenProtocol):
    """The grid and how it is trained; the defaults are the official code's."""

    version: str = "1.0"
    selected_on: Literal["held-out pictures", "test"]
    n_last_blocks: _Blocks = Field(
        (1, 4), description="blocks, up to ``layer``, whose tokens a head is given side by side"
    )
    avgpool: _Choices = Field(
        (False, True), description="and the mean of the last of these blocks' patches"
    )
    learning_rates: _Rates = Field(RATES, description="for 256 pictures a step")
    batch_size: StrictInt = Field(1024, ge=1, description="pictures a step")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine to 0"] = "cosine to 0"
    init_std: float = Field(0.01, ge=0, description="of the first weights; biases begin as 0")

    def points(self) -> list[Point]:
        """The grid in the official code's order, each head once."""
        every = itertools.product(self.n_last_blocks, self.avgpool, self.learning_rates)
        return list(dict.fromkeys(Point(*each) for each in every))


class StoredLinearProtocol(LinearProtocol):
    """From features of fixed views, which are read once."""

    name: str = "linear"
    selected_on: Literal["held-out pictures"] = "held-out pictures"
    selection_share: SelectionShare = 0.1
    refit: bool = Field(True, description="the chosen head is trained again, on all pictures")
    epochs: float = Field(10, gt=0, description="passes over the pictures")
    min_steps: StrictInt = Field(
        1250, ge=1, description="of a data set too small for them: one of the official epochs"
    )

    @model_validator(mode="after")
    def _of_one_layer(self) -> Self:
        alone = (set(self.n_last_blocks), set(self.avgpool)) == ({1}, {False})
        if self.token in {"outlier", "normal"} and not alone:
            raise ValueError(
                f"token {self.token}: of one block and by itself (set n_last_blocks=1 and "
                "avgpool=false)"
            )
        return self


class StreamedLinearProtocol(LinearProtocol):
    """From a stream of augmented pictures, with the head chosen on test, as published."""

    name: str = "dinov2-linear"
    token: TokenName = "cls"
    selected_on: Literal["test"] = "test"
    steps: StrictInt = Field(12_500, ge=1)
    augment: Literal["random resized crop and flip", "none"] = "random resized crop and flip"

    @model_validator(mode="after")
    def _every_picture_has_it(self) -> Self:
        if self.token in {"outlier", "normal"}:
            raise ValueError(f"token {self.token}: not every picture has one; protocol linear")
        return self


class Point(NamedTuple):
    """One head of the grid."""

    n_last_blocks: int
    avgpool: bool
    learning_rate: float

    def head(self, ends: Sequence[int], blocks: int, batch_size: int) -> Head:
        """Features of ``blocks`` blocks stand side by side, the last one last, and the mean of
        patches behind them; ``ends`` are the columns where each begins, and where all end."""
        stop = ends[-1] if self.avgpool else ends[blocks]
        rate = self.learning_rate * batch_size / _RATED_AT
        name = f"{self.n_last_blocks} {self.avgpool} {self.learning_rate!r}"
        return Head(name, ends[blocks - self.n_last_blocks], stop, rate)


class Choice(NamedTuple):
    """Top-1 in % of every head on the pictures that choose, and which heads diverged."""

    scores: tuple[float, ...]
    diverged: tuple[bool, ...]

    @property
    def best(self) -> int:
        """The first of equals, in grid order."""
        return self.scores.index(max(self.scores))

    def grid(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """All of it, as a record tells it."""
        return [
            {**point._asdict(), "top1_on_selection": round(score, 4), "diverged": diverged}
            for point, score, diverged in zip(points, *self, strict=True)
        ]


def kept_roles(protocol: LinearProtocol, datasets: Mapping[Role, Dataset]) -> list[Role]:
    """The roles whose features are kept to train on, and to choose on."""
    if isinstance(protocol, StreamedLinearProtocol):
        return []
    labelled = "select" in datasets and any(
        sample.target.label is not None for sample in datasets["select"].samples
    )
    return ["train", "select"] if labelled else ["train"]


def selectors_of(
    protocol: LinearProtocol, architecture: Architecture, seed: int = 0
) -> list[Selector]:
    """The token of every block that is asked for, first to last, and the mean of patches."""
    last = selector_of(protocol, architecture, seed)
    blocks = max(protocol.n_last_blocks)
    if last.layer + 1 < blocks:
        raise NotApplicable(f"the last {blocks} blocks, up to layer {last.layer}, are not there")
    tokens = [replace(last, layer=last.layer - back) for back in reversed(range(blocks))]
    for token in tokens:
        try:
            applicable(token, architecture)
        except NotApplicable as error:
            raise NotApplicable(f"{error} (--set n_last_blocks=1 would do)") from None
    if any(protocol.avgpool):
        tokens.append(Selector("patch-mean", last.layer, protocol.norm))
    return tokens
