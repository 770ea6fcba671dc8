"""The result schema: what a record says, and where it belongs.

Strict JSON without NaN, one file a result; `records.py` reads and writes them. A field is added
with a default; a field that is taken away or changes its meaning raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    WithJsonSchema,
    model_validator,
)

from harness.documents import (
    NAME_LENGTH,
    NAME_PATTERN,
    canonical_json,
    check_name,
    name_problem,
)

SCHEMA_VERSION = 1


def _finite(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    canonical_json(facts)  # refuses NaN and infinity at any depth
    return facts


def _name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(f"the name cannot be used: {problem}")
    return name


Facts = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": NAME_LENGTH}),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Instant = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _is(description: str) -> Any:
    """A field that must be given, as the published schema describes it."""
    return Field(description=description)


def _may(default: Any, description: str) -> Any:
    """One that need not be: lists and mappings are empty then."""
    if callable(default):
        return Field(default_factory=default, description=description)
    return Field(default=default, description=description)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metric(_Part):
    """A score and its 95 % interval over pictures.

    The score is made of columns of the per-picture table: the mean of ``column`` times ``scale``,
    or another ``aggregate`` (``aggregates.py``) of ``column`` and ``others``.
    """

    value: FiniteFloat = _is("the score, in `unit`")
    low: FiniteFloat = _is("lower end of the interval, in `unit`; not above `high`")
    high: FiniteFloat = _is("upper end of the interval, in `unit`")
    unit: str = _is("shares are in percent: %; empty for a number without a unit")
    higher_is_better: bool = _is("which way is better")
    column: str | None = _may(
        None, "of the per-picture table: what the score is made of; null where no column is"
    )
    scale: FiniteFloat = _may(1.0, "what the mean of the column is multiplied with")
    shown: bool = _may(True, "whether tables show it unasked")
    sd: NonNegative | None = _may(
        None,
        "standard deviation over seeds, or else over draws, in `unit`, of a mean over several",
    )
    aggregate: str = _may("mean", "what is made of the columns (harness/aggregates.py)")
    others: list[str] = _may(list, "the other columns that the aggregate is made of")

    @model_validator(mode="after")
    def _interval_is_ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval runs backwards: {self.low} to {self.high}")
        return self


class ModelFacts(_Part):
    """What ran: the registry entry, and the digest of the weights with interventions included."""

    name: Name = _is("of the registry entry")
    entry: Facts = _is("the facts of the entry that decide what runs")
    entry_digest: Sha256 = _is("sha256 of `entry` as canonical JSON")
    checkpoint_sha256: Sha256 | None = _may(None, "sha256 of the file of weights, if it was named")
    weights: Literal["released", "checkpoint", "random"] = _is("where the weights come from")
    weights_digest: Digest = _is("of the weights that ran, interventions included")
    registers: NonNegativeInt = _is("how many register tokens the model has")
    interventions: list[str] = _may(list, "what was changed at test time, in words")
    text_tower: str | None = _may(None, "of a task that reads texts: what encoded them")
    text_digest: Sha256 | None = _may(None, "sha256 of what decides the text tower's vectors")


class ProtocolFacts(_Part):
    """``settings`` are the rules that ``hash`` stands for; ``resolved`` what they came to here."""

    name: Name = _is("of the protocol")
    version: str = _is("major.minor; another major version is another score")
    hash: Digest = _is("sha256 of `settings`: equal where scores compare")
    settings: Facts = _is("every rule that can move the score")
    resolved: Facts = _may(dict, "what the rules came to here: layers, mean and deviation, ...")


class DatasetFacts(_Part):
    """The pictures that were scored, and those that were read besides. Of a further test set,
    train and select are those of the data set that its head was trained on."""

    name: Name = _is("of the data set in the catalog")
    split: str = _is("the split that was scored")
    fingerprint: Digest = _is("of the pictures that were scored: ids, sizes, labels")
    fingerprints: dict[str, Digest] = _is("of the pictures of every role read: train, select, test")
    pictures: NonNegativeInt = _is("how many the whole split has, whatever a limit left of them")


class BadPictureFacts(_Part):
    """A picture that was left out (``--on-bad-image skip``)."""

    id: str = _is("of the picture, behind its data set and / where that is not the record's")
    reason: str = _is("why it could not be used")


class PerPicture(_Part):
    """The table beside the record: its file name, digest, and shape."""

    file: str = _is("<protocol>.parquet, beside the record")
    sha256: Sha256 = _is("of the file")
    rows: NonNegativeInt = _is("how many pictures it has, one a row")
    columns: list[str] = _is("their names, in their order")


class HeadFacts(_Part):
    """The trained head beside the record: its file name and digest."""

    file: str = _is("<protocol>.head.safetensors, beside the record")
    sha256: Sha256 = _is("of the file")


class TrainedOn(_Part):
    """Of a result on a further test set: the data set whose head was judged, and that head."""

    dataset: Name = _is("that the head was trained on")
    head_sha256: Sha256 = _is("of the head's file")


class Cost(_Part):
    """What the run took."""

    pictures: NonNegativeInt = _is("that were read")
    forward_passes: NonNegativeInt = _is("pictures x crops that the model computed")
    seconds: NonNegative = _is("of the passes and the probe, in s")
    images_per_second: NonNegative = _is("pictures / seconds, in 1/s")
    peak_memory_bytes: NonNegativeInt = _is("of the GPU's allocator, or of the process on a CPU")
    device: str = _is("what the model ran on")
    dtype: str = _is("precision of the forward passes: fp32, fp16, bf16")
    gigaflops: NonNegative | None = _may(
        None,
        "10^9 operations of one picture at the model's default size, as `harness describe` counts "
        "them",
    )


class Provenance(_Part):
    """Where the number came from; ``provenance.collect`` fills it."""

    harness_version: str = _is("of the harness that wrote the record")
    git_commit: str | None = _may(None, "of its checkout, where it ran from one")
    git_dirty: bool | None = _may(None, "whether that had changes that were not committed")
    python: str = _is("version of Python")
    versions: dict[str, str] = _is("of the packages that can move a number")
    seed: int = _is("--seed, the first of several seeds")
    command: list[str] | None = _may(None, "as it was typed, word by word")
    started: Instant = _is("UTC")
    ended: Instant = _is("UTC")


class Record(_Part):
    """One result.

    ``variant`` is all that sets the run apart from the named protocol on the whole split with its
    own weights (settings changed, a limit, random weights, pictures left out); it is empty for a
    run that a table may show under the protocol's name, and decides the file's name.
    """

    schema_version: Literal[1] = _may(1, "raised when a field goes or changes its meaning")
    task: Name = _is("name of the task")
    model: ModelFacts = _is("what ran")
    protocol: ProtocolFacts = _is("by which rules")
    dataset: DatasetFacts = _is("on which pictures")
    metrics: dict[str, Metric] = _is("scores by name; the first ranks")
    selected_on: str | None = _may(
        None, "the role that settings were chosen on; test is not honest, and marked in tables"
    )
    counts: dict[str, int] = _may(dict, "numbers of pictures by what became of them")
    details: Facts = _may(dict, "what else the task found")
    bad_pictures: list[BadPictureFacts] = _may(list, "pictures that were left out")
    per_picture: PerPicture | None = _may(None, "the table beside the record")
    head: HeadFacts | None = _may(None, "the trained head beside the record")
    trained_on: TrainedOn | None = _may(None, "whose head was judged, if not its own")
    cost: Cost = _is("what it took")
    provenance: Provenance = _is("where it comes from")
    limit: NonNegativeInt | None = _may(None, "only the first so many pictures were scored")
    variant: Facts = _may(
        dict,
        "what sets the run apart from the named protocol on the whole split with its own weights; "
        "its digest is in the file's name",
    )

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
