"""What sums over patch tokens tell, layer by layer and place by place, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.features.norms import BINS, bimodality, edge, quantile, trimmed
from harness.features.outliers import OutlierRule
from harness.probes.patch_anatomy import (
    KINDS,
    TOKENS,
    PatchAnatomy,
    border_of,
    massive_dimensions,
    relative_map,
)

MAP_SIDE = 16
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.98, 0.99, 0.999)


def layers_table(
    seen: PatchAnatomy, layers: Sequence[int], rule: OutlierRule, massive: float
) -> list[dict[str, Any]]:
    """One entry a layer.

    ``outlier_share`` is that of the layer's own norms under the rule, with the cut-off at the next
    edge of a bin; ``norms`` and ``class_cosine`` are of the patches that are outliers at the layer
    where they are told, and of the others.
    """
    sums = {name: values.double().numpy() for name, values in seen.sums.items()}
    tokens = sums["tokens"]
    every = tokens.sum()
    mean = sums["norm"] / every
    sd = np.sqrt(np.maximum(sums["norm_squared"] / every - mean**2, 0))
    ratio = ratios(seen)
    peaks = {name: seen.peaks[name] for name in TOKENS if name in seen.peaks}
    dimensions = massive_dimensions(peaks, seen.sums["squares"], float(every), massive)
    table = []
    for place, layer in enumerate(layers):
        counts = seen.sums["histogram"][place].numpy()
        begins = rule.edge_in(counts, float(mean[place]), float(sd[place]))
        entry: dict[str, Any] = {
            "layer": layer,
            "histogram": trimmed(counts),
            "quantiles": {str(share): quantile(counts, share) for share in QUANTILES},
            "mean": float(mean[place]),
            "sd": float(sd[place]),
            "bimodality": bimodality(counts),
            "cutoff": float(edge(begins)) if begins < BINS else None,
            "outlier_share": 100 * float(counts[begins:].sum() / every),
            "norms": {
                kind: finite(2.0 ** (sums["log_norm"][place, k] / tokens[k])) if tokens[k] else None
                for k, kind in enumerate(KINDS)
            },
            "outlier_times_normal": ratio[place],
            "massive_dimensions": dimensions[place],
        }
        if "class_norm" in sums:
            entry["class_norm"] = float(sums["class_norm"][place] / sums["pictures"])
            entry["class_cosine"] = {
                kind: float(sums["class_cosine"][place, k] / tokens[k]) if tokens[k] else None
                for k, kind in enumerate(KINDS)
            }
        if "register_norm" in sums:
            entry["register_norms"] = (sums["register_norm"][place] / sums["pictures"]).tolist()
        table.append(entry)
    return table


def ratios(seen: PatchAnatomy) -> list[float | None]:
    """By layer, how many times the norm of other patches that of outliers is (geometric means);
    None without outliers, or without others."""
    tokens = seen.sums["tokens"].tolist()
    if not all(tokens):
        return [None] * len(seen.sums["log_norm"])
    means = seen.sums["log_norm"] / seen.sums["tokens"]
    return [float(2.0**apart) for apart in (means[:, 1] - means[:, 0]).tolist()]


def separates_at(
    ratio: Sequence[float | None], layers: Sequence[int], reading: int, least: float
) -> int | None:
    """The first layer from which on, up to the one where outliers are told (``reading``, a place
    among ``layers``), they have ``least`` times the norm of others. None where not even there."""
    found = None
    for place in range(reading, -1, -1):
        value = ratio[place]
        if value is None or value < least:
            break
        found = layers[place]
    return found


def positions_table(seen: PatchAnatomy, border: int) -> dict[str, Any]:
    """Where outliers are: the share of patches that are outliers in every part of a relative grid
    (None where no patch was), and patch by patch where all pictures have one grid."""
    patches, outliers = relative_map(seen.grids, MAP_SIDE)
    on_border = np.zeros(2)
    for (rows, columns), counts in seen.grids.items():
        on_border += counts[:, border_of(rows, columns, border)].sum(1).numpy()
    total = patches.sum(), outliers.sum()
    table: dict[str, Any] = {
        "map": [
            [float(o / p) if p else None for o, p in zip(*row, strict=True)]
            for row in zip(outliers, patches, strict=True)
        ],
        "patches_on_border": 100 * float(on_border[0] / total[0]),
        "outliers_on_border": 100 * float(on_border[1] / total[1]) if total[1] else None,
    }
    if len(seen.grids) == 1:
        ((_, counts),) = seen.grids.items()
        table["outliers_by_patch"] = counts[1].tolist()
    return table


def finite(value: float) -> float | None:
    """None, which JSON can hold, for what is no number."""
    return float(value) if math.isfinite(value) else None
