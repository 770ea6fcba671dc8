"""Which tokens a dense head is given, and how they are got from a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.vit import Read
from harness.data.views import View
from harness.dense.protocol import Layers
from harness.errors import HarnessError
from harness.features.select import Selector, applicable, patch_grid, row_bytes
from harness.layers import resolve_layers
from harness.probes.dense_head import side_by_side
from harness.task import Batch, NotApplicable


class Reading(NamedTuple):
    """Patches of ``layers``, and behind those of each its class token if ``class_token``."""

    layers: tuple[int, ...]
    norm: bool
    class_token: bool
    patch: int
    width: int
    half: bool = True

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        layers: Layers,
        norm: bool,
        class_token: bool = False,
        half: bool = True,
    ) -> Reading:
        """Raises ``NotApplicable`` where the model has no such layer or token."""
        found = tuple(i for i in resolve_layers(layers, architecture.depth) if isinstance(i, int))
        if not found:
            raise NotApplicable("no layer is named")
        if class_token and not architecture.layout.classes:
            raise NotApplicable("the model has no class token (--set class_token=false)")
        width = architecture.width * len(found) * (1 + class_token)
        reading = cls(found, norm, class_token, architecture.patch, width, half)
        for selector in reading.selectors:
            applicable(selector, architecture)
        return reading

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """What the feature store is asked for."""
        patches = [Selector("patches", each, self.norm, half=self.half) for each in self.layers]
        classes = [Selector("cls", each, self.norm) for each in self.layers]
        return (*patches, *classes) if self.class_token else tuple(patches)

    def bytes_per_picture(self, architecture: Architecture, view: View) -> int:
        """Of the selected tokens."""
        return sum(row_bytes(each, architecture, view) for each in self.selectors)

    def kept(self, batch: Batch) -> list[Tensor]:
        """Of a batch with selected tokens: patches ``[B, H, W, D]`` of every layer, and behind them
        class tokens ``[B, D]`` if any, as they were stored."""
        count, padded = len(self.layers), batch.geometry[0].padded
        values = [batch.selected[each].values for each in self.selectors]
        return [patch_grid(each, padded, self.patch) for each in values[:count]] + values[count:]

    def joined(self, kept: list[Tensor], dataset: str) -> Tensor:
        """What ``kept`` gives -> what a head is given, ``[B, H, W, width]`` float32.

        Raises ``HarnessError`` where a number is not finite.
        """
        count = len(self.layers)
        patches = [each.float() for each in kept[:count]]
        classes = [each.float() for each in kept[count:]] if self.class_token else None
        tokens = side_by_side(patches, classes)
        if not bool(torch.isfinite(tokens).all()):
            raise HarnessError(
                f"data set {dataset!r}: a patch token is not finite (half precision, or broken "
                "weights?); --set precision=fp32 may help"
            )
        return tokens

    def of_batch(self, batch: Batch, dataset: str, rows: slice = slice(None)) -> Tensor:
        """Some rows of a batch, read or selected, as a head is given them."""
        if batch.selected and self.selectors[0] in batch.selected:
            return self.joined([each[rows] for each in self.kept(batch)], dataset)
        found = [batch.tokens[Read(layer, "token", self.norm)] for layer in self.layers]
        classes = [each.cls[rows] for each in found if self.class_token and each.cls is not None]
        return self.joined([*(each.patches[rows] for each in found), *classes], dataset)
