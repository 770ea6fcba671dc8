"""Histograms of patch norms, a model beside its baseline, from records of ``anatomy``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import HarnessError
from harness.look.anatomy_records import Anatomy, anatomy_of
from harness.report.outliers import FOOT, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from harness.report.scales import Scale, logarithmic
from harness.tables.rows import FLOORS, Result, protocol_words

MOST = 24
"""Plots on a page."""


@dataclass(frozen=True)
class Curve:
    """The histogram of a model as an SVG path; ``cutoff`` is the place of the norm from which on a
    patch was told to be an outlier."""

    model: str
    registers: int
    path: str
    cutoff: float | None
    told: str
    record: int


@dataclass(frozen=True)
class Plot:
    dataset: str
    words: list[str]
    across: Scale
    down: Scale
    curves: list[Curve]

    @property
    def models(self) -> list[str]:
        return [each.model for each in self.curves]


def plots(
    results: Sequence[Result],
    couples: Sequence[tuple[str, str]],
    places: Mapping[Path, int],
    tell: Callable[[str], None],
) -> tuple[list[Plot], int]:
    """A plot for each of ``couples`` (baseline, model) and each other model but floors, by data set
    and protocol, and how many more there would be. A record that is not as anatomy writes it is
    told."""
    alike: dict[tuple[str, str, bytes], dict[str, tuple[Result, Anatomy]]] = {}
    for each in results:
        if each.record.task != "anatomy" or each.model in FLOORS:
            continue
        try:
            anatomy = anatomy_of(each.path, each.record)
        except HarnessError as error:
            tell(f"no histogram: {error}")
            continue
        key = each.record.dataset.name, anatomy.protocol, each.comparable
        alike.setdefault(key, {})[each.model] = each, anatomy
    found = []
    for key in sorted(alike):
        there = alike[key]
        groups = [pair for pair in couples if all(name in there for name in pair)]
        beside = {name for pair in groups for name in pair}
        alone = [(name,) for name in there if name not in beside]
        for names in [*groups, *alone]:
            if (plot := _plot([there[name] for name in names], places)) is not None:
                found.append(plot)
    return found[:MOST], max(0, len(found) - MOST)


def _plot(those: Sequence[tuple[Result, Anatomy]], places: Mapping[Path, int]) -> Plot | None:
    layers = [anatomy.facts.at(anatomy.layer) for _, anatomy in those]
    edges = [each.histogram.edges for each in layers]
    drawn = [each for each in edges if len(each)]
    shares = np.concatenate([layer.histogram.shares for layer in layers])
    if not drawn or not shares.any():
        return None
    across = logarithmic(
        float(min(each[0] for each in drawn)),
        float(max(each[-1] for each in drawn)),
        LEFT,
        WIDTH - RIGHT,
    )
    down = logarithmic(float(shares[shares > 0].min()) / 2, 100.0, HEIGHT - FOOT, TOP)
    if across is None or down is None:
        return None
    curves = []
    for (result, anatomy), layer, bins in zip(those, layers, edges, strict=True):
        cut = anatomy.cutoff
        curves.append(
            Curve(
                anatomy.model,
                result.record.model.registers,
                _stairs(across, down, bins.tolist(), layer.histogram.shares.tolist()),
                None if cut is None or not across.low <= cut <= across.high else across.at(cut),
                f"layer {layer.layer}, {anatomy.outlier_percent:.2g} % outliers"
                + ("" if cut is None else f" (norm above {cut:.3g})"),
                places[result.path],
            )
        )
    record = those[0][0].record
    return Plot(record.dataset.name, protocol_words(record), across, down, curves)


def _stairs(across: Scale, down: Scale, edges: Sequence[float], shares: Sequence[float]) -> str:
    """Bins without patches are gaps."""
    steps = []
    joined = False
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        if share > 0:
            start = "L" if joined else "M"
            steps.append(f"{start}{across.at(left):g} {down.at(share):g}H{across.at(right):g}")
        joined = share > 0
    return "".join(steps)
