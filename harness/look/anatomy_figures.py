"""Figures of the task ``anatomy``, drawn from what its records say, and their numbers as CSV.

Figures 3 and 4 of Darcet et al., "Vision Transformers Need Registers" (2023), and where on the
picture outliers are. Nothing is run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.look.anatomy_plots import histograms, norms, positions
from harness.look.anatomy_records import Anatomy, read


def figures(paths: Sequence[Path]) -> dict[str, bytes]:
    """Three figures of all these records together, PNG and CSV, by file name.

    Raises ``HarnessError`` for a file that is no whole record of the task anatomy.
    """
    found = read(paths)
    same = len({each.comparable for each in found}) == 1
    notes = [] if same else ["not the same pictures and settings: their numbers do not compare"]
    return {
        "anatomy.histograms.png": histograms(found, notes),
        "anatomy.histograms.csv": _csv(
            ("record", "layer", "norm_from", "norm_to", "patches", "percent"), _bins(found)
        ),
        "anatomy.norms.png": norms(found, notes),
        "anatomy.norms.csv": _csv(
            ("record", "layer", "tokens", "statistic", "norm"), _statistics(found)
        ),
        "anatomy.positions.png": positions(found, notes),
        "anatomy.positions.csv": _csv(
            ("record", "row", "column", "outlier_percent"), _places(found)
        ),
    }


def _bins(found: Sequence[Anatomy]) -> Iterable[tuple[Any, ...]]:
    for each in found:
        for layer in each.facts.layers:
            histogram = layer.histogram
            edges = histogram.edges.tolist()
            for low, high, count, share in zip(
                edges[:-1], edges[1:], histogram.counts, histogram.shares.tolist(), strict=False
            ):
                yield each.label, layer.layer, low, high, count, share


def _statistics(found: Sequence[Anatomy]) -> Iterable[tuple[Any, ...]]:
    for each in found:
        for layer in each.facts.layers:
            for share, norm in layer.quantiles.items():
                yield each.label, layer.layer, "patches", f"quantile {share}", norm
            yield each.label, layer.layer, "patches", "mean", layer.mean
            if layer.class_norm is not None:
                yield each.label, layer.layer, "class token", "mean", layer.class_norm
            for number, norm in enumerate(layer.register_norms):
                yield each.label, layer.layer, f"register {number}", "mean", norm


def _places(found: Sequence[Anatomy]) -> Iterable[tuple[Any, ...]]:
    for each in found:
        for row, values in enumerate(each.facts.positions.map):
            for column, share in enumerate(values):
                yield each.label, row, column, "" if share is None else 100 * share


def _csv(head: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()
