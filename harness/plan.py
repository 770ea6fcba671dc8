"""What a run would do: its cells, what is done already, what it costs. Loads no weights.

A cell is one (model, data set, task, protocol): one record.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import records
from harness.data.catalog import Catalog
from harness.data.coverage import crops_in
from harness.data.dataset import Dataset, First, Role
from harness.data.joint import look
from harness.documents import unknown
from harness.errors import BadPicture, HarnessError
from harness.interventions import cannot_search
from harness.language.source import cannot_read, text_digest
from harness.options import Options
from harness.registry import ModelEntry, Registry
from harness.roles import played
from harness.schema import Record
from harness.task import NotApplicable, Protocol, Task, TokenRequest
from harness.task_names import find_task

if TYPE_CHECKING:
    from harness.features.keys import Source


@dataclass(frozen=True)
class OpenedDataset:
    """A data set with its splits by role, and the fingerprint of each. ``whole`` counts pictures
    before any limit; ``warnings`` tell where it is not what its entry promises."""

    name: str
    roles: Mapping[Role, Dataset]
    fingerprints: Mapping[Role, str]
    whole: Mapping[Role, int]
    warnings: tuple[str, ...] = ()


class Repeat(NamedTuple):
    """One of the seeds that a cell is run with, and what is read then."""

    seed: int
    requests: Mapping[Role, TokenRequest]


class Reading(NamedTuple):
    """What one repeat reads of one role. Those with one ``key`` are one pass: where they are of one
    cell, the later ones are read from the feature store."""

    key: Hashable
    role: Role
    request: TokenRequest
    seed: int


@dataclass
class Cell:
    """One record to be: everything that decides it. ``done`` is the record that is there already,
    ``reason`` why the task makes no sense here. ``stored``: what is read goes to the feature store,
    and comes from it in later ``repeats``."""

    task: Task[Any]
    protocol: Protocol
    entry: ModelEntry
    dataset: OpenedDataset
    variant: dict[str, Any]
    path: Path
    repeats: Sequence[Repeat] = ()
    stored: bool = True
    reason: str | None = None
    done: Record | None = None
    damaged: bool = False
    checkpoint_sha256: str | None = None
    weights_digest: str | None = None  # where the plan knows it
    weights_from: str = "released"
    block: int | None = None  # where its vectors are streamed: ``Context.block``
    base: Cell | None = None
    """Of a further test set: the cell that trains the head."""

    @property
    def requests(self) -> Mapping[Role, TokenRequest]:
        """What the first repeat reads: the others differ in what their seed draws alone."""
        return self.repeats[0].requests if self.repeats else {}

    @property
    def state(self) -> str:
        if self.reason is not None:
            return "not applicable"
        if self.done is not None:
            return "done"
        return "damaged, to be run again" if self.damaged else "to do"

    @property
    def told(self) -> str:
        """Why the task makes no sense here, in a sentence."""
        return (
            f"{self.task.name} on {self.dataset.name} with {self.entry.name}: not applicable: "
            f"{self.reason}"
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the pictures of every role that is read, or that the head was trained with."""
        trained = {} if self.base is None else self.base.fingerprints
        return {**trained, **{role: self.dataset.fingerprints[role] for role in self.requests}}

    @property
    def passes(self) -> dict[Hashable, int]:
        """Forward passes (pictures × crops) for each role. Cells whose keys agree share them."""
        return {
            read.key: crops_in(
                read.request.view, self.dataset.roles[read.role], read.request.pictures
            )
            for read in self.reads()
        }

    def reads(self) -> Iterator[Reading]:
        """What every repeat reads of every role."""
        for number, (seed, requests) in enumerate(self.repeats):
            for role, request in requests.items():
                # The first repeats of all cells run side by side, with one seed.
                alike = (self.stored and request.storable and not request.seeded) or number == 0
                name = self.entry.name, self.dataset.name, role
                pictures = self.dataset.fingerprints[role]  # not each task's are one split's
                key = (*name, pictures, request.sharing, None if alike else seed)
                yield Reading(key, role, request, seed)

    def source(self, role: Role, seed: int) -> Source:
        """The pictures of one role as its request sees them, for the keys of stored features."""
        from harness.features.keys import Source

        dataset, request = self.dataset.roles[role], self.requests[role]
        view, precision = request.view, request.precision
        fingerprint = self.dataset.fingerprints[role]
        return Source(self.dataset.name, dataset.split, fingerprint, view, precision, seed)

    @property
    def bytes(self) -> int:
        """What the evaluation keeps in memory of all pictures."""
        return sum(
            request.kept(self.block is not None) * len(self.dataset.roles[role].samples)
            for role, request in self.requests.items()
        )


def plan(*runs: Options) -> list[Cell]:
    """All cells of a run, in order: by model, then data set, task, protocol.

    Several ``runs`` (of a suite) differ in tasks, models, data sets, protocols and settings alone.
    Their cells are brought together, so that those of one model and data set stand side by side
    and share its forward passes; a cell that two of them want is there once.

    Raises ``HarnessError`` for an unknown name, a data set that is not there, a setting that no
    protocol has, a missing picture (unless they are skipped), or a result that would be replaced
    by another kind of result.
    """
    from harness.backbone import checkpoint_files
    from harness.backbone.sources import inspect

    common = runs[0]
    registry = Registry.load(common.model_files, common.allow_code)
    catalog = Catalog.load(common.dataset_files, common.data_root)
    wanted = [job for options in runs for job in _jobs(options)]
    names = dict.fromkeys(name for options in runs for name in options.models)
    entries = [registry.entry(name) for name in names]
    datasets = {
        name: open_dataset(catalog, name, common)
        for name in dict.fromkeys(name for job in wanted for name in job.datasets)
    }
    cells: dict[Path, Cell] = {}
    for entry in entries:
        facts, weights_digest = inspect(entry)
        sha256 = None
        if entry.checkpoint is not None and common.weights == "released":
            if not entry.checkpoint.is_file():
                found = "is a folder; name the .safetensors or the .index.json in it"
                raise HarnessError(
                    f"model {entry.name!r}: no checkpoint at {entry.checkpoint}"
                    f"{f', which {found}' if entry.checkpoint.is_dir() else ''}"
                )
            sha256 = checkpoint_files.sha256(entry.checkpoint)
        for name, dataset in datasets.items():
            for job in wanted:
                if entry.name not in job.models or name not in job.datasets:
                    continue
                for protocol in job.protocols:
                    cell = _cell(job.task, protocol, entry, played(dataset, job.task), common)
                    if cell.path in cells:
                        continue
                    cell.checkpoint_sha256, cell.weights_digest = sha256, weights_digest
                    cell.weights_from = weights_from(sha256, common)
                    cells[cell.path], roles = cell, cell.dataset.roles
                    try:
                        why = cannot_read(job.task, entry, registry)
                        if why := why or cannot_search(entry, dataset.roles, common.compiled):
                            raise NotApplicable(why)
                        cell.repeats = [
                            Repeat(seed, job.task.requests(facts, roles, protocol, seed))
                            for seed in _seeds(job.task, protocol, common)
                        ]
                    except NotApplicable as error:
                        cell.reason = str(error)
                    else:
                        look_for_result(cell, common)
    return list(cells.values())


def weights_from(checkpoint_sha256: str | None, options: Options) -> str:
    """What the feature store calls the origin of weights before they are loaded."""
    if options.weights == "random":
        return f"random {options.seed}"
    return checkpoint_sha256 or "released"


class _Job(NamedTuple):
    """One task of one run: its cells are all of models x data sets x protocols."""

    task: Task[Any]
    models: Sequence[str]
    datasets: Sequence[str]
    protocols: Sequence[Protocol]


def _jobs(options: Options) -> list[_Job]:
    tasks = [find_task(name) for name in dict.fromkeys(options.tasks)]
    jobs = []
    for task in tasks:
        protocols = protocols_of(task, tasks, options.protocols, options.settings)
        datasets = options.datasets or task.default_datasets
        if not datasets:
            raise HarnessError(
                f"task {task.name}: name a --dataset (`harness datasets` lists them)"
            )
        jobs.append(_Job(task, options.models, datasets, protocols))
    return jobs


def protocols_of(
    task: Task[Any],
    tasks: Sequence[Task[Any]],
    names: Sequence[str],
    settings: Mapping[str, object],
) -> list[Protocol]:
    """The protocols of ``task`` among ``names`` (which may be those of any of ``tasks``; none: the
    task's first), with ``settings`` applied. Raises ``HarnessError`` for what is not known."""
    known = {name: owner for owner in tasks for name in owner.protocols}
    for name in names:
        if name not in known:
            raise unknown("protocol", name, known, f"harness describe {task.name}")
    named = [name for name in dict.fromkeys(names) if name in task.protocols]
    if names and not named:
        raise HarnessError(
            f"task {task.name}: none of its protocols was named (it has "
            f"{', '.join(task.protocols)})"
        )
    protocols = [task.protocols[name] for name in named or list(task.protocols)[:1]]
    return [p.changed(settings) if settings else p for p in protocols]


def open_dataset(catalog: Catalog, name: str, options: Options) -> OpenedDataset:
    """Every role of a data set, cut to the limit. Raises ``HarnessError`` for an empty split, and
    ``BadPicture`` for pictures that are not there, unless they are skipped."""
    roles = catalog.open(name)
    missing = [identity for dataset in roles.values() for identity in dataset.missing()]
    if missing and options.on_bad_picture == "fail":
        some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise BadPicture(
            f"data set {name!r}: {len(missing)} pictures are missing ({some}); `harness doctor "
            f"{name}` says more, --on-bad-image skip goes on without them"
        )
    warnings = tuple(catalog.unexpected(name, roles))
    whole = {role: len(dataset.samples) for role, dataset in roles.items()}
    if options.limit is not None:
        roles = {role: First(dataset, options.limit) for role, dataset in roles.items()}
    for role, dataset in roles.items():
        if not dataset.samples:
            raise HarnessError(f"data set {name!r}: its {role} split holds no pictures")
    fingerprints = {role: dataset.fingerprint() for role, dataset in roles.items()}
    return OpenedDataset(name, roles, fingerprints, whole, warnings)


def _cell(
    task: Task[Any],
    protocol: Protocol,
    entry: ModelEntry,
    dataset: OpenedDataset,
    options: Options,
) -> Cell:
    variant: dict[str, Any] = {}
    original = task.protocols[protocol.name].settings()
    changed = {k: v for k, v in protocol.settings().items() if v != original[k]}
    if changed:
        variant["set"] = changed
    if options.limit is not None:
        variant["limit"] = options.limit
    if options.weights == "random":
        variant["weights"] = "random"
    if options.seed:
        variant["seed"] = options.seed
    if len(_seeds(task, protocol, options)) > 1:
        variant["seeds"] = options.seeds
    if options.compiled:
        variant["compiled"] = True  # fused arithmetic rounds otherwise
    names = dataset.name, task.name, entry.name, protocol.name
    path = records.record_path(options.out, *names, variant)
    return Cell(task, protocol, entry, dataset, variant, path, stored=options.store)


def _seeds(task: Task[Any], protocol: Protocol, options: Options) -> range:
    """One after the other, or the first alone where none of them can move the number."""
    count = options.seeds if task.seeded(protocol) else 1
    return range(options.seed, options.seed + count)


def look_for_result(cell: Cell, options: Options) -> None:
    """Set ``done`` if this very cell has been run; refuse to replace another kind of result."""
    if options.overwrite:
        return
    try:
        record = records.finished(cell.path)
    except records.DamagedResult:
        cell.damaged = True
        return
    if record is None and options.on_bad_picture == "skip":
        found = _result_with_bad_pictures(cell)
        if found is not None:
            cell.path, record = found
    if record is None:
        return
    differing = [name for name, (ours, theirs) in _identity(cell, record).items() if ours != theirs]
    if differing:
        raise HarnessError(
            f"{cell.path}: holds a result of another {' and another '.join(differing)}; "
            f"--overwrite replaces it, another --out keeps both"
        )
    cell.done = record


def _result_with_bad_pictures(cell: Cell) -> tuple[Path, records.Record] | None:
    """A run that skipped pictures is stored under the name that its bad pictures give it. It is
    this cell's only while each of them is still bad."""
    for path in sorted(cell.path.parent.glob(f"{cell.protocol.name}~*.json")):
        try:
            record = records.finished(path)
        except HarnessError:
            continue
        if record is None or not record.bad_pictures:
            continue
        same = {k: v for k, v in record.variant.items() if k != "skipped"} == cell.variant
        agree = all(ours == theirs for ours, theirs in _identity(cell, record).values())
        if same and agree and _still_bad(cell, {bad.id for bad in record.bad_pictures}):
            return path, record
    return None


def _still_bad(cell: Cell, identities: set[str]) -> bool:
    for role, request in cell.requests.items():
        dataset = cell.dataset.roles[role]
        for index, sample in enumerate(dataset.samples):
            if sample.id not in identities:
                continue
            try:
                look(dataset, index, request.view, request.dense, 0)
            except BadPicture:
                continue
            return False
    return True


def _identity(cell: Cell, record: Record) -> dict[str, tuple[object, object]]:
    """What must agree for a stored result to be this cell's: ours and the stored."""
    return {
        "text tower": (text_digest(cell.task, cell.entry, cell.variant), record.model.text_digest),
        "protocol": (cell.protocol.hash(), record.protocol.hash),
        "data set": (cell.fingerprints, record.dataset.fingerprints),
        "model entry": (cell.entry.digest(), record.model.entry_digest),
        "checkpoint": (cell.checkpoint_sha256, record.model.checkpoint_sha256),
        "set of weights": (
            cell.weights_digest or record.model.weights_digest,
            record.model.weights_digest,
        ),
    }


def scored_role(dataset: OpenedDataset) -> Role:
    """The role whose pictures a result is about: test, else the last there is."""
    return "test" if "test" in dataset.roles else list(dataset.roles)[-1]
