"""The contract between the harness and a task: what it asks for, how it folds tokens into scores.

A task is found through the entry-point group ``harness.tasks``. It says what it needs
(``requests``), is started once a (model, data set, protocol), is fed batches role by role, and
gives an ``Outcome`` with one value per picture, so that intervals and paired tests can be computed
later without running anything again.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.data.dataset import Dataset, Dense, Role, Target
from harness.data.joint import Labelled
from harness.data.views import Geometry, View
from harness.documents import unknown
from harness.errors import HarnessError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from harness.backbone.architecture import Architecture
    from harness.backbone.attention import Received
    from harness.backbone.layout import DenseFacet, Facet, Tokens
    from harness.backbone.vit import Layer, Precision, Read
    from harness.features.outliers import OutlierRule
    from harness.features.select import Selected, Selector
    from harness.features.store import Feature
    from harness.heads import Head
    from harness.language.texts import Texts


class NotApplicable(Exception):
    """A task makes no sense for this model or data set; the reason is listed in tables."""


class Protocol(BaseModel):
    """Every setting that can move a task's number: typed, frozen, named, versioned, hashed.

    A change of scoring needs a new ``version``: major when old numbers no longer compare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    version: str

    def settings(self) -> dict[str, Any]:
        """The fields as JSON would hold them; -0.0 is 0.0, which it equals."""
        text = json.dumps(self.model_dump(mode="json"))
        settings: dict[str, Any] = json.loads(text, parse_float=lambda digits: float(digits) + 0.0)
        return settings

    def hash(self) -> str:
        """sha256 of the canonical JSON of all fields: equal if and only if scores compare."""
        text = json.dumps(self.settings(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def changed(self, settings: Mapping[str, object]) -> Self:
        """This protocol with some fields set (``--set``). Raises ``HarnessError`` on a bad one."""
        fields = type(self).model_fields.keys() - {"name", "version"}
        for key in settings:
            if key not in fields:
                raise unknown("setting", key, fields, f"harness describe {self.name}")
        merged = {**self.model_dump(), **settings}
        try:
            return type(self).model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            what = first["msg"].removeprefix("Value error, ")
            if first["loc"]:
                where = ".".join(str(part) for part in first["loc"])
                what = f"{where}: {what} (given: {first['input']!r})"
            raise HarnessError(f"protocol {self.name}: {what}") from None


@dataclass(frozen=True)
class TokenRequest:
    """What a task wants read of every picture of one role, and how it wants to be fed.

    ``layers`` × ``facets`` are read in one pass; ``norm`` applies the final norm to tokens.
    ``attention`` are layers whose class- and register-token attention rows are wanted, ``received``
    those of which it is wanted what every token draws from all queries.
    ``order`` is ``once`` (each picture once, in the data set's order, except that pictures of one
    grid may be brought together) or ``shuffled`` (``steps`` updates of ``step_size`` pictures, in
    epochs shuffled by the seed). With a ``step_size`` every update but the last has exactly that
    many pictures, in order, whatever the forward batch: the view must then give one size.
    ``bytes_per_picture`` is what the fold keeps of each, for the plan; ``streamed_bytes`` what it
    keeps where its vectors are read from the feature store in blocks (``Context.block``), or None
    where it cannot do so. ``select`` are tokens that
    stand for a picture as one vector. A request that wants nothing else (no layers, attention or
    pixels) of pictures read once can be served from the feature store, without a forward pass;
    labels of pixels are then read beside it. ``dense`` asks for those: of each crop, padded with
    it (``crops``, of a joint view), or of the picture at its stored size (``pictures``).
    ``beside`` are single things to read too; ``outliers`` (layer, rule) wants the rule's cut-off.
    """

    view: View
    layers: tuple[Layer, ...] = ()
    facets: tuple[Facet | DenseFacet, ...] = ("token",)
    norm: bool = False
    attention: tuple[int, ...] = ()
    received: tuple[int, ...] = ()
    pixels: bool = False
    precision: Precision = "fp32"
    order: Literal["once", "shuffled"] = "once"
    steps: int | None = None
    step_size: int | None = None
    bytes_per_picture: int = 0
    streamed_bytes: int | None = None
    select: tuple[Selector, ...] = ()
    dense: Labelled | None = None
    beside: tuple[Read, ...] = ()
    outliers: tuple[int, OutlierRule] | None = None

    def __post_init__(self) -> None:
        one_size = getattr(self.view, "padded", None) is not None
        if not one_size and any(selector.token == "patches" for selector in self.select):
            raise ValueError("patches are selected of a view whose crops are of one size")
        if self.dense == "crops" and not getattr(self.view, "joint", False):
            raise ValueError("labels of crops need a joint view")
        if self.order == "shuffled" and not (self.steps and self.step_size):
            raise ValueError("a shuffled request needs steps and step_size")
        if self.order == "once" and self.steps is not None:
            raise ValueError("steps belong to a shuffled request")

    def kept(self, streamed: bool) -> int:
        """Bytes that the fold keeps of a picture, whose vectors may be ``streamed``."""
        can = streamed and self.streamed_bytes is not None
        return self.streamed_bytes or 0 if can else self.bytes_per_picture

    @property
    def pictures(self) -> int | None:
        """How many pictures a shuffled request reads; None where it is each once."""
        return None if self.steps is None or self.step_size is None else self.steps * self.step_size

    @property
    def sharing(self) -> tuple[object, ...]:
        """Requests in which this agrees are served by one forward pass."""
        return self.view, self.precision, self.order, self.pictures, self.dense

    @property
    def seeded(self) -> bool:
        """Whether another seed would read otherwise: another order, other crops, other tokens."""
        from harness.features.select import DRAWN

        # A stranger's view that says nothing may draw.
        crops = self.order == "shuffled" or getattr(self.view, "seeded", True)
        return crops or any(selector.token in DRAWN for selector in self.select)

    @property
    def reads(self) -> frozenset[Read]:
        from harness.backbone.vit import Read

        return frozenset(
            Read(layer, facet, self.norm and facet == "token")
            for layer in self.layers
            for facet in self.facets
        ).union(self.beside, *(selector.reads for selector in self.select))

    @property
    def ruled(self) -> frozenset[tuple[int, OutlierRule]]:
        """Layers and rules whose cut-offs are needed."""
        own = {(each.layer, each.rule) for each in self.select if each.rule is not None}
        return frozenset(own if self.outliers is None else {*own, self.outliers})

    @property
    def storable(self) -> bool:
        """Whether the feature store can serve it: selected tokens of pictures read once."""
        asks_more = self.layers or self.beside or self.attention or self.received or self.pixels
        return bool(self.select) and self.order == "once" and not asks_more


@dataclass(frozen=True)
class DenseCrops:
    """The labels of crops, padded as they are: ``semantic`` and ``instances [B, H, W]`` uint8,
    ``depth [B, H, W]`` float32, as in ``Dense``; None where the data set has none. On the CPU."""

    semantic: torch.Tensor | None = None
    instances: torch.Tensor | None = None
    depth: torch.Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What ``update`` is given: rows are crops, all of one patch grid.

    ``tokens[Read(layer, facet, norm)]``, ``attention[layer] [B, heads, C+R, H, W]`` and
    ``received[layer]`` live on the backbone's device. ``ids`` and ``targets`` are per picture;
    ``sample[row]`` says which picture a row is of; ``geometry`` is per row. ``pixels [B, 3, H, W]``
    are normalised, given if asked for. ``selected[selector]`` has a vector for each row. From the
    feature store a batch brings that alone, on the CPU: its ``tokens`` are empty. ``crops`` says of
    how many rows each picture is made, of which others may come in the next batches. Of labels that
    were asked for, ``dense`` has those of each picture at its stored size, or ``dense_crops`` those
    of each row. ``stored`` is where the feature store has, or will have at the end of the pass, the
    vectors of a selector, by the picture's place in the data set.
    """

    tokens: Mapping[Read, Tokens]
    attention: Mapping[int, torch.Tensor]
    ids: tuple[str, ...]
    targets: tuple[Target, ...]
    sample: tuple[int, ...]
    geometry: tuple[Geometry, ...]
    pixels: torch.Tensor | None = None
    selected: Mapping[Selector, Selected] = field(default_factory=dict)
    crops: tuple[int, ...] = ()
    dense: tuple[Dense, ...] = ()
    dense_crops: DenseCrops | None = None
    received: Mapping[int, Received] = field(default_factory=dict)
    stored: Mapping[Selector, Feature] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricSpec:
    """A metric that is the mean over pictures of one column of an outcome, times ``scale``.

    With another ``aggregate`` (``harness/aggregates.py``) it is made of ``column`` and ``others``.
    One that is not ``shown`` stands in the record and not in a run's table, which has to fit. Of
    one that is ``partial`` some pictures have no value: NaN in the column, left out of the mean.
    ``sd`` is the standard deviation over draws, where a picture's value is its mean over several.
    """

    column: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0
    shown: bool = True
    partial: bool = False
    sd: float | None = None
    aggregate: str = "mean"
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found: columns with one row per scored picture, and their metrics.

    ``columns``, ``[n]`` or of numbers ``[n, k]``, always hold ``image_id``. ``selected_on`` says on
    what hyper-parameters were chosen, if any were; ``details`` is JSON-able and goes into the
    record as it is. ``head`` is what a ``HeadTask`` trained: it is kept beside the record.
    """

    columns: Mapping[str, Sequence[str] | NDArray[np.generic]]
    metrics: Mapping[str, MetricSpec]
    counts: Mapping[str, int] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    selected_on: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    head: Head | None = None


P = TypeVar("P", bound=Protocol)


@dataclass(frozen=True)
class Context(Generic[P]):
    """What an evaluation may know when it starts."""

    architecture: Architecture
    datasets: Mapping[Role, Dataset]
    protocol: P
    seed: int
    cutoffs: Mapping[OutlierRule, float] = field(default_factory=dict)
    """Of the rules that the task asks for: the norm above which a patch is an outlier."""
    device: str = "cpu"
    """Where the backbone runs: ``cpu``, ``cuda`` or ``cuda:1``. A head may be fitted there too."""
    block: int | None = None
    """Where vectors are read from the feature store again and not kept in memory: about the bytes
    that a block of them may take. It moves no number."""
    text: Texts | None = None
    """Of a task that ``needs_text``: the model's text tower."""


class Evaluation(ABC):
    """One (model, data set, protocol) being scored: a fold over batches.

    ``state`` is picklable; ``load(state())`` continues where it was. ``merge`` adds what another
    evaluation of other pictures of the same roles saw, where ``mergeable``: each is fed its part of
    every role, and ``end`` of the last role comes after the merge. One that offers no ``state``
    raises ``NotImplementedError``.
    """

    mergeable: bool = True

    @abstractmethod
    def update(self, role: Role, batch: Batch) -> None: ...

    def end(self, role: Role) -> None:
        """All pictures of ``role`` were seen: the place to fit a head or choose a setting."""
        return None

    @abstractmethod
    def finish(self) -> Outcome: ...

    @abstractmethod
    def state(self) -> object: ...

    @abstractmethod
    def load(self, state: Any) -> None: ...

    @abstractmethod
    def merge(self, other: Self) -> None: ...


class Task(ABC, Generic[P]):
    """A named way of judging frozen features. ``protocols`` maps names; the first is the default.

    ``default_datasets`` are run where none is named. ``checked_with`` has for a protocol the
    settings with which a few small pictures do, for ``harness tasks check``. One that
    ``needs_text`` is run for models with a text tower alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    protocols: Mapping[str, P]
    default_datasets: ClassVar[tuple[str, ...]] = ()
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    needs_text: ClassVar[bool] = False

    def pictures(self, datasets: Mapping[Role, Dataset]) -> Mapping[Role, Dataset]:
        """Which of the data set's splits play which roles for this task: as they are."""
        return datasets

    @abstractmethod
    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: P,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        """What is to be read for each role. Raises ``NotApplicable`` with a reason.

        ``seed`` is that of the context in which the task will be started."""

    def seeded(self, protocol: P) -> bool:
        """Whether the seed can move the number: ``--seeds N`` runs only what it can N times."""
        return True

    @abstractmethod
    def start(self, context: Context[P]) -> Evaluation: ...


class HeadTask(Task[P]):
    """A task whose outcomes have a ``head`` that can be judged on further test sets of the same
    classes (``--test-on``), without training."""

    @abstractmethod
    def further(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        test: Dataset,
        protocol: P,
        seed: int = 0,
    ) -> TokenRequest:
        """What is to be read of ``test``, for a head trained on ``datasets``.

        Raises ``NotApplicable`` with a reason, and ``HarnessError`` for a class that the head does
        not know.
        """

    @abstractmethod
    def judge(self, context: Context[P], head: Head) -> Evaluation:
        """Of ``context`` the data sets have the role test alone: the further one."""
