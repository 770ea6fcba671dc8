"""models.yaml and the user's own files -> validated entries.

An entry is a name and a few facts: where the network comes from, what must be true of it, and how
it was released. Nothing here imports torch or timm; `backbone/sources.py` turns an entry into a
module.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from harness import interventions
from harness.documents import (
    Document,
    canonical_json,
    has_text,
    name_problem,
    path_problem,
    read_yaml,
    unknown,
)
from harness.interventions import ReplaceRegisters, TestTimeRegisters
from harness.language.source import TextSource

SHIPPED = Path(__file__).with_name("models.yaml")
ALLOW_CODE = "HARNESS_ALLOW_CODE"

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


Weights = Literal["released", "random"]
"""Whose weights run: the entry's own, or a draw from the seed for smoke runs."""

Text = Annotated[StrictStr, AfterValidator(has_text)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PositionEmbedding(_Facts):
    """How a release resamples its absolute position embedding to another grid (bicubic always).

    ``offset`` is added to the target grid's height and width before the scale factor is taken, as
    DINO and DINOv2 do with 0.1; 0 means that the target size itself is used.
    """

    antialias: StrictBool
    offset: Number = Field(ge=0)


class InputRule(_Facts):
    """What a picture becomes before the patch embedding, where that differs from timm's own."""

    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None


class ModelEntry(_Facts):
    """One model: a name and the facts that decide what runs, and a few that a reader wants.

    ``registers`` is how many register tokens the loaded model must turn out to have. It defaults
    to 0 and not to "whatever there is", so that register weights can never run unnoticed under an
    entry that says nothing of them (dinov2 #505). ``like`` names the entry that all facts but the
    baseline were taken over from where the file says nothing. ``text`` is the tower that was
    trained with the picture tower: it moves no token, and is no part of the digest.
    """

    name: str
    like: Text | None = None
    timm: Text | None = None
    factory: Text | None = None
    checkpoint: Path | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    registers: StrictInt = Field(default=0, ge=0)
    baseline: Text | None = None
    position_embedding: PositionEmbedding | None = None
    input: InputRule | None = None
    test_time_registers: TestTimeRegisters | None = None
    drop_registers: StrictBool = False
    replace_registers: ReplaceRegisters | None = None
    text: TextSource | None = None
    license: Text | None = None
    paper: Text | None = None
    note: Text | None = None
    # Where a factory stands that nobody has allowed to run, as ``file:line: name``. It travels with
    # the entry, to worker processes too.
    _not_allowed: str | None = PrivateAttr(default=None)

    @field_validator("factory")
    @classmethod
    def _factory_names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not _FACTORY.fullmatch(value):
            raise ValueError(f"{value!r} is not of the form package.module:function")
        return value

    @field_validator("arguments")
    @classmethod
    def _arguments_are_json(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_json(value)  # refuses NaN and infinity, which no hash could stand for
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.timm is None) == (self.factory is None):
            raise ValueError("exactly one of `timm:` and `factory:` must be given")
        return self

    @model_validator(mode="after")
    def _changes_make_sense(self) -> Self:
        if self.drop_registers and self.replace_registers:
            raise ValueError("registers are dropped or replaced, not both")
        if (self.drop_registers or self.replace_registers) and not self.registers:
            raise ValueError("has no registers to drop or to replace (`registers: 0`)")
        added = self.test_time_registers
        if added and added.searched and (self.drop_registers or self.replace_registers):
            raise ValueError("with `neurons: auto` registers cannot be dropped or replaced, too")
        return self

    @property
    def code_not_allowed(self) -> str | None:
        """Where the factory stands that may not be imported (``file:line: name``): in a registry
        file that was loaded without ``allow_code``. None for all that may be built."""
        return self._not_allowed

    @property
    def running_registers(self) -> int:
        """How many registers run, trained and test-time ones."""
        added = self.test_time_registers
        return (0 if self.drop_registers else self.registers) + (
            0 if added is None else added.count
        )

    @property
    def interventions(self) -> list[str]:
        """What is changed in the frozen backbone at test time, in words."""
        return interventions.told(self)

    def canonical(self) -> dict[str, Any]:
        """The facts that decide what runs, as JSON.

        The name, the baseline and the prose are no part of it, nor the folder that the checkpoint
        lies in: two people who run the same thing from two places get the same digest. A fact that
        is absent is left out, so that a later version can add one without moving every digest.
        """
        facts: dict[str, Any] = {"registers": self.registers}
        if self.timm is not None:
            facts["timm"] = self.timm
        if self.factory is not None:
            facts["factory"] = self.factory
        if self.checkpoint is not None:
            facts["checkpoint"] = self.checkpoint.name
        if self.arguments:
            facts["arguments"] = json.loads(canonical_json(self.arguments))
        if self.position_embedding is not None:
            facts["position_embedding"] = self.position_embedding.model_dump(mode="json")
        if self.input is not None:
            facts["input"] = self.input.model_dump(mode="json", exclude_none=True)
        return facts | interventions.canonical(self)

    def digest(self) -> str:
        """sha256, as 64 hex digits, of the canonical facts."""
        return hashlib.sha256(canonical_json(self.canonical())).hexdigest()


class Registry:
    """All models known to this run, by name. Raises ``HarnessError`` for one that is not."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}

    @classmethod
    def load(cls, files: Sequence[Path] = (), allow_code: bool = False) -> Registry:
        """The shipped models.yaml with the user's ``files`` laid over it, in order.

        An entry of a later file replaces one of the same name whole. A file that an entry names is
        relative to the file that the entry stands in. Raises ``HarnessError`` naming file and line
        for anything that is wrong in a file, and for a ``baseline:`` or ``like:`` that no file has.

        A ``factory:`` names code that would be imported and run. Those of the shipped file are
        ours; one that stands in ``files`` runs only with ``allow_code`` or HARNESS_ALLOW_CODE=1.
        Loading the registry imports none of them.
        """
        allow_code = allow_code or os.environ.get(ALLOW_CODE) == "1"
        documents: dict[str, Document] = {}
        for file in (SHIPPED, *files):
            document = read_yaml(file)
            documents |= dict.fromkeys(document.data, document)
        found: dict[str, ModelEntry] = {}
        for name in documents:
            _resolve(documents, name, found, (), allow_code)
        for name, document in documents.items():
            baseline = found[name].baseline
            if baseline is None:
                continue
            if baseline == name:
                raise document.error((name, "baseline"), "a model is not its own baseline")
            if baseline not in found:
                missing = unknown("model", baseline, found, "harness models")
                raise document.error((name, "baseline"), str(missing))
        return cls(found[name] for name in documents)

    def names(self) -> list[str]:
        """Every name, in the order of the files."""
        return list(self._entries)

    def entry(self, name: str) -> ModelEntry:
        """The entry of that name. Raises ``HarnessError`` with a suggestion where there is none."""
        if name not in self._entries:
            raise unknown("model", name, self._entries, "harness models")
        return self._entries[name]


def _resolve(
    documents: dict[str, Document],
    name: str,
    found: dict[str, ModelEntry],
    deriving: tuple[str, ...],
    allow_code: bool,
) -> ModelEntry:
    """The entry of that name, after the one that it is like; ``deriving`` are those like it."""
    if name in found:
        return found[name]
    document = documents[name]
    problem = name_problem(name)
    if problem:
        raise document.error((name,), problem)
    facts = document.data[name]
    if not isinstance(facts, dict):
        raise document.error((name,), "an entry is a mapping, such as {timm: …, registers: 4}")
    taken: dict[str, Any] = {}
    not_allowed: str | None = None
    if (like := facts.get("like")) is not None:
        if not isinstance(like, str) or like not in documents:
            missing = unknown("model", str(like), documents, "harness models")
            raise document.error((name, "like"), str(missing))
        if like in (name, *deriving):
            raise document.error((name, "like"), f"{like} is like itself, in the end")
        base = _resolve(documents, like, found, (name, *deriving), allow_code)
        not_allowed = base.code_not_allowed
        own = {"name", "like", "baseline"}
        taken = base.model_dump(exclude_unset=True, exclude=own) | {"baseline": like}
    entry = _entry(document, name, taken | facts)
    if "factory" in facts:
        trusted = allow_code or document.path == SHIPPED
        where = f"{document.path}:{document.line((name, 'factory'))}: {name}"
        not_allowed = None if trusted else where
    entry._not_allowed = None if entry.factory is None else not_allowed
    found[name] = entry
    return found[name]


def _entry(document: Document, name: str, facts: dict[str, Any]) -> ModelEntry:
    """``facts`` are those of the document and those that it takes over."""
    given = document.data[name]
    keys = [key for key in ModelEntry.model_fields if key != "name"]
    if "name" in facts:
        raise document.error((name, "name"), "unknown key (the entry's own key is its name)")
    try:
        entry = ModelEntry.model_validate({"name": name, **facts})
    except ValidationError as error:
        raise document.validation_error((name,), error, keys) from None

    def placed(path: Path) -> Path:
        if problem := path_problem(str(path)):
            raise document.error((name,), f"the path {str(path)[:100]!r} {problem}")
        return document.path.parent / path.expanduser()

    changes: dict[str, Any] = {}
    if "checkpoint" in given and entry.checkpoint is not None:
        changes["checkpoint"] = placed(entry.checkpoint)
    added, replaced = entry.test_time_registers, entry.replace_registers
    if "test_time_registers" in given and added is not None and added.file is not None:
        neurons = {"neurons": placed(added.file)}
        changes["test_time_registers"] = added.model_copy(update=neurons)
    if "replace_registers" in given and replaced is not None and replaced.states is not None:
        states = {"states": placed(replaced.states)}
        changes["replace_registers"] = replaced.model_copy(update=states)
    if "text" in given and entry.text is not None:
        changes["text"] = entry.text.placed(placed)
    return entry.model_copy(update=changes) if changes else entry
