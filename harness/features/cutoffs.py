"""Cut-offs of rules for outliers, estimated in a pass of their own and kept in the store.

``FOLDER/cutoffs/<key>.json`` holds one: the number, and a hash that a damaged file does not pass.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection

import numpy as np

from harness.backbone.vit import Backbone, Read
from harness.data.coverage import inside
from harness.data.dataset import Dataset
from harness.documents import canonical_json
from harness.features.extract import Pass, Tally, stream
from harness.features.keys import Key, RunningModel, Source, can_be_keyed, cutoff_key
from harness.features.outliers import ESTIMATED_ON, OutlierRule, cutoffs
from harness.features.store import Store
from harness.selection import by_hash

FOLDER = "cutoffs"


def resolve(
    backbone: Backbone,
    running: RunningModel,
    dataset: Dataset,
    source: Source,
    ruled: Collection[tuple[int, OutlierRule]],
    store: Store | None,
    batch_size: int,
    workers: int,
    skip_bad: bool,
) -> tuple[dict[OutlierRule, float], int]:
    """The cut-off of every rule among ``ruled`` (layer, rule), all of one layer, and the forward
    passes that it took.

    Norms before the final norm, of the patches without padding of at most ``ESTIMATED_ON``
    pictures: those with the smallest sha256 of their id, the same for every model.
    """
    layers, rules = {layer for layer, _ in ruled}, {rule for _, rule in ruled}
    if not any(rule.estimated for rule in rules):
        return cutoffs(rules, np.empty(0, np.float32)), 0
    if len(layers) > 1:
        raise ValueError("rules for outliers of several layers in one request")
    (layer,) = layers
    keys = {}
    if store is not None and can_be_keyed(source.view):
        keys = {rule: cutoff_key(running, source, layer, rule) for rule in rules}
        known = {rule: read_cutoff(store, key) for rule, key in keys.items()}
        found = {rule: value for rule, value in known.items() if value is not None}
        if len(found) == len(rules):
            return found, 0
    read = Read(layer, "token", False)
    wanted = Pass(source.view, frozenset({read}), precision=source.precision)
    tally = Tally(batch_size)
    chosen = sorted(by_hash([sample.id for sample in dataset.samples])[:ESTIMATED_ON])
    norms = []
    for batch in stream(backbone, dataset, wanted, chosen, tally, source.seed, workers, skip_bad):
        found = batch.tokens[read].patches.float().norm(dim=-1).cpu().numpy()
        norms.append(found[inside(batch.geometry, backbone.architecture.patch)])
    values = cutoffs(rules, np.concatenate(norms or [np.empty(0, np.float32)]))
    if store is not None and not tally.bad:  # a bad picture may be mended, and would then count
        for rule, key in keys.items():
            _write(store, key, values[rule])
    return values, tally.forward_passes


def read_cutoff(store: Store, key: Key) -> float | None:
    """None where it is not there, or damaged."""
    data = store.read_note(f"{FOLDER}/{key.digest}.json")
    if data is None:
        return None
    try:
        found = json.loads(data)
        if found["sha256"] != _seal(key, found["cutoff"]):
            return None
        cutoff = float(found["cutoff"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return cutoff if math.isfinite(cutoff) else None


def _write(store: Store, key: Key, cutoff: float) -> None:
    body = {"about": key.about, "cutoff": cutoff, "sha256": _seal(key, cutoff)}
    store.keep_note(f"{FOLDER}/{key.digest}.json", json.dumps(body, indent=1).encode())


def _seal(key: Key, cutoff: object) -> str:
    return hashlib.sha256(canonical_json([key.digest, cutoff])).hexdigest()
