"""The rows of every table: results from several folders, and which of them compare.

Two results are comparable where task, protocol hash, fingerprints of the pictures of every role
and the data set of the head agree. Which model ran is what a comparison is about; the batch, the
machine and the seed are recorded and not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from harness import records
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.registry import Registry
from harness.schema import Record

FLOORS = ("pixels", "chance")


@dataclass(frozen=True)
class Result:
    """A record and where it lies."""

    path: Path
    record: Record

    @property
    def model(self) -> str:
        return self.record.model.name

    @property
    def place(self) -> tuple[str, str]:
        """The data set and the task: what a table is about."""
        return self.record.dataset.name, self.record.task

    @cached_property
    def comparable(self) -> bytes:
        """Two results compare if and only if these are equal."""
        record = self.record
        head = None if record.trained_on is None else record.trained_on.dataset
        prints = record.dataset.fingerprint, record.dataset.fingerprints
        random = record.model.weights == "random"
        return canonical_json([record.task, record.protocol.hash, *prints, head, random])

    @cached_property
    def variant(self) -> bytes:
        return canonical_json(self.record.variant)

    @property
    def seed(self) -> int:
        """Of all that is drawn of the pictures: the same for the same pictures."""
        return int(self.record.dataset.fingerprint[:8], 16)

    def __str__(self) -> str:
        return f"{self.model} · {' · '.join(self.place)} · {', '.join(protocol_words(self.record))}"


def apart(first: Record, second: Record) -> list[str]:
    """What keeps two results of one task from being comparable, a field each, in words."""
    found = []
    if first.protocol.hash != second.protocol.hash:
        ours, theirs = (
            {"protocol": f"{each.protocol.name} {each.protocol.version}", **each.protocol.settings}
            for each in (first, second)
        )
        names = [
            name
            for name in dict.fromkeys([*ours, *theirs])
            if name not in {"name", "version"} and ours.get(name) != theirs.get(name)
        ]
        found += [f"{name} {_told(ours, name)} or {_told(theirs, name)}" for name in names]
        found = found or ["protocol hash"]
    own, its = first.dataset, second.dataset
    if own.split != its.split:
        found.append(f"split {own.split} or {its.split}")
    if own.fingerprint != its.fingerprint:
        limits = [each.limit for each in (first, second)]
        both = " or ".join("all" if limit is None else f"the first {limit}" for limit in limits)
        found.append("pictures" + (f": {both}" if limits[0] != limits[1] else " (fingerprint)"))
    for role in sorted(own.fingerprints.keys() | its.fingerprints.keys()):
        scored = (own.fingerprint, its.fingerprint)
        pair = own.fingerprints.get(role), its.fingerprints.get(role)
        if pair[0] != pair[1] and pair != scored:
            found.append(f"{role} pictures (fingerprint)")
    heads = [each.trained_on and each.trained_on.dataset for each in (first, second)]
    if heads[0] != heads[1]:
        found.append("head of " + " or ".join(head or own.name for head in heads))
    weights = [each.model.weights for each in (first, second)]
    if (weights[0] == "random") != (weights[1] == "random"):
        found.append("weights " + " or ".join(weights))
    return found


def _told(settings: Mapping[str, Any], name: str) -> str:
    return plain(settings[name]) if name in settings else "none"


def plain(value: Any) -> str:
    """A setting as people write it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(plain(inner) for inner in value)
    return str(value)


def protocol_words(record: Record) -> list[str]:
    """The protocol's name, what its head was trained on if not here, and what sets the run apart
    from it."""
    name = record.protocol.name + (" †" if record.selected_on == "test" else "")
    found = [] if record.trained_on is None else [f"head of {record.trained_on.dataset}"]
    for key, value in record.variant.items():
        if key == "set" and isinstance(value, dict):
            found += [f"{setting}={chosen}" for setting, chosen in value.items()]
        elif key == "skipped" and isinstance(value, list):
            found.append(f"without {len(value)} bad pictures")
        elif key not in {"weights", "trained_on"}:
            found.append(f"{key} {value}")
    return [name, *found]


def family(model: str) -> str:
    """Of a model's name what comes before its first hyphen; DINOv2's, which have the short names of
    the registers paper (vits … vitg), are dinov2."""
    first = model.partition("-")[0]
    return "dinov2" if re.fullmatch(r"vit[sblg]", first) else first


@dataclass(frozen=True)
class Chosen:
    """Which results a table is asked for: empty means all."""

    tasks: Collection[str] = ()
    datasets: Collection[str] = ()
    models: Collection[str] = ()
    families: Collection[str] = ()
    random: bool = False

    def has(self, result: Result) -> bool:
        record = result.record
        return (
            (not self.tasks or record.task in self.tasks)
            and (not self.datasets or record.dataset.name in self.datasets)
            and (not self.families or family(result.model) in self.families)
            and (self.random or record.model.weights != "random")
        )


def read_results(
    folders: Sequence[Path], chosen: Chosen, tell: Callable[[str], None]
) -> list[Result]:
    """The results in ``folders`` that are ``chosen``, once each, in the order of folder and path.

    One that is damaged or of another schema is left out, and told. Raises ``HarnessError`` where a
    folder is missing or nothing is left, and where two results claim the same cell and differ.
    """
    damaged: list[HarnessError] = []
    found: dict[tuple[str, str, bytes, bytes], Result] = {}
    seen = 0
    for folder in folders:
        records.check_folder(folder)
        for path, record in records.find(folder, damaged, chosen.models or None):
            seen += 1
            result = Result(path, record)
            if not chosen.has(result):
                continue
            cell = result.model, record.dataset.name, result.comparable, result.variant
            before = found.setdefault(cell, result)
            if _numbers(before.record) != _numbers(record):
                raise HarnessError(
                    f"two results of {result} that differ: {before.path} and {path}; keep one, or "
                    "name other folders"
                )
    for error in damaged:
        tell(f"left out: {error}")
    if not found:
        where = ", ".join(map(str, folders))
        if damaged:
            raise HarnessError(f"no whole result in {where}")
        if seen:
            raise HarnessError(f"no result in {where} is of what was asked for ({seen} are there)")
        named = f" of {' and '.join(sorted(chosen.models))}" if chosen.models else ""
        raise HarnessError(f"no result{named} in {where}; `harness run --out` writes them")
    return list(found.values())


def _numbers(record: Record) -> tuple[object, object]:
    """What two results of one cell must have alike to be the same result."""
    return record.per_picture, record.metrics


def pairs_of(registry: Registry, models: Collection[str]) -> list[tuple[str, str]]:
    """Baseline and register model (or one with an intervention), where both are among ``models``.

    The baseline is the entry's own; a model that the registry does not know has none.
    """
    entries = [registry.entry(name) for name in registry.names() if name in models]
    return [(each.baseline, each.name) for each in entries if each.baseline in models]  # type: ignore[misc]


class Pair(NamedTuple):
    """A cell that the second model is compared in with the first. ``apart`` names the fields that
    keep it from being comparable, or is empty."""

    first: Result
    second: Result
    apart: list[str]


def match(results: Sequence[Result], first: str, second: str) -> tuple[list[Pair], list[Result]]:
    """What the two models have in common, and the results that only one of them has."""
    ours = [each for each in results if each.model == first]
    theirs = [each for each in results if each.model == second]
    pairs, ours, theirs = matched(ours, theirs)
    return pairs, [*ours, *theirs]


def matched(
    ours: Sequence[Result], theirs: Sequence[Result]
) -> tuple[list[Pair], list[Result], list[Result]]:
    """What two lists of results have in common, and what is left of either.

    A result goes with a comparable one of the other list, run alike (seeds, say) if there is one;
    what is left, with one of the same data set, task and protocol name, from which it is then told
    what sets it apart.
    """
    rules: list[Callable[[Result, Result], bool]] = [
        lambda a, b: a.comparable == b.comparable and a.place == b.place and a.variant == b.variant,
        lambda a, b: a.comparable == b.comparable,
        lambda a, b: a.place == b.place and a.record.protocol.name == b.record.protocol.name,
    ]
    first, second = list(ours), list(theirs)
    pairs = []
    for same in rules:
        for one in list(first):
            other = next((each for each in second if same(one, each)), None)
            if other is None:
                continue
            fields = [] if one.comparable == other.comparable else apart(one.record, other.record)
            pairs.append(Pair(one, other, fields))
            first.remove(one)
            second.remove(other)
    return sorted(pairs, key=lambda pair: str(pair.first.path)), first, second
