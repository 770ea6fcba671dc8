"""The linear grid trained on stored features, against the same on a stream of pictures: ratios of
one run."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone
from harness.bench.clock import timed
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, First, Role
from harness.errors import HarnessError
from harness.features.extract import Pass, Tally, stream
from harness.features.keys import RunningModel, Source
from harness.features.loading import processes
from harness.features.order import Steps, indices
from harness.features.serve import Reader, batches, stored_features
from harness.features.store import Store, shard_size
from harness.options import Options
from harness.registry import ModelEntry, Registry
from harness.task import Batch, Context, Protocol, TokenRequest
from harness.task_names import find_task

_PASSES = 4
_PICTURES = 64


def stored(options: Options, passes: int = _PASSES, step_size: int = 32) -> dict[str, Any]:
    """Seconds in which ``linear`` has trained DINOv2's 52 heads for so many ``passes`` over the
    train pictures of the first data set of ``options`` (64 unless it has a limit), their extraction
    and the writing of the store counted, and those of ``dinov2-linear``, which runs every picture
    in every pass; and of one step of each, where the features are there.

    ``share_of_passes`` is how many times faster it was, divided by the passes: 1 where nothing but
    the forward pass costs anything.
    """
    registry = Registry.load(options.model_files, options.allow_code)
    entry = registry.entry(options.models[0])
    opened = Catalog.load(options.dataset_files, options.data_root).open(options.datasets[0])
    if not {"train", "test"} <= opened.keys():
        raise HarnessError(f"data set {options.datasets[0]!r}: splits train and test are needed")
    datasets: dict[Role, Dataset] = {
        "train": First(opened["train"], options.limit or _PICTURES),
        "test": First(opened["test"], 1),
    }
    backbone = load_backbone(
        entry, options.device, options.weights, options.seed, options.compiled, registry
    )
    pictures = len(datasets["train"].samples)
    steps = math.ceil(passes * pictures / step_size)
    protocols = find_task("linear").protocols
    common = {"batch_size": step_size}
    # Alike but for where features come from: one picture chooses, and nothing is trained again.
    alike = {"epochs": passes, "min_steps": 1, "selection_share": 1e-9, "refit": False}
    with exact_float32(), tempfile.TemporaryDirectory() as folder:
        work = _Work(backbone, entry, datasets, options, Store(Path(folder)))
        work.warm_up(protocols["linear"])
        ours = work.train(protocols["linear"].changed({**common, **alike}))
        theirs = work.train(protocols["dinov2-linear"].changed({**common, "steps": steps}))
    faster = theirs.seconds / ours.seconds
    ours_step, theirs_step = ours.fitted / steps, theirs.seconds / steps
    return {
        "model": entry.name,
        "device": str(backbone.device),
        "threads": torch.get_num_threads(),
        "pictures": pictures,
        "passes": passes,
        "steps": steps,
        "step_size": step_size,
        "stored_seconds": round(ours.seconds, 3),
        "streamed_seconds": round(theirs.seconds, 3),
        "times_faster": round(faster, 3),
        "share_of_passes": round(faster / passes, 3),
        "stored_step_ms": round(1e3 * ours_step, 3),
        "streamed_step_ms": round(1e3 * theirs_step, 3),
        "step_times_faster": round(theirs_step / ours_step, 1),
    }


class _Seconds(NamedTuple):
    """Of all of a training, and of what was left to do when the last picture had been read."""

    seconds: float
    fitted: float


@dataclass(frozen=True)
class _Work:
    backbone: Backbone
    entry: ModelEntry
    datasets: Mapping[Role, Dataset]
    options: Options
    store: Store

    def train(self, protocol: Protocol) -> _Seconds:
        task, facts = find_task("linear"), self.backbone.architecture
        request = task.requests(facts, self.datasets, protocol)["train"]
        place = self.backbone.device
        evaluation = task.start(Context(facts, self.datasets, protocol, 0, {}, str(place)))
        dealt = Steps(request.step_size)
        began = time.perf_counter()
        for batch in self._read(request):
            for part in dealt.add(batch):
                evaluation.update("train", part)
        for part in dealt.rest():
            evaluation.update("train", part)
        fitted = timed(lambda: evaluation.end("train"), place)
        return _Seconds(time.perf_counter() - began, fitted)

    def warm_up(self, protocol: Protocol) -> None:
        """Libraries set themselves up on their first call."""
        request = find_task("linear").requests(self.backbone.architecture, self.datasets, protocol)
        wanted = _pass(request["train"])
        for _ in stream(self.backbone, self.datasets["train"], wanted, [0, 0], Tally(2)):
            pass

    def _read(self, request: TokenRequest) -> Iterator[Batch]:
        """Train: streamed, or each picture once and into the store."""
        train, wanted = self.datasets["train"], _pass(request)
        pictures = len(train.samples)
        tally, workers = Tally(self.options.batch_size), processes(self.options.workers)
        if request.order == "shuffled":
            order = indices(request, pictures, 0)
            yield from stream(self.backbone, train, wanted, order, tally, 0, workers)
            return
        running = RunningModel.of(self.backbone, self.entry, self.options.weights)
        facts = train.name, train.split, train.fingerprint(), request.view, request.precision, 0
        features = stored_features(self.store, running, Source(*facts), wanted, pictures)
        facts_of = self.backbone.architecture
        shard = shard_size(self.store, request.select, facts_of, request.view)
        how = tally, 0, workers, False, shard, lambda _: None
        yield from batches(Reader(self.backbone, train, wanted, *how), features, True)


def _pass(request: TokenRequest) -> Pass:
    return Pass(
        view=request.view,
        reads=request.reads,
        precision=request.precision,
        selectors=frozenset(request.select),
    )
