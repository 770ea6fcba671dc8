"""Whether a record is what it says it is: its place, its digests, and the pictures of its table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.aggregates import Column
from harness.documents import canonical_json
from harness.schema import Record, record_path


def place_of(path: Path, record: Record) -> Path:
    """Where the record at ``path`` belongs in its folder of results."""
    names = record.dataset.name, record.task, record.model.name, record.protocol.name
    return record_path(path.parents[3], *names, record.variant)


def below(place: Path) -> str:
    """A record's place without the folder of results."""
    return "/".join(place.parts[-4:])


def contradictions(record: Record) -> Iterator[str]:
    """What two fields of a record say that cannot both be true."""
    protocol, model, data = record.protocol, record.model, record.dataset
    if not record.metrics:
        yield "it has no score"
    settings = json.dumps(protocol.settings, sort_keys=True)
    if protocol.hash != hashlib.sha256(settings.encode()).hexdigest():
        yield "protocol.hash is not that of protocol.settings"
    if model.entry_digest != hashlib.sha256(canonical_json(model.entry)).hexdigest():
        yield "model.entry_digest is not that of model.entry"
    whole = data.pictures if record.limit is None else min(record.limit, data.pictures)
    rows = 0 if record.per_picture is None else record.per_picture.rows
    if rows > whole:
        yield f"its table has {rows} pictures of the {whole} that there are"


@dataclass
class Pictures:
    """The pictures that the results of one fingerprint and protocol have rows for.

    Which of them are scored may differ (a bad one is skipped), but not what data set they are of.
    """

    _ids: dict[bytes, NDArray[np.int64]] = field(default_factory=dict)
    _paths: dict[bytes, list[Path]] = field(default_factory=dict)

    def add(self, path: Path, ids: Column) -> None:
        marks = np.sort(np.fromiter(map(hash, ids.tolist()), np.int64, len(ids)))
        digest = hashlib.sha256(marks.tobytes()).digest()
        self._ids.setdefault(digest, marks)
        self._paths.setdefault(digest, []).append(path)

    def strangers(self) -> Iterator[tuple[Path, Path]]:
        """The results that share less than half of their pictures with most of the others, and one
        of those; of two alone, both."""
        ranked = sorted(self._paths, key=lambda digest: -len(self._paths[digest]))
        if not ranked:
            return
        usual = ranked[0]
        for digest in ranked[1:]:
            ours, theirs = self._ids[digest], self._ids[usual]
            shared = len(np.intersect1d(ours, theirs))
            if 2 * shared >= min(len(ours), len(theirs)):
                continue
            yield from ((path, self._paths[usual][0]) for path in self._paths[digest])
            if len(self._paths[digest]) == len(self._paths[usual]):
                yield from ((path, self._paths[digest][0]) for path in self._paths[usual])
