"""What an entry may change in a frozen backbone at test time, and the neuron files that it names.

Test-time registers: Jiang et al., "Vision Transformers Don't Need Trained Registers"
(arXiv:2506.08010). Registers replaced: Parodi et al., "Zero-Ablation Overstates Register Content
Dependence in DINO Vision Transformers" (arXiv:2604.14433). Nothing here imports torch;
``backbone/interventions.py`` does what is said here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    StrictInt,
    ValidationError,
    model_validator,
)

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.registry import ModelEntry

MAX_BYTES = 4 * 1024 * 1024
"""A neuron file of ten thousand neurons is 0.3 MB."""
MOST = 64
"""Test-time registers, at most; the paper sees no gain from a second one."""

SEARCH_VERSION = 1
"""Another number whenever the defaults of the search change what ``neurons: auto`` comes to."""

Rule = Literal["shared-scalar", "per-neuron"]
Replacement = Literal["zero", "mean", "noise", "shuffle"]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TestTimeRegisters(_Facts):
    """Registers for a model that was trained without: ``count`` tokens of zeros, which take what
    the register ``neurons`` would give to patches.

    ``shared-scalar`` gives all register neurons of a layer one value, as the published code does,
    ``per-neuron`` each its own, as the paper's algorithm 2 is printed.
    """

    count: Annotated[StrictInt, Field(ge=1, le=MOST)] = 1
    rule: Rule = "shared-scalar"
    neurons: Literal["auto"] | Path | None = None
    """The neuron file; ``auto``: what a search on the run's own data set finds (role train)."""

    @property
    def file(self) -> Path | None:
        return None if self.neurons == "auto" else self.neurons

    @property
    def searched(self) -> bool:
        return self.neurons == "auto"


class ReplaceRegisters(_Facts):
    """What the trained registers hold after every block, in place of what the block gave.

    ``mean`` is their mean over the pictures of the file ``states``; ``noise`` is normal with the
    mean and standard deviation of each channel there, drawn by ``seed``; ``shuffle`` takes those of
    one of its pictures.
    """

    by: Replacement
    states: Path | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_enough(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _zero_has_no_states(self) -> Self:
        if self.by == "zero" and self.states is not None:
            raise ValueError("`by: zero` reads no `states:`")
        return self


class CurvePoint(_Facts):
    """What is left with the first ``neurons`` moved: the share of patches above the threshold, the
    largest norm of a patch and of the test-time register, each at the detect layer."""

    neurons: NonNegativeInt
    outlier_fraction: FiniteFloat
    largest_norm: FiniteFloat
    register_norm: FiniteFloat | None


class NeuronFile(_Facts):
    """Register neurons, the best first, with the weights they belong to and how they were found."""

    format: Literal[1] = 1
    model: str
    weights_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    neurons: Annotated[list[tuple[NonNegativeInt, NonNegativeInt]], Field(min_length=1)]
    """(layer, neuron) pairs: a layer of 0 is the first block; a neuron is an input of the second
    linear of its MLP."""
    scores: list[FiniteFloat]
    settings: dict[str, JsonValue]
    pictures: dict[str, JsonValue]
    curve: list[CurvePoint]

    @model_validator(mode="after")
    def _each_neuron_stands_once(self) -> Self:
        if len(set(self.neurons)) < len(self.neurons):
            raise ValueError("a neuron stands twice")
        if len(self.scores) != len(self.neurons):
            raise ValueError("as many scores as neurons are needed")
        return self


def text(found: NeuronFile) -> str:
    """What a neuron file holds, one pair a line."""
    whole = json.dumps(found.model_dump(mode="json"), indent=1, allow_nan=False)
    return re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", whole) + "\n"


def read_neurons(path: Path) -> NeuronFile:
    """Read a neuron file. Raises ``HarnessError`` naming it where it is missing or wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HarnessError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; no neuron file")
        return NeuronFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such neuron file") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise HarnessError(
            f"{path}: no neuron file: {where + ': ' if where else ''}{what}; "
            f"`harness registers find` writes them"
        ) from None


def canonical(entry: ModelEntry) -> dict[str, Any]:
    """What of an entry's changes decides what runs, as JSON: files by the sha256 of their bytes.

    Raises ``HarnessError`` for a file that cannot be read.
    """
    facts: dict[str, Any] = {}
    if (added := entry.test_time_registers) is not None:
        facts["test_time_registers"] = {
            "count": added.count,
            "rule": added.rule,
            "neurons": f"auto {SEARCH_VERSION}" if added.searched else _sha256(added.file),
        }
    if entry.drop_registers:
        facts["drop_registers"] = True
    if (replaced := entry.replace_registers) is not None:
        own: dict[str, Any] = {"by": replaced.by}
        if replaced.by != "zero":
            own["states"] = _sha256(replaced.states)
        if replaced.by == "noise":
            own["seed"] = replaced.seed
        facts["replace_registers"] = own
    return facts


def told(entry: ModelEntry) -> list[str]:
    """An entry's changes in words, for tables and records."""
    words = []
    if entry.drop_registers:
        words.append("registers dropped")
    if (replaced := entry.replace_registers) is not None:
        words.append(f"registers replaced: {replaced.by}")
    if (added := entry.test_time_registers) is not None:
        plural = "" if added.count == 1 else "s"
        how = f"{added.rule}, neurons: auto" if added.searched else added.rule
        words.append(f"{added.count} test-time register{plural} ({how})")
    return words


def check_files(entry: ModelEntry) -> None:
    """Raise ``HarnessError``, with the command that makes the file, for an entry that lacks one."""
    added, replaced = entry.test_time_registers, entry.replace_registers
    if added is not None and added.neurons is None:
        own = f"test_time_registers: {{count: {added.count}, rule: {added.rule}, neurons: FILE}}"
        raise HarnessError(_advice(entry, "register neurons", "find", own))
    if replaced is not None and replaced.by != "zero" and replaced.states is None:
        own = f"replace_registers: {{by: {replaced.by}, states: FILE}}"
        raise HarnessError(_advice(entry, "states of its registers", "states", own))
    if added is not None and added.file is not None:
        read_neurons(added.file)


def cannot_search(entry: ModelEntry, roles: Collection[str], compiled: bool) -> str | None:
    """Why the neurons of an entry that says ``neurons: auto`` cannot be found on a data set with
    those roles; None where they can, or need not. Raises ``HarnessError`` with ``compiled``."""
    added = entry.test_time_registers
    if added is None or not added.searched:
        return None
    if compiled:
        raise HarnessError(f"model {entry.name!r}: `neurons: auto` is not with --compile")
    return None if "train" in roles else "its register neurons are found on a role train"


def _advice(entry: ModelEntry, what: str, verb: str, own: str) -> str:
    suffix = "neurons.json" if verb == "find" else "states.safetensors"
    file = f"{entry.name}.{suffix}"
    entry_line = f"{entry.name}: {{like: {entry.like or '…'}, {own.replace('FILE', file)}}}"
    return (
        f"model {entry.name!r}: has no file of {what}. Make one on pictures of yours,\n"
        f"  harness registers {verb} {entry.name} --data DATASET --out {file}\n"
        f"and name it in a registry file (--models FILE):\n  {entry_line}"
    )


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
