"""The gate: how much worse a score may be, and what fails besides. A strict YAML file.

A user's file is laid over the shipped one: its tolerances come after the shipped ones, and the
last that fits a cell counts; of everything else it replaces what it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.documents import read_yaml
from harness.errors import HarnessError
from harness.registry import Positive, Text

SHIPPED = Path(__file__).with_name("gate.yaml")

Action = Literal["fail", "warn", "ignore"]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


def _listed(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("a name, or a list of names such as [one, two], is needed")
    return tuple(value)


Names = Annotated[tuple[Text, ...], BeforeValidator(_listed)]


class Place(Protocol):
    """What a rule asks of a cell. ``protocol`` is the protocol's name, without what was changed."""

    dataset: str
    task: str
    protocol_name: str
    model: str
    metric: str
    unit: str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(_Part):
    """Which cells a rule is for: those that fit every condition; without any, all."""

    dataset: Names | None = None
    task: Names | None = None
    protocol: Names | None = None
    model: Names | None = None
    metric: Names | None = None
    unit: Annotated[tuple[str, ...], BeforeValidator(_listed)] | None = None

    def fits(self, cell: Place) -> bool:
        asked = (self.dataset, self.task, self.protocol, self.model, self.metric, self.unit)
        its = (cell.dataset, cell.task, cell.protocol_name, cell.model, cell.metric, cell.unit)
        return all(names is None or one in names for names, one in zip(asked, its, strict=True))


class Tolerance(Where):
    """How much worse a score may be: in the metric's own unit, or as a share of the baseline's."""

    absolute: NotNegative | None = None
    relative: NotNegative | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("a tolerance is either absolute (in the metric's unit) or relative")
        return self

    def of(self, score: float) -> float:
        if self.absolute is not None:
            return self.absolute
        assert self.relative is not None
        return self.relative * abs(score)


class Ignored(Where):
    """Cells that are shown and decide nothing."""

    reason: Text

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.model_fields_set - {"reason"}:
            raise ValueError("name what to ignore: dataset, task, protocol, model, metric or unit")
        return self


class Speed(_Part):
    """The least share of the baseline's images a second."""

    ratio: Positive


class States(_Part):
    """What happens besides a score that got worse. None: as in the file below this one."""

    missing: Action | None = None
    new: Action | None = None
    incomparable: Action | None = None
    damaged: Action | None = None
    fewer_pictures: Action | None = None
    few_pictures: Action | None = None
    untested: Action | None = None


class _File(_Part):
    level: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    tolerance: tuple[Tolerance, ...] = ()
    states: States = States()
    ignore: tuple[Ignored, ...] = ()
    speed: Speed | None = None


_Rule = TypeVar("_Rule", Tolerance, Ignored)


@dataclass(frozen=True)
class Rule(Generic[_Rule]):
    """A rule and where it stands (``gate.yaml:12``); ``own``: in the user's file."""

    rule: _Rule
    place: str
    own: bool


@dataclass(frozen=True)
class Gate:
    """All rules of a run of the gate."""

    level: float
    tolerance: Sequence[Rule[Tolerance]]
    ignore: Sequence[Rule[Ignored]]
    states: States
    speed: float | None = None

    @classmethod
    def load(cls, file: Path | None = None, speed: float | None = None) -> Gate:
        """The shipped gate with ``file`` laid over it. Raises ``HarnessError`` naming file, line
        and key for whatever is wrong in it."""
        gate = cls(level=0.05, tolerance=(), ignore=(), states=States())
        for each in (SHIPPED, *([] if file is None else [file])):
            gate = gate._below(each)
        if speed is not None:
            if not 0 < speed < float("inf"):
                raise HarnessError(f"--speed {speed:g}: a share above 0 is needed, such as 0.8")
            gate = replace(gate, speed=speed)
        return gate

    def _below(self, path: Path) -> Gate:
        document = read_yaml(path)
        known = {*_File.model_fields, *Tolerance.model_fields, *Ignored.model_fields}
        known |= {*States.model_fields, *Speed.model_fields}
        try:
            file = _File.model_validate(document.data)
        except ValidationError as error:
            raise document.validation_error((), error, known) from None
        own = path != SHIPPED

        def place(key: str, number: int) -> str:
            return f"{path}:{document.line((key, number))}"

        return Gate(
            level=self.level if file.level is None else file.level,
            tolerance=(
                *self.tolerance,
                *(Rule(r, place("tolerance", n), own) for n, r in enumerate(file.tolerance)),
            ),
            ignore=(
                *self.ignore,
                *(Rule(r, place("ignore", n), own) for n, r in enumerate(file.ignore)),
            ),
            states=self.states.model_copy(
                update={key: v for key, v in file.states if v is not None}
            ),
            speed=self.speed if file.speed is None else file.speed.ratio,
        )

    def tolerated(self, cell: Place, score: float) -> float:
        """How much worse than the baseline's ``score`` a cell may be."""
        rules = [each.rule for each in self.tolerance if each.rule.fits(cell)]
        return rules[-1].of(score) if rules else 0.0

    def ignored(self, cell: Place) -> str | None:
        """Why a cell decides nothing; None where it does."""
        reasons = (each.rule.reason for each in self.ignore if each.rule.fits(cell))
        return next(reasons, None)

    def action(self, state: str) -> Action:
        """What a state of ``States`` leads to."""
        found: Action | None = getattr(self.states, state)
        return found or "ignore"

    def idle(self, cells: Sequence[Place]) -> list[str]:
        """The user's rules that fit no cell: a name is misspelt, or it is no longer needed."""
        rules: list[Rule[Tolerance] | Rule[Ignored]] = [*self.tolerance, *self.ignore]
        return [
            f"{each.place}: this rule fits none of the cells"
            for each in rules
            if each.own and not any(each.rule.fits(cell) for cell in cells)
        ]
