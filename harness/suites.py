"""suites.yaml and the user's own files -> named lists of runs.

A suite says which tasks run on which data sets under which protocols, so that one name stands for
an evaluation that would else be several commands. Nothing here imports torch: names are looked up
in the registry, the catalog and the tasks only when a suite is to be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from harness.documents import Document, KeyPath, canonical_json, name_problem, read_yaml, unknown
from harness.errors import HarnessError
from harness.registry import Text

if TYPE_CHECKING:
    from harness.data.catalog import Catalog
    from harness.options import Options
    from harness.registry import Registry

SHIPPED = Path(__file__).with_name("suites.yaml")


def _listed(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError("a list is needed, such as [one, two]")
    return value


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"{name!r} stands twice")
    return names


Names = Annotated[tuple[Text, ...], BeforeValidator(_listed), AfterValidator(_distinct)]


class SuiteRun(BaseModel):
    """One ``harness run`` of a suite. No models: the suite's; no data sets: each task's own; no
    protocols: its first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: Names = Field(min_length=1)
    models: Names = ()
    datasets: Names = ()
    protocols: Names = ()
    settings: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _settings_are_json(self) -> Self:
        canonical_json(self.settings)  # refuses NaN and infinity
        return self

    def __str__(self) -> str:
        """``lost on voc07, voc12 (lost-swept; k=50)``."""
        chosen = [f"models {', '.join(self.models)}"] if self.models else []
        chosen += [", ".join(self.protocols)] if self.protocols else []
        chosen += [f"{setting}={value}" for setting, value in self.settings.items()]
        text = ", ".join(self.tasks)
        text += f" on {', '.join(self.datasets)}" if self.datasets else ""
        return text + (f" ({'; '.join(chosen)})" if chosen else "")


class Suite(BaseModel):
    """A named list of runs, and the models it is for unless others are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    note: Text | None = None
    models: Names = ()
    runs: Annotated[tuple[SuiteRun, ...], BeforeValidator(_listed)] = Field(min_length=1)


class Suites:
    """All suites known to this run, by name."""

    def __init__(self, found: Mapping[str, tuple[Document, Suite]]) -> None:
        self._found = dict(found)

    @classmethod
    def load(cls, files: Sequence[Path] = ()) -> Suites:
        """The shipped suites.yaml with the user's ``files`` laid over it, in order.

        A suite of a later file replaces one of the same name whole. Raises ``HarnessError`` naming
        file and line for anything that is wrong in a file's form.
        """
        found: dict[str, tuple[Document, Suite]] = {}
        for file in (SHIPPED, *files):
            document = read_yaml(file)
            for name in document.data:
                found[name] = (document, _suite(document, name))
        return cls(found)

    def names(self) -> list[str]:
        """Every name, in the order of the files."""
        return list(self._found)

    def suite(self, name: str) -> Suite:
        """The suite of that name. Raises ``HarnessError`` with a suggestion where there is none."""
        if name not in self._found:
            raise unknown("suite", name, self._found, "harness suites")
        return self._found[name][1]

    def check(self, name: str, registry: Registry, catalog: Catalog) -> None:
        """Look up every name and setting of a suite.

        Raises ``HarnessError`` that points at the first one that is unknown, with a suggestion.
        """
        from harness.task_names import find_task

        suite, document = self.suite(name), self._found[name][0]

        def each(names: Iterable[str], keys: KeyPath, look_up: Callable[[str], object]) -> None:
            for index, one in enumerate(names):
                try:
                    look_up(one)
                except HarnessError as error:
                    raise document.error((name, *keys, index), str(error)) from None

        each(suite.models, ("models",), registry.entry)
        for number, run in enumerate(suite.runs):
            each(run.models, ("runs", number, "models"), registry.entry)
            each(run.tasks, ("runs", number, "tasks"), find_task)
            each(run.datasets, ("runs", number, "datasets"), catalog.entry)
            try:
                _check_protocols(run)
            except HarnessError as error:
                raise document.error((name, "runs", number), str(error)) from None

    def options(
        self,
        names: Sequence[str],
        models: Sequence[str],
        datasets: Sequence[str],
        common: Mapping[str, Any],
    ) -> list[Options]:
        """The runs of these suites, in order.

        ``models`` and ``datasets`` replace each suite's own where any is named; ``common`` are the
        fields of ``harness.options.Options`` that all runs share. Raises ``HarnessError`` for an
        unknown suite, one that names no models where none are given, and an unknown name in one.
        """
        from harness.data.catalog import Catalog
        from harness.options import Options
        from harness.registry import Registry

        registry = Registry.load(common.get("model_files", ()))
        catalog = Catalog.load(common.get("dataset_files", ()), common.get("data_root"))
        runs = []
        for name in names:
            suite = self.suite(name)
            if not models and not suite.models and not all(run.models for run in suite.runs):
                raise HarnessError(f"suite {name!r} is for any model: name some with --model")
            self.check(name, registry, catalog)
            for run in suite.runs:
                facts: dict[str, Any] = dict(run)
                facts["models"] = models or run.models or suite.models
                facts["datasets"] = datasets or run.datasets
                runs.append(Options(**facts, **common))
        return runs


def _check_protocols(run: SuiteRun) -> None:
    from harness.plan import protocols_of
    from harness.task_names import find_task

    tasks = [find_task(name) for name in run.tasks]
    for task in tasks:
        protocols_of(task, tasks, run.protocols, run.settings)


def _suite(document: Document, name: str) -> Suite:
    problem = name_problem(name)
    if problem:
        raise document.error((name,), problem)
    facts = document.data[name]
    if not isinstance(facts, dict):
        raise document.error((name,), "a suite is a mapping, such as {runs: [{tasks: [lost]}]}")
    if "name" in facts:
        raise document.error((name, "name"), "unknown key (the suite's own key is its name)")
    known = [*Suite.model_fields, *SuiteRun.model_fields]
    try:
        return Suite.model_validate({"name": name, **facts})
    except ValidationError as error:
        raise document.validation_error((name,), error, known) from None
