"""A task that tells pixels apart by the norms of patches: right by chance, and quick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from harness.backbone.vit import Read
from harness.data.dataset import Dense, Role
from harness.data.fixed_size import FixedSize
from harness.data.segmentation_views import SlidingWindows
from harness.features.select import Selector, patch_grid
from harness.features.windows import full_size
from harness.pictured.contract import PicturedEvaluation, PicturedTask, Shown
from harness.task import Batch, Context, MetricSpec, Outcome, Protocol, TokenRequest

SIDE = 128
READ = Read(3, "token", False)
EVERY = Selector("patches", 3, norm=False, half=True)


class NormsProtocol(Protocol):
    name: str
    version: str = "1.0"
    kind: str = "classes"
    stored: bool = False
    step_size: int | None = None


class NormsEvaluation(PicturedEvaluation):
    def __init__(self, context: Context[NormsProtocol]) -> None:
        self._context = context
        self._parts: dict[str, list[Any]] = {}
        self.told: dict[str, NDArray[Any]] = {}
        self.scores: dict[str, float] = {}
        self.seed = context.seed

    def update(self, role: Role, batch: Batch) -> None:
        for name, told, dense in self._predictions(batch):
            self.told[name] = told
            truth = self._truth(dense)
            error = told != truth if self._context.protocol.kind == "classes" else told - truth
            self.scores[name] = -float(np.abs(error, dtype=np.float64).mean())

    def _truth(self, dense: Dense) -> NDArray[Any]:
        found = dense.semantic if self._context.protocol.kind == "classes" else dense.depth
        assert found is not None
        return found

    def _predictions(self, batch: Batch) -> Iterator[tuple[str, NDArray[Any], Dense]]:
        for row, picture in enumerate(batch.sample):
            name = batch.ids[picture]
            if self._context.protocol.stored:
                values = batch.selected[EVERY].values
                patches = patch_grid(values, batch.geometry[0].padded, 14)[row]
            else:
                patches = batch.tokens[READ].patches[row]
            norms = patches.float().norm(dim=-1)[None].cpu()
            crops = self._parts.setdefault(name, [])
            crops.append((norms, batch.geometry[row]))
            if len(crops) < batch.crops[picture]:
                continue
            values, places = zip(*self._parts.pop(name), strict=True)
            norm = full_size(values, places)[0]
            if self._context.protocol.kind == "classes":
                told = (norm > norm.median()).to(torch.uint8).numpy()
            else:
                told = norm.numpy()
            yield name, told, batch.dense[picture]

    def finish(self) -> Outcome:
        assert not self._parts
        names = sorted(self.scores)
        columns = {"image_id": names, "score": np.array([self.scores[name] for name in names])}
        return Outcome(columns, {"score": MetricSpec("score", "", True)})

    def standing(self) -> Mapping[str, float]:
        return self.scores

    def shown(self, batch: Batch) -> Iterator[Shown]:
        kind: Any = self._context.protocol.kind
        for name, told, dense in self._predictions(batch):
            score = f"score {self.scores[name]:.2f}"
            yield Shown(name, told, self._truth(dense), kind, score)

    def state(self) -> object:
        return self.scores

    def load(self, state: Any) -> None:
        self.scores = state

    def merge(self, other: Self) -> None:
        self.scores |= other.scores


class Norms(PicturedTask[NormsProtocol]):
    name: ClassVar[str] = "norms"
    summary: ClassVar[str] = "tells pixels apart by the norms of patches"
    protocols: Mapping[str, NormsProtocol] = {
        "windows": NormsProtocol(name="windows"),
        "depth": NormsProtocol(name="depth", kind="depth"),
        "stored": NormsProtocol(name="stored", stored=True),
        "steps": NormsProtocol(name="steps", stored=True, step_size=2),
    }

    def __init__(self) -> None:
        self.started: list[NormsEvaluation] = []

    def requests(
        self, architecture: Any, datasets: Any, protocol: NormsProtocol, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        if protocol.stored:
            view = FixedSize(architecture.patch, (SIDE, SIDE))
            step = protocol.step_size
            return {"test": TokenRequest(view, select=(EVERY,), step_size=step, dense="pictures")}
        windows = SlidingWindows(architecture.patch, SIDE, 80, 48, flip=True)
        return {"test": TokenRequest(windows, layers=(3,), dense="pictures")}

    def start(self, context: Context[NormsProtocol]) -> NormsEvaluation:
        self.started.append(NormsEvaluation(context))
        return self.started[-1]
