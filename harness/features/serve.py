"""Batches of a pass from the feature store where it has them, from the backbone where not.

**What is promised.** A shard's pictures always run together, in batches that begin with the shard.
So the features of a pass that was killed and taken up again are those of an uninterrupted one to
the bit, on the same machine with the same ``--batch-size`` and threads, and so are those of a run
without a store. Another batch size or machine may round the last bits otherwise, as it does
without a store; a shard that is there is never made again for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from harness.backbone.vit import Backbone
from harness.data.dataset import Dataset
from harness.data.views import Geometry
from harness.features.extract import (
    LABEL_BYTES,
    Pass,
    Tally,
    dense_crops,
    note_bad,
    stream,
)
from harness.features.keys import RunningModel, Source, feature_key
from harness.features.loading import Loaded, load
from harness.features.select import Selected, Selector
from harness.features.store import Feature, Filling, Rows, Store, geometry_of, shard_size
from harness.task import Batch


@dataclass(frozen=True)
class Reader:
    """How a pass over all pictures of a data set, each once, is run. ``shard`` is what
    ``shard_size`` gives."""

    backbone: Backbone
    dataset: Dataset
    wanted: Pass
    tally: Tally
    seed: int
    workers: int
    skip_bad: bool
    shard: int
    on_picture: Callable[[int], None]

    @property
    def pictures(self) -> int:
        return len(self.dataset.samples)

    def places(self, shard: int) -> range:
        return range(shard * self.shard, min((shard + 1) * self.shard, self.pictures))


def stored_features(
    store: Store, running: RunningModel, source: Source, wanted: Pass, pictures: int
) -> dict[Selector, Feature]:
    """What the store has, or will have, of every selector of a pass."""
    found = {}
    shard = shard_size(store, wanted.selectors, running.architecture, wanted.view)
    for selector in wanted.selectors:
        cutoff = None if selector.rule is None else wanted.cutoffs[selector.rule]
        key = feature_key(running, source, shard, selector, cutoff)
        found[selector] = store.feature(key, pictures)
    return found


def batches(
    reader: Reader,
    features: Mapping[Selector, Feature],
    from_store: bool,
    places: range | None = None,
) -> Iterator[Batch]:
    """Every picture once, in shards in the data set's order. What runs is added to ``features``.
    Of ``places``, which begin and end with a shard, those pictures alone.

    ``from_store`` says that vectors alone are wanted: shards that all ``features`` have are then
    read and not run. A picture that could not be used is looked at again: the shard of one that
    was mended is run again, and where bad pictures are not to be skipped its shard is run, which
    raises as it did.
    """
    places = range(reader.pictures) if places is None else places
    shards = range(places.start // reader.shard, -(-places.stop // reader.shard))
    use = from_store and bool(features)
    for stored, group in groupby(shards, lambda shard: use and _usable(reader, features, shard)):
        if not stored:
            yield from _run(reader, features, list(group))
            continue
        for shard in group:
            rows = {selector: feature.read(shard) for selector, feature in features.items()}
            whole = {selector: found for selector, found in rows.items() if found is not None}
            if len(whole) < len(rows):  # it went while we looked
                yield from _run(reader, features, [shard])
            else:
                for batch in _stored(reader, shard, whole):
                    yield replace(batch, stored=features)


def _usable(reader: Reader, features: Mapping[Selector, Feature], shard: int) -> bool:
    bad: list[Mapping[int, str]] = []
    for feature in features.values():
        rows = feature.read(shard)
        if rows is None:
            return False
        bad.append(rows.bad)
    if any(each.keys() != bad[0].keys() for each in bad):
        return False
    if not bad[0]:
        return True
    if not reader.skip_bad:
        return False
    indices = [reader.places(shard)[row] for row in bad[0]]
    again = load(reader.dataset, reader.wanted.view, indices, reader.seed, 0)
    return all(loaded.bad is not None for loaded in again)


def _stored(reader: Reader, shard: int, rows: Mapping[Selector, Rows]) -> Iterator[Batch]:
    """The pictures of a shard as batches, without those that are bad: one a patch grid, or where
    labels are read as many as a forward batch has."""
    places, first = reader.places(shard), next(iter(rows.values()))
    samples = reader.dataset.samples
    reader.tally.bad += [(samples[places[row]].id, why) for row, why in first.bad.items()]
    by_size: dict[tuple[int, int], list[int]] = {}
    geometry = [geometry_of(row) for row in first.geometry.tolist()]
    for row, each in enumerate(geometry):
        if row not in first.bad:
            by_size.setdefault(each.padded, []).append(row)
    for alike in by_size.values():
        if reader.wanted.dense is None:
            yield _batch(reader, places, geometry, rows, alike, ())
        else:
            yield from _labelled(reader, places, geometry, rows, alike)
    reader.on_picture(len(first.bad))


def _labelled(
    reader: Reader,
    places: range,
    geometry: Sequence[Geometry],
    rows: Mapping[Selector, Rows],
    alike: Sequence[int],
) -> Iterator[Batch]:
    """Pictures of a shard with labels, which are read now: a few of them at a time."""
    row_of = {places[row]: row for row in alike}
    size = reader.tally.batch_size
    waiting: list[Loaded] = []
    for loaded in load(
        reader.dataset,
        reader.wanted.view,
        list(row_of),
        reader.seed,
        reader.workers,
        reader.wanted.dense,
    ):
        if loaded.bad is not None:
            note_bad(reader.dataset, loaded, reader.tally, reader.skip_bad)
            reader.on_picture(1)
            continue
        waiting.append(loaded)
        if len(waiting) == size or sum(each.label_bytes for each in waiting) >= LABEL_BYTES:
            chosen = [row_of[each.index] for each in waiting]
            yield _batch(reader, places, geometry, rows, chosen, waiting)
            waiting = []
    if waiting:
        chosen = [row_of[each.index] for each in waiting]
        yield _batch(reader, places, geometry, rows, chosen, waiting)


def _batch(
    reader: Reader,
    places: range,
    geometry: Sequence[Geometry],
    rows: Mapping[Selector, Rows],
    chosen: Sequence[int],
    loaded: Sequence[Loaded],
) -> Batch:
    """These rows of a shard as a batch, with the labels of ``loaded``."""
    pictures = [reader.dataset.samples[places[row]] for row in chosen]
    reader.tally.pictures += len(chosen)
    reader.on_picture(len(chosen))
    return Batch(
        tokens={},
        attention={},
        ids=tuple(sample.id for sample in pictures),
        targets=tuple(sample.target for sample in pictures),
        sample=tuple(range(len(chosen))),
        geometry=tuple(geometry[row] for row in chosen),
        selected={
            selector: Selected(found.values[chosen], found.there[chosen])
            for selector, found in rows.items()
        },
        crops=(1,) * len(chosen),
        dense=tuple(each.dense for each in loaded if each.dense is not None),
        dense_crops=dense_crops([crop for each in loaded for crop in each.crops]),
    )


def _run(
    reader: Reader, features: Mapping[Selector, Feature], shards: Sequence[int]
) -> Iterator[Batch]:
    """The pictures of these shards through the backbone, and into the store as they come."""
    storing = _Storing(reader, features, shards)
    for batch in stream(
        reader.backbone,
        reader.dataset,
        reader.wanted,
        [place for shard in shards for place in reader.places(shard)],
        reader.tally,
        reader.seed,
        reader.workers,
        reader.skip_bad,
        reader.on_picture,
        reader.shard,
    ):
        if features:
            storing.add(batch)
        yield replace(batch, stored=features)
    if features:
        storing.end()


class _Storing:
    """Puts batches together to shards. A shard is written when the next one has begun, for only
    then have all of its pictures come or turned out to be bad."""

    def __init__(
        self, reader: Reader, features: Mapping[Selector, Feature], shards: Sequence[int]
    ) -> None:
        self._reader, self._features, self._left = reader, features, list(shards)
        self._begin()

    def add(self, batch: Batch) -> None:
        while batch.ids[0] not in self._rows:
            self._write()
        rows = [self._rows[batch.ids[picture]] for picture in batch.sample]
        for selector, filling in self._filling.items():
            filling.add(rows, *batch.selected[selector], batch.geometry)

    def end(self) -> None:
        while self._left:
            self._write()

    def _begin(self) -> None:
        self._rows: dict[str, int] = {}
        self._filling: dict[Selector, Filling] = {}
        if self._left:
            places, samples = self._reader.places(self._left[0]), self._reader.dataset.samples
            self._rows = {samples[place].id: row for row, place in enumerate(places)}
            self._filling = {
                selector: Filling(len(places))
                for selector, feature in self._features.items()
                if not feature.whole(self._left[0])
            }

    def _write(self) -> None:
        shard = self._left.pop(0)
        told = self._reader.tally.bad
        bad = {self._rows[name]: why for name, why in told if name in self._rows}
        # What is bad for its labels alone has features, which this pass did not look for.
        if not self._rows.keys() & self._reader.tally.bad_labels:
            for selector, filling in self._filling.items():
                self._features[selector].write(shard, filling.rows(bad))
        self._begin()
