"""The result schema: what a record says, and where it belongs.

Strict JSON without NaN, one file a result; `records.py` reads and writes them. A field is added
with a default; a field that is taken away or changes its meaning raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    model_validator,
)

from harness.documents import canonical_json, check_name

SCHEMA_VERSION = 1


def _finite(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    canonical_json(facts)  # refuses NaN and infinity at any depth
    return facts


Facts = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Instant = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metric(_Part):
    """A score and its 95 % interval over pictures. Shares are in percent (``unit: "%"``).

    ``column`` of the per-picture table has the values that the score is the mean of, times
    ``scale``; None where no column has (or in a record older than this field). With another
    ``aggregate`` (``aggregates.py``) the score is made of ``column`` and ``others``. ``sd`` is the
    standard deviation over seeds, or else over draws, where the score is a mean over several.
    """

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    unit: str
    higher_is_better: bool
    column: str | None = None
    scale: FiniteFloat = 1.0
    shown: bool = True
    sd: NonNegative | None = None
    aggregate: str = "mean"
    others: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _interval_is_ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval runs backwards: {self.low} to {self.high}")
        return self


class ModelFacts(_Part):
    """What ran: the registry entry, and the digest of the weights with interventions included."""

    name: str
    entry: Facts
    entry_digest: Sha256
    checkpoint_sha256: Sha256 | None = None
    weights: Literal["released", "checkpoint", "random"]
    weights_digest: Digest
    registers: NonNegativeInt
    interventions: list[str] = Field(default_factory=list)


class ProtocolFacts(_Part):
    """``settings`` are the rules that ``hash`` stands for; ``resolved`` what they came to here."""

    name: str
    version: str
    hash: Digest
    settings: Facts
    resolved: Facts = Field(default_factory=dict)


class DatasetFacts(_Part):
    """``fingerprint`` is of the pictures that were scored; ``fingerprints`` of those of every role
    that was read (train, select, test); of a further test set, train and select are those of the
    data set that its head was trained on. ``pictures`` is how many the whole split has, whatever
    a limit left of them."""

    name: str
    split: str
    fingerprint: Digest
    fingerprints: dict[str, Digest]
    pictures: NonNegativeInt


class BadPictureFacts(_Part):
    id: str
    reason: str


class PerPicture(_Part):
    """The table beside the record: its file name, digest, and shape."""

    file: str
    sha256: Sha256
    rows: NonNegativeInt
    columns: list[str]


class HeadFacts(_Part):
    """The trained head beside the record: its file name and digest."""

    file: str
    sha256: Sha256


class TrainedOn(_Part):
    """Of a result on a further test set: the data set whose head was judged, and that head."""

    dataset: str
    head_sha256: Sha256


class Cost(_Part):
    """What the run took. ``forward_passes`` is pictures x crops; memory is in bytes. ``gigaflops``
    are 10^9 operations of one picture at the model's default size, as ``harness describe`` counts
    them; None in a record older than this field."""

    pictures: NonNegativeInt
    forward_passes: NonNegativeInt
    seconds: NonNegative
    images_per_second: NonNegative
    peak_memory_bytes: NonNegativeInt
    device: str
    dtype: str
    gigaflops: NonNegative | None = None


class Provenance(_Part):
    """Where the number came from; ``provenance.collect`` fills it. Times are UTC."""

    harness_version: str
    git_commit: str | None = None
    git_dirty: bool | None = None
    python: str
    versions: dict[str, str]
    seed: int
    command: list[str] | None = None
    started: Instant
    ended: Instant


class Record(_Part):
    """One result.

    ``variant`` is all that sets the run apart from the named protocol on the whole split with its
    own weights (settings changed, a limit, random weights, pictures left out); it is empty for a
    run that a table may show under the protocol's name, and decides the file's name.
    """

    schema_version: Literal[1] = 1
    task: str
    model: ModelFacts
    protocol: ProtocolFacts
    dataset: DatasetFacts
    metrics: dict[str, Metric]
    selected_on: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    details: Facts = Field(default_factory=dict)
    bad_pictures: list[BadPictureFacts] = Field(default_factory=list)
    per_picture: PerPicture | None = None
    head: HeadFacts | None = None
    trained_on: TrainedOn | None = None
    cost: Cost
    provenance: Provenance
    limit: NonNegativeInt | None = None
    variant: Facts = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_partial_run_has_a_variant(self) -> Self:
        partial = self.limit is not None or self.model.weights == "random" or self.bad_pictures
        if partial and not self.variant:
            raise ValueError("a limit, random weights or bad pictures must be named in `variant`")
        return self

    @property
    def complete(self) -> bool:
        """Whether this is the named protocol on the whole split with real weights."""
        return not self.variant


def record_path(
    out: Path,
    dataset: str,
    task: str,
    model: str,
    protocol: str,
    variant: Mapping[str, object] | None = None,
) -> Path:
    """``OUT/<dataset>/<task>/<model>/<protocol>.json``, or ``<protocol>~<8 hex>.json``.

    The eight digits are a hash of ``variant`` (see ``Record``), so nothing overwrites what it is
    not. Raises ``HarnessError`` for a name that cannot be part of a file name.
    """
    check_name("data set", dataset)
    check_name("task", task)
    check_name("model", model)
    stem = check_name("protocol", protocol)
    if variant:
        stem += "~" + hashlib.sha256(canonical_json(dict(variant))).hexdigest()[:8]
    return out / dataset / task / model / f"{stem}.json"


def pictures_folder(record: Path) -> Path:
    """Where pictures of a record's predictions lie, if there are any: beside it."""
    return record.with_suffix(".pictures")
