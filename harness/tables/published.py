"""Published numbers, to stand beside measured ones: ``published/*.yaml``, one file a source.

A number is matched by task, protocol name and major version, settings where the source's differ
from the protocol's, data set and role; never by the look of it. ``target``: the same weights are
public, and a faithful run should come near. ``reference line``: the weights were never released,
or the source leaves something open that moves the number, so that a difference says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from harness.documents import read_yaml
from harness.schema import Record

FOLDER = Path(__file__).with_name("published")

Kind = Literal["reference line", "target"]
Names = Annotated[list[str], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PublishedModel(_Part):
    """A row of a published table. ``model`` is the registry's name where it is one of its models;
    else ``label`` says in words what ran. ``values`` are by data set, in the metric's unit;
    ``spread`` is what the source gives behind ± (its table's note says of what)."""

    model: str | None = None
    label: str | None = None
    values: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    spread: dict[str, FiniteFloat] = Field(default_factory=dict)


class PublishedTable(_Part):
    """Numbers of one table of a source that one protocol, in its settings, is held against."""

    where: str
    kind: Kind
    note: str | None = None
    task: str
    protocols: Names
    version: int
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    role: Literal["test"] = "test"
    metrics: Names
    unit: str
    rows: Annotated[list[PublishedModel], Field(min_length=1)]


class Source(_Part):
    """A file: what was published where, and how it was read."""

    source: str
    short: str
    read: str
    tables: Annotated[list[PublishedTable], Field(min_length=1)]


@dataclass(frozen=True)
class Published:
    """A published number that a record's metric may be held against."""

    metric: str
    model: str | None
    label: str
    value: float
    spread: float | None
    unit: str
    kind: Kind
    source: str
    where: str
    note: str | None


@cache
def sources() -> Mapping[str, Source]:
    """Every source by the name of its file. Raises ``HarnessError`` naming file and line."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        document = read_yaml(path)
        try:
            found[path.stem] = Source.model_validate(document.data)
        except ValidationError as error:
            raise document.validation_error((), error) from None
    return found


def published(record: Record) -> list[Published]:
    """The numbers that were published for the protocol and the pictures of this record, of any
    model. None where only some of the pictures were scored, or by a head of another data set."""
    if record.limit is not None or record.bad_pictures:
        return []
    return [
        Published(
            metric=metric,
            model=row.model,
            label=row.label or row.model or "",
            value=row.values[record.dataset.name],
            spread=row.spread.get(record.dataset.name),
            unit=table.unit,
            kind=table.kind,
            source=source.short,
            where=table.where,
            note=table.note,
        )
        for source in sources().values()
        for table in source.tables
        if _is_of(table, record)
        for row in table.rows
        if record.dataset.name in row.values
        for metric in table.metrics
        if metric in record.metrics
    ]


def _is_of(table: PublishedTable, record: Record) -> bool:
    """The record's own changes of settings must be those of the table, all of them."""
    major = record.protocol.version.partition(".")[0]
    changed: Any = record.variant.get("set", {})
    return (
        table.task == record.task
        and record.protocol.name in table.protocols
        and major == str(table.version)
        and table.settings == dict(changed)
    )
