"""What the figures of ``anatomy`` need of a record, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from harness import records
from harness.errors import HarnessError
from harness.schema import Record


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Histogram(_Part):
    """Bins from ``lowest`` on, so many from a norm to twice that norm; without norms, none."""

    lowest: Annotated[FiniteFloat, Field(gt=0)] | None
    bins_per_octave: Annotated[int, Field(ge=1, le=1024)]
    counts: Annotated[list[Annotated[int, Field(ge=0, le=2**53)]], Field(max_length=100_000)]

    @property
    def edges(self) -> NDArray[np.float64]:
        """``[bins + 1]``, empty without norms."""
        if self.lowest is None or not self.counts:
            return np.empty(0)
        octaves = np.arange(len(self.counts) + 1) / self.bins_per_octave
        found: NDArray[np.float64] = self.lowest * 2.0**octaves
        return found

    @property
    def shares(self) -> NDArray[np.float64]:
        """In percent of all patches."""
        counts = np.array(self.counts, dtype=np.float64)
        shares: NDArray[np.float64] = 100 * counts / max(1.0, counts.sum())
        return shares


class LayerFacts(_Part):
    """What the figures need of one entry of ``details.layers``."""

    layer: NonNegativeInt
    histogram: Histogram
    quantiles: dict[str, FiniteFloat]
    mean: FiniteFloat
    class_norm: FiniteFloat | None = None
    register_norms: list[FiniteFloat] = Field(default_factory=list)


class PositionFacts(_Part):
    map: Annotated[list[list[FiniteFloat | None]], Field(min_length=1)]
    patches_on_border: FiniteFloat
    outliers_on_border: FiniteFloat | None


class _Resolved(_Part):
    layer: NonNegativeInt
    outlier_cutoff: FiniteFloat | None


class AnatomyFacts(_Part):
    layers: Annotated[list[LayerFacts], Field(min_length=1)]
    positions: PositionFacts

    def at(self, layer: int) -> LayerFacts:
        """Of that layer, or of the last in the table."""
        return next((each for each in self.layers if each.layer == layer), self.layers[-1])


@dataclass(frozen=True)
class Anatomy:
    """One record, and how a figure calls it. ``layer`` and ``cutoff`` are where and from which norm
    on a patch was told to be an outlier; without a cut-off none was."""

    label: str
    model: str
    dataset: str
    protocol: str
    comparable: tuple[str, str]
    layer: int
    cutoff: float | None
    outlier_percent: float
    facts: AnatomyFacts


def read(paths: Sequence[Path]) -> list[Anatomy]:
    """The records in these files, each once. Called by model, and by data set and protocol too
    where there are several; numbered where even that is not enough (two results folders).

    Raises ``HarnessError`` for a file that is no whole record of the task anatomy.
    """
    found = [_read(path) for path in dict.fromkeys(paths)]
    told = [
        name
        for name in ("model", "dataset", "protocol")
        if name == "model" or len({getattr(each, name) for each in found}) > 1
    ]
    labels = [" · ".join(getattr(each, name) for name in told) for each in found]
    for place, label in enumerate(labels):
        if labels.count(label) > 1:
            found[place] = replace(
                found[place], label=f"{label} ({1 + labels[:place].count(label)})"
            )
        else:
            found[place] = replace(found[place], label=label)
    return found


def _read(path: Path) -> Anatomy:
    return anatomy_of(path, records.read(path))


def anatomy_of(path: Path, record: Record) -> Anatomy:
    """``record``, read from ``path``, called by its model.

    Raises ``HarnessError`` where it is not of the task anatomy, or not as that writes it."""
    if record.task != "anatomy":
        raise HarnessError(f"{path}: a record of the task {record.task}; --anatomy draws anatomy's")
    try:
        facts = AnatomyFacts.model_validate(record.details)
        resolved = _Resolved.model_validate(record.protocol.resolved)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HarnessError(f"{path}: not what anatomy writes: {where}: {first['msg']}") from None
    if len({len(row) for row in facts.positions.map}) != 1 or not facts.positions.map[0]:
        raise HarnessError(f"{path}: not what anatomy writes: positions.map: rows of one length")
    return Anatomy(
        record.model.name,
        record.model.name,
        record.dataset.name,
        path.stem,
        (record.protocol.hash, record.dataset.fingerprint),
        resolved.layer,
        resolved.outlier_cutoff,
        100 * record.counts.get("outliers", 0) / max(1, record.counts.get("patches", 0)),
        facts,
    )
