"""What the tests of the feature store share: one small extraction, and processes that die in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import entry

from harness import atomic
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.data.dataset import Dataset, Dense, Sample, Target
from harness.data.views import CentreCrop, View
from harness.documents import read_yaml
from harness.errors import BadPicture
from harness.features.extract import Pass, Tally
from harness.features.keys import RunningModel, Source
from harness.features.outliers import OutlierRule
from harness.features.select import Selector
from harness.features.serve import Reader, batches, stored_features
from harness.features.store import Store, shard_size
from harness.registry import ModelEntry

SHARD = 8
BATCH = 3  # no divisor of a shard: where batches begin can be seen
VIEW = CentreCrop(30, 28)
ONE = (Selector("global", 3),)
PATCHES = Selector("patches", 3, half=True)
SELECTORS = (*ONE, Selector("patch-mean", 3), Selector("register", 2, seed=5), PATCHES)
Found = dict[Selector, dict[str, torch.Tensor]]


class Noise(Dataset):
    """Small pictures of noise, each by its index, and depth that tells the index; of ``broken``
    ones the pixels cannot be used, of ``unlabelled`` ones the depth."""

    name, split, classes = "noise", "test", ("a", "b")

    def __init__(
        self, count: int, broken: Collection[int] = (), unlabelled: Collection[int] = ()
    ) -> None:
        self.samples = [Sample(f"p{i}", (32, 30), Target(label=i % 2)) for i in range(count)]
        self.broken, self.unlabelled = frozenset(broken), frozenset(unlabelled)

    def dense(self, index: int) -> Dense:
        if index in self.unlabelled:
            raise BadPicture(f"p{index}: torn depth")
        return Dense(depth=np.full((30, 32), index + 1, np.float32))

    def picture(self, index: int) -> NDArray[np.uint8]:
        if index in self.broken:
            raise BadPicture(f"p{index}: torn")
        return np.random.default_rng(index).integers(0, 256, (30, 32, 3), np.uint8)


@cache
def tiny_entry() -> ModelEntry:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "models.yaml"
        file.write_text(entry("tiny-reg4", 4))
        facts = read_yaml(file).data["tiny-reg4"]
    return ModelEntry.model_validate({"name": "tiny-reg4", **facts})


@cache
def tiny_backbone() -> Backbone:
    return load_backbone(tiny_entry(), "cpu")


def model() -> RunningModel:
    return RunningModel.of(tiny_backbone(), tiny_entry())


def source(dataset: Dataset, view: View = VIEW) -> Source:
    return Source(dataset.name, dataset.split, dataset.fingerprint(), view, "fp32", 0)


def extract(
    store: Store | None,
    dataset: Dataset,
    selectors: Sequence[Selector] = ONE,
    skip_bad: bool = False,
    from_store: bool = True,
    batch_size: int = BATCH,
    cutoffs: Mapping[OutlierRule, float] | None = None,
) -> tuple[Found, Tally]:
    """Each selector's vector of every picture, by id, and what the pass cost."""
    backbone, tally = tiny_backbone(), Tally(batch_size)
    reads = frozenset().union(*(selector.reads for selector in selectors))
    wanted = Pass(VIEW, reads, selectors=frozenset(selectors), cutoffs=cutoffs or {})
    features: Mapping[Selector, Any] = {}
    if store is not None:
        pictures = len(dataset.samples)
        features = stored_features(store, model(), source(dataset), wanted, pictures)
    shard = min(SHARD, shard_size(store, selectors, backbone.architecture, VIEW))
    counts: list[int] = []
    reader = Reader(backbone, dataset, wanted, tally, 0, 0, skip_bad, shard, counts.append)
    found: Found = {selector: {} for selector in selectors}
    for batch in batches(reader, features, from_store):
        for selector, rows in found.items():
            for row, picture in enumerate(batch.sample):
                assert batch.ids[picture] not in rows
                rows[batch.ids[picture]] = batch.selected[selector].values[row].clone()
    assert sum(counts) == len(dataset.samples), "progress ends at the end"
    return found, tally


def same(ours: Found, theirs: Found) -> bool:
    """Whether two extractions agree to the bit, in every picture and in their order."""
    return ours.keys() == theirs.keys() and all(
        list(ours[selector]) == list(theirs[selector])
        and all(torch.equal(ours[selector][i], theirs[selector][i]) for i in ours[selector])
        for selector in ours
    )


def in_process(work: Callable[[], object]) -> multiprocessing.Process:
    """``work`` in a child that is forked: it has torch and the model already."""

    def begin() -> None:
        torch.set_num_threads(1)
        work()

    tiny_backbone().weights_digest  # noqa: B018 (computed once, for all children)
    process: Any = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    started: multiprocessing.Process = process
    return started


class Moments:
    """Counts the moments at which a process may die (a forward pass, a half-written file, a rename)
    and dies by SIGKILL at moment ``fatal``."""

    def __init__(self, fatal: int = -1) -> None:
        self.count, self._fatal = 0, fatal
        forward, write, rename = Backbone.__call__, atomic.write_through, Path.replace

        def counted_forward(backbone: Backbone, *rest: Any) -> Any:
            self._pass()
            return forward(backbone, *rest)

        def counted_write(path: Path, data: bytes) -> None:
            path.write_bytes(data[: len(data) // 2])
            self._pass()
            write(path, data)

        def counted_rename(path: Path, target: Path) -> Path:
            self._pass()
            return rename(path, target)

        self._undo = forward, write, rename
        self._put(counted_forward, counted_write, counted_rename)

    def _pass(self) -> None:
        if self.count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def _put(self, forward: Any, write: Any, rename: Any) -> None:
        Backbone.__call__ = forward  # type: ignore[method-assign]
        atomic.write_through = write
        Path.replace = rename  # type: ignore[method-assign]

    def __enter__(self) -> Moments:
        return self

    def __exit__(self, *_: object) -> None:
        self._put(*self._undo)
