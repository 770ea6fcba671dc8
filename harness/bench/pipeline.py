"""How fast, as ratios measured in one run: a number from another machine says little."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from harness.backbone.arithmetic import exact_float32
from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone, Precision, Read
from harness.bench.clock import timed
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, First, places_by_id
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.features.extract import Pass, Tally, normalise, stream
from harness.features.loading import processes
from harness.options import Options
from harness.registry import Registry

_REPEATS = 20
_PAINTED = 500


def extract(options: Options, precision: Precision = "fp32") -> dict[str, Any]:
    """Images a second of the whole pipeline (read, decode, pad, copy, forward) on a data set's
    test pictures, of the bare forward over the very same batches, and their ratio.

    The first model and data set of ``options`` are taken. The bare forward is given normalised
    batches that lie on the device; only the passes are timed. Both read the last layer's normed
    tokens.
    """
    model, dataset = options.models[0], options.datasets[0]
    registry = Registry.load(options.model_files, options.allow_code)
    opened = Catalog.load(options.dataset_files, options.data_root).open(dataset)
    if "test" not in opened:
        raise HarnessError(f"data set {dataset!r} has no test split to read")
    pictures: Dataset = opened["test"]
    if options.limit is not None:
        pictures = First(pictures, options.limit)
    backbone = load_backbone(
        registry.entry(model),
        options.device,
        options.weights,
        options.seed,
        options.compiled,
        registry,
    )
    facts = backbone.architecture
    wanted = Pass(
        view=WholePicture(facts.patch, 65_535),
        reads=frozenset({Read(facts.depth - 1, "token", True)}),
        precision=precision,
    )
    count = processes(options.workers)
    order = list(range(len(pictures.samples)))
    places = places_by_id(pictures)
    _warm_up(backbone, wanted, pictures)
    tally = Tally(options.batch_size)
    batches: list[tuple[int, ...]] = []
    began = time.perf_counter()
    with exact_float32():
        for batch in stream(backbone, pictures, wanted, order, tally, 0, count):
            batches.append(tuple(places[image] for image in batch.ids))
        _wait(backbone)
    pipeline = time.perf_counter() - began
    bare = _bare(backbone, pictures, wanted, batches)
    total = len(order)
    return {
        "model": model,
        "dataset": dataset,
        "pictures": total,
        "device": str(backbone.device),
        "precision": backbone.precision(precision),
        "batch_size": options.batch_size,
        "workers": count,
        "threads": torch.get_num_threads(),
        "pipeline_images_per_second": round(total / pipeline, 3),
        "bare_forward_images_per_second": round(total / bare, 3),
        "pipeline_over_bare": round(bare / pipeline, 4),
    }


def _bare(
    backbone: Backbone, pictures: Dataset, wanted: Pass, batches: Sequence[tuple[int, ...]]
) -> float:
    """Seconds of the passes alone, batch by batch as the pipeline had them."""
    seconds = 0.0
    with exact_float32():
        for indices in batches:
            crops = [
                crop
                for index in indices
                for crop in wanted.view(
                    pictures.picture(index), pictures.samples[index].target, 0, index
                )
            ]
            pixels = normalise(backbone, crops)
            _wait(backbone)
            began = time.perf_counter()
            backbone(pixels, wanted.reads, (), wanted.precision)
            _wait(backbone)
            seconds += time.perf_counter() - began
    return seconds


def _warm_up(backbone: Backbone, wanted: Pass, pictures: Dataset) -> None:
    for _ in stream(backbone, pictures, wanted, [0, 0], Tally(1)):
        _wait(backbone)


def _wait(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)


def paint(limit: int | None = None) -> dict[str, Any]:
    """Pictures a second of ``scenes`` at 128×128 on one core: pixels, boxes, masks and depth."""
    if limit is not None and limit < 1:
        raise HarnessError(f"--limit {limit}: at least 1")
    pictures = First(Catalog.load().open("scenes")["test"], limit or _PAINTED)
    count = len(pictures.samples)
    pictures.dense(0)
    began = time.perf_counter()
    for index in range(count):
        pictures.picture(index)
        pictures.dense(index)
        _ = pictures.samples[index].target
    seconds = time.perf_counter() - began
    return {
        "dataset": "scenes",
        "pictures": count,
        "pictures_per_second": round(count / seconds, 3),
    }


def lost(device: str = "auto") -> dict[str, Any]:
    """All of LOST after the forward at 37×37 patches of 1,024 channels, against its Gram matrix
    alone: medians of interleaved runs, and their ratio."""
    from harness.backbone.sources import choose_device
    from harness.task_names import find_task

    place = choose_device(device)
    task: Any = find_task("lost")
    keys = torch.randn(37, 37, 1024, generator=torch.Generator().manual_seed(0)).to(place)

    def gram() -> object:
        flat = keys.flatten(0, 1)
        return flat @ flat.T

    def whole() -> object:
        return task.look(keys, 14, (518, 518)).box

    with exact_float32():
        for work in (gram, whole):
            timed(work, place)
        pairs = [(timed(gram, place), timed(whole, place)) for _ in range(_REPEATS)]
    alone, together = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "device": str(place),
        "threads": torch.get_num_threads(),
        "patches": 37 * 37,
        "channels": 1024,
        "repeats": _REPEATS,
        "gram_ms": round(alone * 1e3, 3),
        "lost_ms": round(together * 1e3, 3),
        "lost_over_gram": round(together / alone, 4),
    }
