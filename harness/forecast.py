"""What the feature store will save a run and what it will keep of it, without loading weights.

The digest of the weights is not known before they are loaded: that of the last run of the same
entry, as its keys in the store tell it, is taken. So this is a forecast; the run itself looks at
the weights that it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from harness.backbone.sources import architecture, choose_device
from harness.data.dataset import ROLES
from harness.errors import HarnessError
from harness.features.cutoffs import read_cutoff
from harness.features.keys import RunningModel, can_be_keyed, cutoff_key, feature_key
from harness.features.select import Selector, row_bytes
from harness.features.shared import kept_in, user_store
from harness.features.store import Store, shard_size
from harness.options import Options
from harness.plan import Cell, Reading

_ROW = 4 * 13 + 1  # bytes of geometry, and whether the picture has such a token


@dataclass
class Forecast:
    """Pictures that need no forward pass by the key of a pass (``Cell.passes``); bytes to be read
    and to be stored by that and a selector."""

    saved: dict[Hashable, int] = field(default_factory=dict)
    read: dict[tuple[Hashable, Selector], int] = field(default_factory=dict)
    stored: dict[tuple[Hashable, Selector], int] = field(default_factory=dict)

    def saved_by(self, cells: Sequence[Cell]) -> int:
        """Forward passes that these cells are spared."""
        keys = {key for cell in cells for key in cell.passes}
        return sum(self.saved.get(key, 0) for key in keys)

    def stored_by(self, cells: Sequence[Cell]) -> int:
        """Bytes that these cells will add to the store."""
        return self._of(self.stored, cells)

    def read_by(self, cells: Sequence[Cell]) -> int:
        """Bytes that the store has and these cells will read in place of forward passes."""
        return self._of(self.read, cells)

    def _of(self, found: dict[tuple[Hashable, Selector], int], cells: Sequence[Cell]) -> int:
        wanted = {
            (key, selector)
            for cell in cells
            for key, _, request, _ in cell.reads()
            for selector in request.select
        }
        return sum(found.get(each, 0) for each in wanted)


def forecast(cells: Sequence[Cell], options: Options) -> Forecast:
    """Of the cells that are to be done."""
    result = Forecast()
    if not options.store:
        return result
    groups: dict[Hashable, list[tuple[Cell, Reading]]] = {}
    for cell in cells:
        if cell.reason is None and cell.done is None:
            for read in cell.reads():
                groups.setdefault(read.key, []).append((cell, read))
    if not any(read.request.select for group in groups.values() for _, read in group):
        return result
    store = user_store()
    digests = _last_digests(store)
    for key, group in groups.items():
        _of_pass(result, store, digests, key, group, options)
    return result


def _last_digests(store: Store) -> dict[tuple[str, str], str]:
    """By entry and where its weights are from: the digest of the weights, as last used."""
    digests: dict[tuple[str, str], str] = {}
    try:
        found = kept_in(store)
    except HarnessError:
        return digests
    for manifest in (one.manifest for one in found):
        if manifest is not None and "model" in manifest.facts:  # texts are of no weights
            name = str(manifest.about["entry_digest"]), str(manifest.about["weights_from"])
            digests.setdefault(name, str(manifest.facts["model"]["weights"]))
    return digests


def _of_pass(
    result: Forecast,
    store: Store,
    digests: dict[tuple[str, str], str],
    key: Hashable,
    group: list[tuple[Cell, Reading]],
    options: Options,
) -> None:
    cell, first = group[0]
    request, pictures = first.request, len(cell.dataset.roles[first.role].samples)
    if request.order != "once" or not can_be_keyed(request.view):
        return
    digest = cell.weights_digest or digests.get((cell.entry.digest(), cell.weights_from))
    running = RunningModel(
        cell.entry,
        architecture(cell.entry),
        digest or "unknown",
        choose_device(options.device).type,
        options.compiled,
        weights_from=cell.weights_from,
    )
    there: list[set[int]] = []
    selectors = {selector for _, read in group for selector in read.request.select}
    if not selectors:
        return
    size = shard_size(store, selectors, running.architecture, request.view)
    for each, read in group:
        for selector in read.request.select:
            shards = _shards(store, size, running, each, read, selector)
            there.append(shards)
            rows = pictures - _pictures(shards, size, pictures)
            row = row_bytes(selector, running.architecture, request.view) + _ROW
            result.stored[key, selector] = rows * row
    if all(read.request.storable for _, read in group):
        spared = _pictures(set.intersection(*there), size, pictures)
        result.saved[key] = spared
        for selector in selectors:
            row = row_bytes(selector, running.architecture, request.view) + _ROW
            result.read[key, selector] = spared * row


def _shards(
    store: Store,
    size: int,
    running: RunningModel,
    cell: Cell,
    read: Reading,
    selector: Selector,
) -> set[int]:
    """The shards, of ``size`` pictures, of a selector that the store has, by its manifest."""
    cutoff = None
    if selector.rule is not None:
        trains = cell.base or cell
        first = next(each for each in ROLES if each in trains.requests)
        estimated = cutoff_key(
            running, trains.source(first, read.seed), selector.layer, selector.rule
        )
        cutoff = selector.rule.value
        if selector.rule.estimated:
            found = read_cutoff(store, estimated)
            if found is None:
                return set()
            cutoff = found
    source = cell.source(read.role, read.seed)
    key = feature_key(running, source, size, selector, cutoff)
    return store.feature(key, len(cell.dataset.roles[read.role].samples), use=False).listed


def _pictures(shards: set[int], size: int, pictures: int) -> int:
    return sum(min(size, pictures - shard * size) for shard in shards)
