"""Where patch tokens of high norm are, what they lie on, and what they know: are they artifacts?

Darcet et al., "Vision Transformers Need Registers" (2023, section 2.1 and figures 3 to 5). One pass
over pictures, with or without labels (``harness/anatomy.py``); ``local-information`` adds the
probes of figure 5b and table 5, which read a token's position and its patch's pixels out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from harness.anatomy import AnatomyEvaluation, AnatomyProtocol, layers_of, size_of, view_of
from harness.backbone.architecture import Architecture
from harness.backbone.vit import Layer, Read
from harness.data.coverage import masks_tell_objects
from harness.data.dataset import Dataset, Role
from harness.data.fixed_size import FixedSize
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule
from harness.probes.local_information import Examples, Probes, TokenSums, patch_pixels, score
from harness.probes.patch_anatomy import COLUMNS, PatchAnatomy
from harness.selection import held_out
from harness.task import (
    Batch,
    Context,
    MetricSpec,
    NotApplicable,
    Outcome,
    Task,
    TokenRequest,
)

# Of the pixels that are to be told, whatever a model's own are.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCORES = ("position_top1", "position_distance", "pixel_l2", "class_top1")
LOCAL = tuple(f"{kind}_{what}" for kind in ("normal", "outlier") for what in SCORES)


class LocalInformationProtocol(AnatomyProtocol):
    """What is fitted beside; figure 5b and table 5 of the paper leave all of it unsaid."""

    name: str = "local-information"
    norm: bool = Field(True, description="final norm, of the tokens that probes read")
    fitted_on: Literal["all patches", "each kind by itself"] = "all patches"
    ridge: float = Field(1e-3, gt=0, description="added to the variance of scaled dimensions")
    probe: Literal["discriminants of position and class, ridge regression of pixels"] = (
        "discriminants of position and class, ridge regression of pixels"
    )
    pixels: Literal["ImageNet mean and std"] = "ImageNet mean and std"
    held_out: float = Field(
        0.2, gt=0, lt=1, description="scored, by the hash of the id, where there is no train split"
    )

    @model_validator(mode="after")
    def _one_grid(self) -> LocalInformationProtocol:
        if self.view == "whole, zeros right and below":
            raise ValueError(f"view {self.view!r}: positions are told on one grid for all pictures")
        return self


class LocalInformationEvaluation(AnatomyEvaluation):
    """The same, and what probes read. They are fitted on train; without one, on the pictures of
    test that are not held out, while the patches of those that are wait to be scored."""

    columns: ClassVar[tuple[str, ...]] = (*COLUMNS, *LOCAL)

    def __init__(self, context: Context[LocalInformationProtocol]) -> None:
        super().__init__(context)
        self._settings = context.protocol
        facts = context.architecture
        self._read = Read(self.reading, "token", context.protocol.norm)
        self._statistics = [torch.tensor(each)[:, None, None] for each in (facts.mean, facts.std)]
        grid = tuple(side // facts.patch for side in size_of(context.protocol, facts))
        self._grid = grid[0], grid[1]
        self._kinds = (
            ("all",) if self._settings.fitted_on == "all patches" else ("normal", "outlier")
        )
        fitting = context.datasets.get("train", self._dataset)
        self._labelled = bool(fitting.classes) and fitting.classes == self._dataset.classes
        self._sums = {kind: TokenSums(self._grid, len(fitting.classes)) for kind in self._kinds}
        self._probes: dict[str, Probes] | None = None
        self._waiting: list[tuple[tuple[str, ...], Examples, Tensor]] = []
        self._scored: dict[str, NDArray[np.float64]] = {}
        self._device = torch.device(context.device)
        # Probes that score a picture are fitted on all of train, which no worker's part is.
        self.mergeable = "train" not in context.datasets
        self._held: set[str] | None = None
        if "train" not in context.datasets:
            ids = [sample.id for sample in self._dataset.samples]
            held = held_out(ids, self._settings.held_out)
            self._held = {identity for identity, keep in zip(ids, held, strict=True) if keep}

    def update(self, role: Role, batch: Batch) -> None:
        if role == "train":
            norms = torch.linalg.vector_norm(
                batch.tokens[Read(self.reading)].patches.float(), dim=-1
            )
            self._fit_on(self._examples(batch), norms.flatten() > self._cutoff)
            return
        rows, outliers = self._look(batch)
        blank = np.full((len(rows), len(LOCAL)), np.nan)
        self._rows.update(zip(batch.ids, np.hstack([rows, blank]), strict=True))
        examples = self._examples(batch)
        if self._held is None:
            self._score(batch.ids, examples, outliers)
            return
        held = torch.tensor([identity in self._held for identity in batch.ids])
        patches = held.to(outliers.device).repeat_interleave(outliers.shape[1])
        if not held.all():
            self._fit_on(examples.of(~patches), outliers.flatten()[~patches])
        if held.any():
            waiting = tuple(each for each in batch.ids if each in self._held)
            chosen = examples.of(patches)
            labels = None if chosen.labels is None else chosen.labels.cpu()
            kept = Examples(*(each.cpu() for each in chosen[:3]), labels)
            self._waiting.append((waiting, kept, outliers.cpu()[held]))

    def end(self, role: Role) -> None:
        if role == "test":
            for ids, examples, outliers in self._waiting:
                labels = None if examples.labels is None else examples.labels.to(self._device)
                here = Examples(*(each.to(self._device) for each in examples[:3]), labels)
                self._score(ids, here, outliers.to(self._device))
            self._waiting = []

    def _examples(self, batch: Batch) -> Examples:
        """All patches of a batch, one picture after the other."""
        assert batch.pixels is not None
        features = batch.tokens[self._read].patches
        rows, columns = features.shape[1:3]
        mean, std = (each.to(features.device) for each in self._statistics)
        imagenet = [
            torch.tensor(each, device=features.device)[:, None, None]
            for each in (IMAGENET_MEAN, IMAGENET_STD)
        ]
        pixels = (batch.pixels * std + mean - imagenet[0]) / imagenet[1]
        positions = torch.arange(rows * columns, device=features.device).repeat(len(features))
        labels = None
        if self._labelled:
            own = [-1 if each.label is None else each.label for each in batch.targets]
            labels = torch.tensor(own, device=features.device).repeat_interleave(rows * columns)
        return Examples(
            features.flatten(0, 2).float(),
            positions,
            patch_pixels(pixels, self._patch).flatten(0, 2),
            labels,
        )

    def _fit_on(self, examples: Examples, outliers: Tensor) -> None:
        self._probes = None
        if self._kinds == ("all",):
            self._sums["all"].add(examples)
            return
        for kind, which in (("normal", ~outliers), ("outlier", outliers)):
            if which.any():
                self._sums[kind].add(examples.of(which))

    def _score(self, ids: Sequence[str], examples: Examples, outliers: Tensor) -> None:
        if self._probes is None:
            self._probes = {
                kind: sums.fit(self._settings.ridge)
                for kind, sums in self._sums.items()
                if sums.count
            }
        table = np.full((len(ids), len(LOCAL)), np.nan)
        for place, (kind, which) in enumerate((("normal", ~outliers), ("outlier", outliers))):
            probes = self._probes.get(kind, self._probes.get("all"))
            chosen = which.flatten().nonzero()[:, 0]
            if probes is None or not len(chosen):
                continue
            found = score(probes, examples.of(chosen), self._grid[1])
            picture = chosen // outliers.shape[1]
            for column, values in enumerate(found):
                if values is not None:
                    total = values.new_zeros(len(ids)).index_add_(0, picture, values)
                    means = (total / which.sum(1)).cpu().numpy()
                    table[:, place * len(SCORES) + column] = means
        self._scored.update(zip(ids, table, strict=True))

    def finish(self) -> Outcome:
        if not self._scored:
            raise HarnessError(
                f"{self.protocol.name}: no picture could be scored beside those that the probes "
                "are fitted on; at least two are needed, or a train split"
            )
        if not any(sums.count for sums in self._sums.values()):
            raise HarnessError(f"{self.protocol.name}: no picture was left to fit the probes on")
        for identity, row in self._scored.items():
            self._rows[identity][len(COLUMNS) :] = row
        outcome = super().finish()
        fitted = {f"fitted_on_{kind}": sums.count for kind, sums in self._sums.items()}
        return replace(
            outcome,
            counts={**outcome.counts, "pictures_scored": len(self._scored), **fitted},
            resolved={**outcome.resolved, "grid": list(self._grid)},
        )

    def _metrics(self) -> dict[str, MetricSpec]:
        metrics = {
            name: replace(spec, shown=name == "outlier_fraction")
            for name, spec in super()._metrics().items()
        }
        for name, what, unit, higher, scale, shown in (
            ("position", "position_top1", "%", True, 100, True),
            ("distance", "position_distance", "patches", False, 1, False),
            ("pixels", "pixel_l2", "L2", False, 1, True),
            ("class", "class_top1", "%", True, 100, False),
        ):
            for kind in ("normal", "outlier"):
                column = f"{kind}_{what}"
                metrics[f"{kind}_{name}"] = MetricSpec(
                    column, unit, higher, scale, shown, partial=True
                )
        return metrics

    def state(self) -> object:
        sums = {kind: each.state() for kind, each in self._sums.items()}
        return super().state(), sums, list(self._waiting), dict(self._scored)

    def load(self, state: Any) -> None:
        super().load(state[0])
        for kind, sums in state[1].items():
            self._sums[kind].load(sums, self._device)
        self._waiting, self._scored = list(state[2]), dict(state[3])
        self._probes = None

    def merge(self, other: AnatomyEvaluation) -> None:
        assert isinstance(other, LocalInformationEvaluation)
        super().merge(other)
        for kind, sums in other._sums.items():
            self._sums[kind].merge(sums)
        self._waiting += other._waiting
        self._scored |= other._scored
        self._probes = None


class Anatomy(Task[AnatomyProtocol]):
    name: ClassVar[str] = "anatomy"
    summary: ClassVar[str] = "outliers among patch tokens: where they are, and are they artifacts?"
    protocols: Mapping[str, AnatomyProtocol] = {
        "anatomy": AnatomyProtocol(),
        "local-information": LocalInformationProtocol(),
    }

    def requests(
        self,
        architecture: Architecture,
        datasets: Mapping[Role, Dataset],
        protocol: AnatomyProtocol,
        seed: int = 0,
    ) -> dict[Role, TokenRequest]:
        if "test" not in datasets:
            raise NotApplicable("the data set has no test split")
        test = datasets["test"]
        layers, reading = layers_of(protocol, architecture.depth)
        view = view_of(protocol, architecture)
        common: dict[str, Any] = {
            "view": view,
            "precision": protocol.precision,
            "outliers": (reading, OutlierRule.parse(protocol.outliers)),
        }
        masks = masks_tell_objects(test)
        dense = ("crops" if isinstance(view, FixedSize) else "pictures") if masks else None
        every: tuple[Layer, ...] = ("embedding", *layers)
        if not isinstance(protocol, LocalInformationProtocol):
            kept = 8 * len(COLUMNS)
            return {
                "test": TokenRequest(layers=every, dense=dense, bytes_per_picture=kept, **common)
            }
        common |= {"pixels": True, "beside": (Read(reading, "token", protocol.norm),)}
        kept = 8 * len(LocalInformationEvaluation.columns)
        if "train" in datasets:
            train = TokenRequest(layers=(reading,), **common)
            test_request = TokenRequest(layers=every, dense=dense, bytes_per_picture=kept, **common)
            return {"train": train, "test": test_request}
        height, width = size_of(protocol, architecture)
        patches = (height // architecture.patch) * (width // architecture.patch)
        numbers = architecture.width + 3 * architecture.patch**2
        kept += round(protocol.held_out * 4 * patches * numbers)
        return {"test": TokenRequest(layers=every, dense=dense, bytes_per_picture=kept, **common)}

    def start(self, context: Context[AnatomyProtocol]) -> AnatomyEvaluation:
        if isinstance(context.protocol, LocalInformationProtocol):
            local: Context[Any] = context
            return LocalInformationEvaluation(local)
        return AnatomyEvaluation(context)

    def seeded(self, protocol: AnatomyProtocol) -> bool:
        return False

    def fold(self, depth: int, cutoff: float) -> PatchAnatomy:
        """The default protocol's work on every layer of a model: what ``harness bench`` times."""
        return PatchAnatomy(depth, depth - 1, cutoff, AnatomyProtocol().border)


ANATOMY = Anatomy()
