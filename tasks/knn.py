"""kNN: a picture's class is what the most similar training pictures vote for. Nothing is trained.

Oquab et al., "DINOv2" (2023, section 7.1), as coded in facebookresearch/dinov2, dinov2/eval/knn.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, model_validator

from harness.backbone.architecture import Architecture
from harness.classification import (
    CollectedEvaluation,
    TokenProtocol,
    check_classes,
    over_draws,
    request_of,
    selector_of,
)
from harness.collected import NOTED, Examples
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.features.extract import out_of_memory
from harness.features.select import DRAWN, Selector
from harness.features.vectors import Vectors, chosen, to_unit
from harness.probes.blocked_neighbours import BlockedIndex
from harness.probes.neighbours import MOST, Approximate, Judged, NeighbourIndex, judge
from harness.task import Context, MetricSpec, Outcome, Task, TokenRequest

_ROLES: tuple[Role, Role] = ("train", "test")
_TOP = (1, 5)

_Count = Annotated[StrictInt, Field(ge=1, le=MOST)]
_Counts = Annotated[
    tuple[_Count, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, int) else value),
    AfterValidator(lambda values: tuple(sorted(set(values)))),
]


class KnnProtocol(TokenProtocol):
    """DINOv2's kNN; the defaults are the official code's."""

    name: str = "dinov2-knn"
    version: str = "1.0"
    k: _Counts = Field((10, 20, 100, 200), description="how many neighbours vote; each is scored")
    temperature: float = Field(0.07, gt=0)
    similarity: Literal["cosine"] = "cosine"
    softmax_over: Literal["the largest k"] = "the largest k"
    tie_break: Literal["lowest train index, lowest class"] = "lowest train index, lowest class"
    index: Literal["flat", "ivf"] = Field(
        "flat", description="flat is exact; ivf searches some cells only, in a quarter of memory"
    )
    ivf_lists: StrictInt | None = Field(
        None, ge=1, description="cells of ivf; None: the square root of the number of pictures"
    )
    ivf_probes: StrictInt = Field(32, ge=1, description="cells of ivf that are searched")
    n_per_class: _Count | None = Field(
        None,
        description="few-shot: train pictures drawn of each class; k is n_per_class itself and "
        "those below it",
    )
    draws: StrictInt = Field(1, ge=1, le=1000, description="of pictures (few-shot) or tokens")

    @model_validator(mode="after")
    def _draws_something(self) -> Self:
        if self.draws > 1 and self.n_per_class is None and self.token not in DRAWN:
            raise ValueError(
                f"draws {self.draws}: nothing is drawn (set n_per_class, or one of the tokens "
                f"{', '.join(sorted(DRAWN))})"
            )
        if self.ivf_lists is not None and self.index != "ivf":
            raise ValueError(f"ivf_lists: of the index ivf, not of {self.index}")
        return self

    @property
    def ks(self) -> tuple[int, ...]:
        """The k that are scored. Few-shot: as the official code, none above ``n_per_class``."""
        if self.n_per_class is None:
            return self.k
        return (*(k for k in self.k if k < self.n_per_class), self.n_per_class)


class _Gallery(NamedTuple):
    """What neighbours are looked for among: unit ``features [n, D]``, ``labels [n]``."""

    features: torch.Tensor | Vectors
    labels: torch.Tensor


class KnnEvaluation(CollectedEvaluation[KnnProtocol]):
    """All that is computed is computed at the end, with one index at a time in memory."""

    def finish(self) -> Outcome:
        protocol, classes = self._context.protocol, self._context.datasets["train"].classes
        counts = self._without()
        # Taken one by one: what has been copied together is let go of.
        found: dict[Role, list[Examples]] = {role: [] for role in _ROLES}
        for role in _ROLES:
            collectors = self._collectors.pop(role)
            while collectors:
                examples = collectors.pop(0).examples()
                found[role].append(examples._replace(features=to_unit(examples.features)))
        for examples in found["train"]:
            _check_enough(protocol, examples.labels, self._context.datasets["train"])
        test = found["test"][0]
        absent = np.isin(test.labels, found["train"][0].labels, invert=True)
        if absent.any():
            counts["test_pictures_of_classes_not_in_train"] = int(absent.sum())
        judged, pictures = [], 0
        for draw in range(protocol.draws):
            which = draw % len(self._selectors)
            gallery = self._gallery(found["train"][which], draw)
            judged.append(self._judged(gallery, found["test"][which], len(classes)))
            pictures = len(gallery.labels)
        return self._outcome(test, judged, counts, pictures)

    def _gallery(self, train: Examples, draw: int) -> _Gallery:
        """All of train or, few-shot, of each class those with the smallest sha256 of seed, draw
        and id."""
        labels, count = torch.from_numpy(train.labels), self._context.protocol.n_per_class
        if count is None:
            return _Gallery(train.features, labels)
        drawn = few_shot(train, count, self._context.seed, draw)
        return _Gallery(chosen(train.features, drawn.numpy()), labels[drawn])

    def _judged(self, gallery: _Gallery, test: Examples, classes: int) -> dict[int, Judged]:
        protocol, device = self._context.protocol, self._context.device
        try:
            return judge(
                self._index(gallery.features),
                gallery.labels,
                classes,
                test.features,
                torch.from_numpy(test.labels),
                protocol.ks,
                protocol.temperature,
            )
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise HarnessError(
                f"knn: out of memory on {device} with the features of {len(gallery.features):,} "
                f"pictures; --memory SIZE of less reads them in blocks, --set index=ivf takes a "
                "quarter, --device cpu takes the machine's"
            ) from None

    def _index(self, features: torch.Tensor | Vectors) -> NeighbourIndex | BlockedIndex:
        device, approximate = (
            self._context.device,
            _approximate(self._context.protocol, len(features)),
        )
        if not isinstance(features, Vectors):
            return NeighbourIndex(features, device, approximate)
        assert self._context.block is not None
        size = self._context.block
        if torch.device(device).type == "cuda":
            size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
        block = max(1, size // features.row_bytes())
        return BlockedIndex(features, block, device, approximate)

    def _outcome(
        self, test: Examples, judged: list[dict[int, Judged]], counts: dict[str, int], train: int
    ) -> Outcome:
        """Of every draw what was ``judged``, among ``train`` pictures."""
        protocol = self._context.protocol
        columns: dict[str, Any] = {"image_id": list(test.ids), "label": test.labels}
        metrics, by_draw = {}, {}
        for k in protocol.ks:
            ranks = np.stack([each[k].rank.numpy() for each in judged])  # [draws, pictures]
            for top in _TOP:
                name, hits = f"top{top}_k{k}", ranks < top
                columns[name] = hits[0] if len(judged) == 1 else hits.mean(axis=0)
                metrics[name] = MetricSpec(name, "%", True, 100, shown=top == 1)
                by_draw[name] = 100 * hits.mean(axis=1)
            if len(judged) == 1:
                columns[f"predicted_k{k}"] = judged[0][k].predicted.numpy()
        resolved = {**self._read(), "train_pictures": train}
        if approximate := _approximate(protocol, train):
            resolved["ivf_lists"] = approximate.lists
        metrics, details = over_draws(metrics, by_draw)
        return Outcome(columns, metrics, counts, resolved, details=details)


def few_shot(train: Examples, count: int, seed: int, draw: int) -> torch.Tensor:
    """Rows of ``count`` pictures of each class, in the data set's order: those with the smallest
    sha256 of seed, draw and id, whatever else is in the data set."""
    texts = (f"{seed} {draw} {identity}" for identity in train.ids)
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    taken: dict[int, int] = {}
    rows = []
    for row in sorted(range(len(digests)), key=digests.__getitem__):
        label = int(train.labels[row])
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= count:
            rows.append(row)
    return torch.tensor(sorted(rows))


def _approximate(protocol: KnnProtocol, pictures: int) -> Approximate | None:
    if protocol.index == "flat":
        return None
    return Approximate(protocol.ivf_lists or max(1, round(pictures**0.5)), protocol.ivf_probes)


def _check_enough(protocol: KnnProtocol, labels: NDArray[np.int64], dataset: Dataset) -> None:
    """Raises ``HarnessError`` where train has too few pictures for the protocol."""
    name = f"data set {dataset.name!r}"
    wanted, pictures = protocol.n_per_class, len(labels)
    if wanted is not None:
        present, counts = np.unique(labels, return_counts=True)
        least = int(counts.argmin())
        if counts[least] < wanted:
            raise HarnessError(
                f"{name}: n_per_class {wanted}: the class {dataset.classes[present[least]]!r} has "
                f"{counts[least]} train pictures; --set n_per_class={counts[least]}"
            )
        pictures = wanted * len(present)
    elif protocol.k[-1] > pictures:
        fitting = [k for k in protocol.k if k <= pictures] or [pictures]
        raise HarnessError(
            f"{name}: k {protocol.k[-1]} is more than its {pictures} train pictures; --set "
            f"k=[{','.join(map(str, fitting))}]"
        )
    if protocol.ivf_lists is not None and protocol.ivf_lists > pictures:
        raise HarnessError(
            f"{name}: ivf_lists {protocol.ivf_lists} is more than the {pictures} train pictures"
        )


class Knn(Task[KnnProtocol]):
    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "the class that the nearest training pictures vote for (top-1, top-5)"
    default_datasets: ClassVar[tuple[str, ...]] = ()
    checked_with: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "dinov2-knn": {"resize": 112, "crop": 112, "k": [5]}
    }
    protocols: Mapping[str, KnnProtocol] = {"dinov2-knn": KnnProtocol()}

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: KnnProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        check_classes(datasets, _ROLES)
        labels = [sample.target.label for sample in datasets["train"].samples]
        _check_enough(protocol, np.array(labels, np.int64), datasets["train"])
        request = request_of(protocol, architecture, _selectors(protocol, architecture, seed))
        streamed = NOTED * len(request.select)
        return dict.fromkeys(_ROLES, replace(request, streamed_bytes=streamed))

    def start(self, context: Context[KnnProtocol]) -> KnnEvaluation:
        selectors = _selectors(context.protocol, context.architecture, context.seed)
        return KnnEvaluation(context, selectors, _ROLES)

    def seeded(self, protocol: KnnProtocol) -> bool:
        return protocol.n_per_class is not None or protocol.token in DRAWN


def _selectors(protocol: KnnProtocol, architecture: Architecture, seed: int) -> list[Selector]:
    """One for every draw, where it is tokens that are drawn."""
    draws = protocol.draws if protocol.token in DRAWN else 1
    return [selector_of(protocol, architecture, seed, draw) for draw in range(draws)]


KNN = Knn()
