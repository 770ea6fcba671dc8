"""Norms, places and likenesses of patch tokens, layer by layer: sums over pictures in any order.

Darcet et al., "Vision Transformers Need Registers" (2023, section 2.1); massive activations as in
Sun et al., "Massive Activations in Large Language Models" (2024, section 2). Pure tensors: which
layers they are of, and which pictures, is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.backbone.layout import Tokens
from harness.features.norms import BINS, LOWEST, PER_OCTAVE

COLUMNS = (
    "outlier_share",
    "border_share",
    "outlier_neighbour_cosine",
    "normal_neighbour_cosine",
    "outliers_on_objects",
    "patches_on_objects",
    "largest_norm",
    "median_norm",
    "outlier_class_cosine",
    "normal_class_cosine",
)
"""What is known of every picture, in this order; NaN where a picture has no such patch."""

KINDS = ("normal", "outlier")
TOKENS = ("class", "registers", "patches")


class Seen(NamedTuple):
    """Of a batch: which patches are outliers ``[B, N]``, and the values of ``COLUMNS``
    ``[B, columns]`` float64 on the CPU."""

    outliers: Tensor
    rows: NDArray[np.float64]


class PatchAnatomy:
    """Sums over pictures: of ``layers`` layers, of which ``reading`` (a place among them) is where
    a patch of a norm above ``cutoff`` is an outlier. ``border`` patches from the edge are border.

    ``sums`` add up and ``peaks`` are largest values, so parts of a data set can be put together.
    """

    def __init__(self, layers: int, reading: int, cutoff: float, border: int) -> None:
        self._layers, self._reading = layers, reading
        self._cutoff, self._border = cutoff, border
        self.sums: dict[str, Tensor] = {}
        self.peaks: dict[str, Tensor] = {}
        self.grids: dict[tuple[int, int], Tensor] = {}
        """By grid, how often each place ``[2, H, W]`` was seen, and was an outlier's."""

    def add(
        self,
        layers: Sequence[Tokens],
        embedding: Tensor,
        inside: Tensor | None = None,
        on_objects: Tensor | None = None,
    ) -> Seen:
        """Tokens of every layer before the final norm, and the patch embedding ``[B, H, W, D]``.

        ``inside [B, H, W]`` says which patches count (None: all); ``on_objects [B, H, W]`` which
        are on an object, where that is known. Raises ``ValueError`` for norms that are not finite.
        """
        rows, columns = embedding.shape[1:3]
        counts = None if inside is None or bool(inside.all()) else inside.flatten(1)
        norms, cosines = self._by_layer(layers, counts)
        if not torch.isfinite(norms).all():
            raise ValueError("norms of patch tokens are not finite")
        at = norms[self._reading]
        there = torch.ones_like(at, dtype=torch.bool) if counts is None else counts
        outliers = (at > self._cutoff) & there
        kinds = torch.stack((there & ~outliers, outliers))
        self._histograms(norms, None if counts is None else there)
        weights = kinds.double()
        logs = norms.double().clamp_min(2.0**LOWEST).log2()
        self._sum("tokens", weights.sum((1, 2)))
        self._sum("log_norm", torch.einsum("lbn,kbn->lk", logs, weights))
        self._sum("norm", (norms.double() * there).sum((1, 2)))
        self._sum("norm_squared", (norms.double().square() * there).sum((1, 2)))
        if cosines is not None:
            self._sum("class_cosine", torch.einsum("lbn,kbn->lk", cosines.double(), weights))
        places = torch.stack((there, outliers)).sum(1).reshape(2, rows, columns).cpu()
        self.grids[rows, columns] = self.grids.get((rows, columns), 0) + places
        return Seen(
            outliers,
            self._rows(
                at,
                kinds,
                neighbour_cosines(embedding, inside).flatten(1),
                None if cosines is None else cosines[self._reading],
                None if on_objects is None else on_objects.flatten(1),
                border_of(rows, columns, self._border).to(at.device),
            ),
        )

    def _by_layer(
        self, layers: Sequence[Tokens], counts: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Norms ``[L, B, N]``, and cosines with the class token where there is one. What is large
        is read as seldom as can be."""
        norms, cosines, squares = [], [], []
        peaks: dict[str, list[Tensor]] = {name: [] for name in TOKENS}
        classes, registers = [], []
        for tokens in layers:
            patches = tokens.patches.flatten(1, 2).float()
            norm = torch.linalg.vector_norm(patches, dim=-1)
            norms.append(norm)
            chosen = patches if counts is None else patches[counts][None]
            if not chosen.shape[1]:
                chosen = patches.new_zeros(1, 1, patches.shape[-1])
            # One dimension at a time: torch is slow to reduce two that are not side by side.
            largest = torch.maximum(chosen.amax(1), -chosen.amin(1))
            peaks["patches"].append(largest.amax(0))
            squares.append(chosen.square().sum(1).double().sum(0))
            if tokens.cls is not None:
                cls = tokens.cls.float()
                length = torch.linalg.vector_norm(cls, dim=-1)
                along = torch.linalg.vecdot(patches, cls[:, None])
                cosines.append(along / (norm * length[:, None]).clamp_min(1e-12))
                classes.append(length.double().sum())
                peaks["class"].append(cls.abs().amax(0))
            if tokens.registers.shape[1]:
                lengths = torch.linalg.vector_norm(tokens.registers.float(), dim=-1)
                registers.append(lengths.double().sum(0))
                peaks["registers"].append(tokens.registers.float().abs().amax((0, 1)))
        self._sum("pictures", torch.tensor(len(norms[0])))
        self._sum("squares", torch.stack(squares))
        if classes:
            self._sum("class_norm", torch.stack(classes))
        if registers:
            self._sum("register_norm", torch.stack(registers))
        for name, each in peaks.items():
            if each:
                self._peak(name, torch.stack(each))
        return torch.stack(norms), torch.stack(cosines) if cosines else None

    def _histograms(self, norms: Tensor, there: Tensor | None) -> None:
        places = ((norms.double().log2() - LOWEST) * PER_OCTAVE).clamp(0, BINS - 1).long()
        places += torch.arange(self._layers, device=norms.device)[:, None, None] * BINS
        chosen = places.flatten() if there is None else places[there.expand_as(places)]
        found = torch.bincount(chosen, minlength=self._layers * BINS)
        self._sum("histogram", found.reshape(self._layers, BINS))

    def _rows(
        self,
        norms: Tensor,
        kinds: Tensor,
        neighbours: Tensor,
        cosines: Tensor | None,
        on_objects: Tensor | None,
        border: Tensor,
    ) -> NDArray[np.float64]:
        normal, outliers = kinds
        there = normal | outliers
        nothing = torch.full_like(norms, float("nan"))
        objects = nothing if on_objects is None else on_objects
        along = nothing if cosines is None else cosines
        with_neighbours = ~torch.isnan(neighbours)
        largest = torch.where(there, norms, -1).amax(1).double()
        columns = (
            _mean(outliers, there),
            _mean(border.flatten().expand_as(norms), outliers),
            _mean(neighbours, outliers & with_neighbours),
            _mean(neighbours, normal & with_neighbours),
            _mean(objects, outliers),
            _mean(objects, there),
            torch.where(largest < 0, float("nan"), largest),
            torch.where(there, norms, float("nan")).nanmedian(1).values.double(),
            _mean(along, outliers),
            _mean(along, normal),
        )
        found: NDArray[np.float64] = torch.stack(columns, dim=1).cpu().numpy()
        return found

    def _sum(self, name: str, values: Tensor) -> None:
        values = values.cpu()
        self.sums[name] = self.sums[name] + values if name in self.sums else values

    def _peak(self, name: str, values: Tensor) -> None:
        values = values.cpu()
        held = self.peaks.get(name)
        self.peaks[name] = values if held is None else torch.maximum(held, values)

    def state(self) -> Any:
        return dict(self.sums), dict(self.peaks), dict(self.grids)

    def load(self, state: Any) -> None:
        self.sums, self.peaks, self.grids = (dict(part) for part in state)

    def merge(self, other: PatchAnatomy) -> None:
        for name, values in other.sums.items():
            self._sum(name, values)
        for name, values in other.peaks.items():
            self._peak(name, values)
        for grid, places in other.grids.items():
            self.grids[grid] = self.grids.get(grid, 0) + places


def neighbour_cosines(patches: Tensor, inside: Tensor | None = None) -> Tensor:
    """Of patches ``[B, H, W, D]`` the mean cosine with their (up to four) neighbours ``[B, H, W]``,
    of those ``inside`` alone where it is given. NaN without a neighbour."""
    unit = torch.nn.functional.normalize(patches.float(), dim=-1)
    total = unit.new_zeros(unit.shape[:3])
    count = torch.zeros_like(total)
    there = torch.ones_like(total) if inside is None else inside.to(total)
    for dim in (1, 2):
        size = unit.shape[dim] - 1
        if size < 1:
            continue
        first, second = unit.narrow(dim, 0, size), unit.narrow(dim, 1, size)
        both = there.narrow(dim, 0, size) * there.narrow(dim, 1, size)
        cosines = torch.linalg.vecdot(first, second) * both
        for start in (0, 1):
            total.narrow(dim, start, size).add_(cosines)
            count.narrow(dim, start, size).add_(both)
    return total / count  # 0 / 0 is NaN


def border_of(rows: int, columns: int, width: int) -> Tensor:
    """Which patches ``[rows, columns]`` are at most ``width`` patches from the edge."""
    border = torch.ones(rows, columns, dtype=torch.bool)
    border[width : max(width, rows - width), width : max(width, columns - width)] = False
    return border


def relative_map(grids: dict[tuple[int, int], Tensor], side: int) -> NDArray[np.float64]:
    """``[2, side, side]``: how often each part of the picture was seen, and was an outlier's. A
    patch is of the part that its middle is in, whatever the grid."""
    found = np.zeros((2, side, side))
    for (rows, columns), counts in grids.items():
        down, across = (
            ((np.arange(count) + 0.5) * side / count).astype(int) for count in (rows, columns)
        )
        for total, own in zip(found, counts.numpy(), strict=True):
            np.add.at(total, (down[:, None], across[None, :]), own)
    return found


def massive_dimensions(
    peaks: dict[str, Tensor], squares: Tensor, tokens: float, multiple: float
) -> list[dict[str, list[dict[str, float]]]]:
    """By layer and kind of token, the dimensions with a value beyond ``multiple`` times the median
    magnitude, largest first: which, how large, and how many times the median.

    ``peaks[kind] [L, D]`` are largest magnitudes. The median is over dimensions, of the root mean
    square ``(squares [L, D] / tokens) ** 0.5`` of each over all patches: that adds up over
    pictures, which a median over all single values does not.
    """
    typical = (squares / tokens).sqrt().median(dim=1).values.clamp_min(1e-12)
    found = []
    for layer, usual in enumerate(typical.tolist()):
        here = {}
        for kind, largest in peaks.items():
            ratios = largest[layer].double() / usual
            chosen = torch.argsort(ratios, descending=True, stable=True)
            chosen = chosen[ratios[chosen] > multiple][:10]
            here[kind] = [
                {
                    "dimension": int(place),
                    "magnitude": float(largest[layer, place]),
                    "times_median": float(ratios[place]),
                }
                for place in chosen
            ]
        found.append(here)
    return found


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the patches of ``mask [B, N]``, ``[B]`` float64; NaN where there is none."""
    there = mask.double()
    chosen = torch.where(mask, values.double(), 0.0)
    return chosen.sum(1) / there.sum(1)
