"""What is there of a data set, what is missing, and the command that fixes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, Role
from harness.data.folder import FolderDataset
from harness.data.label_tally import LabelTally
from harness.data.pairs import PairedDataset
from harness.errors import BadPicture, HarnessError

Level = Literal["ok", "warning", "error"]
LEFTOVER = ".fetch-*"
_SHOWN = 3
_MOST = 10
"""Labels that are wrong are often all wrong in one way."""
_SKIP = "replace it, or run with --on-bad-image skip"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``fix`` is a command or an instruction."""

    level: Level
    what: str
    fix: str | None = None


@dataclass(frozen=True)
class Split:
    """One role of a data set, counted. ``without_boxes``: pictures that could have a box."""

    split: str
    pictures: int
    missing: int
    boxes: int
    without_boxes: int
    classes: int
    fingerprint: str


@dataclass(frozen=True)
class Report:
    """All that ``harness doctor DATASET`` prints; ``dataclasses.asdict`` makes it JSON."""

    name: str
    format: str
    root: str | None
    findings: list[Finding] = field(default_factory=list)
    splits: dict[Role, Split] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)


def examine(
    catalog: Catalog,
    name: str,
    *,
    decode: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Look at the data set ``name``; of masks and depth, read the first of each split. With
    ``decode`` every picture is decoded with its labels (minutes), and ``progress(done, total)`` is
    called for each.

    Raises ``HarnessError`` for an unknown name only: all else is a finding.
    """
    entry, root = catalog.entry(name), catalog.root(name)
    report = Report(name, entry.format, None if root is None else str(root))
    fetch = catalog.fetch_command(name)
    _look_for_leftovers(catalog, name, report)
    try:
        absent = catalog.absent(name)
        for path in absent:
            report.findings.append(
                Finding("error", f"there is no {path}", fetch or entry.note or catalog.advice(name))
            )
        if absent:
            return report
        opened = catalog.open(name)
    except HarnessError as error:
        report.findings.append(Finding("error", str(error)))
        return report
    for role, dataset in opened.items():
        _look_at(role, dataset, report, fetch)
        if not decode:
            _read_labels(role, dataset, report)
    for sentence in catalog.unexpected(name, opened):
        report.findings.append(Finding("error", sentence, _again(report, fetch)))
    if decode:
        total = sum(len(dataset.samples) for dataset in opened.values())
        done = 0
        for role, dataset in opened.items():
            done = _decode(role, dataset, report, done, total, progress)
    return report


def _look_for_leftovers(catalog: Catalog, name: str, report: Report) -> None:
    """A fetch that was killed leaves its unfinished folder, which nothing else reads."""
    folders = {catalog.base(name) / download.to for download in catalog.entry(name).fetch}
    for folder in sorted(folders):
        for leftover in sorted(folder.glob(LEFTOVER)):
            report.findings.append(
                Finding(
                    "warning",
                    f"{leftover}: left by a fetch that was killed, or one that is still running",
                    f"rm -r '{leftover}'",
                )
            )


def _look_at(role: Role, dataset: Dataset, report: Report, fetch: str | None) -> None:
    missing = dataset.missing()
    counts = [len(boxes.classes) for s in dataset.samples if (boxes := s.target.boxes) is not None]
    empty = sum(count == 0 for count in counts)
    report.splits[role] = Split(
        split=dataset.split,
        pictures=len(dataset.samples),
        missing=len(missing),
        boxes=sum(counts),
        without_boxes=empty,
        classes=len(dataset.classes or dataset.semantic_classes),
        fingerprint=dataset.fingerprint(),
    )
    where = f"{role} ({dataset.split})"
    findings = report.findings
    if missing:
        kind = "pictures or their labels" if isinstance(dataset, PairedDataset) else "pictures"
        what = f"{where}: {len(missing):,} {kind} are missing: {_some(missing)}"
        findings.append(Finding("error", what, _again(report, fetch)))
    else:
        findings.append(
            Finding("ok", f"{where}: all of {len(dataset.samples):,} pictures are there")
        )
    if empty:
        findings.append(
            Finding(
                "ok", f"{where}: {empty:,} pictures have no box; tasks on boxes skip and count them"
            )
        )
    absent = set(missing)
    unknown = [s.id for s in dataset.samples if s.size == (0, 0) and s.id not in absent]
    if unknown:
        findings.append(
            Finding(
                "error",
                f"{where}: {len(unknown):,} files are no pictures: {_some(unknown)}",
                "replace them, or run with --on-bad-image skip",
            )
        )
    labels = {sample.target.label for sample in dataset.samples} - {None}
    several = [found for sample in dataset.samples if (found := sample.target.labels) is not None]
    labels.update(place for found in several for place in found.present)
    if several:
        more = sum(len(found.present) > 1 for found in several)
        none = sum(not found.present for found in several)
        unclear = sum(bool(found.unclear) for found in several)
        what = f"{where}: {more:,} pictures show several classes, {none:,} none; in {unclear:,}"
        findings.append(Finding("ok", f"{what} a class is unclear (has only difficult objects)"))
    said = [each for sample in dataset.samples if (each := sample.target.captions) is not None]
    if said:
        counts = sorted(map(len, said))
        longest = max(len(caption) for each in said for caption in each)
        what = f"{where}: {sum(counts):,} captions, {counts[0]:,} to {counts[-1]:,} a picture"
        findings.append(Finding("ok", f"{what}; the longest has {longest:,} characters"))
    bare = [name for label, name in enumerate(dataset.classes) if label not in labels]
    if labels and bare:
        what = f"{where}: {len(bare):,} of {len(dataset.classes):,} classes have no picture here"
        findings.append(Finding("warning", f"{what}: {_some(bare)}"))
    if isinstance(dataset, FolderDataset) and dataset.ignored:
        ignored = dataset.ignored
        findings.append(
            Finding(
                "warning",
                f"{where}: {len(ignored):,} files are ignored (hidden, no picture's "
                f"suffix, or outside a class's folder): {_some(ignored)}",
            )
        )
    if report.format == "folder" and "train" not in report.splits and role == "test":
        findings.append(
            Finding("warning", f"{where}: there is no train/ beside it; tasks that learn need one")
        )


def _read_labels(role: Role, dataset: Dataset, report: Report) -> None:
    absent = set(dataset.missing())
    there = (place for place, sample in enumerate(dataset.samples) if sample.id not in absent)
    first = next(there, None)
    if first is not None:
        tally, size = LabelTally(dataset), dataset.samples[first].size
        tally.add(first, None if size == (0, 0) else size)
        _tell_labels(f"{role} ({dataset.split})", tally, report)


def _tell_labels(where: str, tally: LabelTally, report: Report) -> None:
    findings = report.findings
    findings.extend(Finding("error", what, _SKIP) for what in tally.bad[:_MOST])
    if len(tally.bad) > _MOST:
        more = len(tally.bad) - _MOST
        findings.append(Finding("error", f"{where}: {more:,} more labels are bad", _SKIP))
    findings.extend(Finding("ok", f"{where}: {what}") for what in tally.said())
    if doubtful := tally.doubtful():
        findings.append(
            Finding(
                "warning", f"{where}: {doubtful}", "set scale: (1000: millimetres) in its entry"
            )
        )


def _decode(
    role: Role,
    dataset: Dataset,
    report: Report,
    done: int,
    total: int,
    progress: Callable[[int, int], None],
) -> int:
    absent = set(dataset.missing())
    bad: list[str] = []
    resized: list[str] = []
    tally = LabelTally(dataset)
    for index, sample in enumerate(dataset.samples):
        if sample.id not in absent:
            try:
                height, width, _ = dataset.picture(index).shape
                if sample.size not in ((width, height), (0, 0)):
                    annotated = f"{sample.size[0]}x{sample.size[1]}"
                    resized.append(f"{sample.id} (annotated {annotated}, stored {width}x{height})")
                tally.add(index, (width, height))
            except BadPicture as error:
                bad.append(str(error))
        done += 1
        progress(done, total)
    where = f"{role} ({dataset.split})"
    report.findings.extend(Finding("error", what, _SKIP) for what in bad)
    if resized:
        report.findings.append(
            Finding(
                "warning",
                f"{where}: {len(resized):,} pictures are of another size than their "
                f"annotation says, so their boxes may be misplaced: {_some(resized)}",
                "take the pictures and annotations from one release",
            )
        )
    if not bad:
        report.findings.append(Finding("ok", f"{where}: every picture that is there decodes"))
    _tell_labels(where, tally, report)
    if lacking := tally.absent():
        what = f"{where}: {len(lacking):,} classes have no pixel here: {_some(lacking)}"
        report.findings.append(Finding("warning", what))
    return done


def _again(report: Report, fetch: str | None) -> str:
    """What is there is never overwritten, so a fetch mends nothing before it is moved away."""
    if fetch is None:
        return f"copy what is missing to {report.root}"
    return f"move {report.root} away, then `{fetch}`"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
