"""``python -m harness.nano.examine nano nano-reg4``: the figures of docs/nano.md.

What was learned (kNN on the classes of scenes) and whether there are artifacts: how the norms of
patch tokens before the final norm are spread, what the outliers sit on, and how like its neighbours
such a patch is at the patch embedding (Darcet et al., 2023, sections 2.1 and 2.2).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.backbone.sources import load_backbone
from harness.backbone.vit import Backbone, Read
from harness.data.catalog import Catalog
from harness.data.coverage import by_patch
from harness.data.dataset import Dataset, First
from harness.data.views import WholePicture
from harness.errors import HarnessError
from harness.features.extract import Pass, Tally, stream
from harness.probes.neighbours import NeighbourIndex, judge
from harness.probes.patch_anatomy import neighbour_cosines
from harness.registry import Registry
from harness.task import Batch

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINOv2's kNN (dinov2/eval/knn.py), the published best k
TIMES = (2.0, 3.0)
_BINS = 24
_BATCH = 50


@dataclass(frozen=True)
class Patches:
    """Of all pictures' patches, flattened: norm, share of object pixels, likeness of neighbours."""

    norms: NDArray[np.float32]
    objects: NDArray[np.float32]
    likeness: NDArray[np.float32]
    """Mean cosine with the up to four neighbours at the patch embedding."""


def features(backbone: Backbone, dataset: Dataset) -> Tensor:
    """The normed global feature of every picture, scaled to length 1, ``[n, D]``."""
    read = Read(backbone.architecture.depth - 1, norm=True)
    rows = []
    for batch in _stream(backbone, dataset, read):
        rows.append(batch.tokens[read].global_.float().cpu())
    return F.normalize(torch.cat(rows))


def knn_hits(backbone: Backbone, train: Dataset, test: Dataset) -> NDArray[np.bool_]:
    """Which pictures of ``test`` kNN over ``train`` puts into their class, ``[n]``."""
    judged = judge(
        NeighbourIndex(features(backbone, train)),
        _labels(train),
        len(train.classes),
        features(backbone, test),
        _labels(test),
        (NEIGHBOURS,),
        TEMPERATURE,
    )
    hits: NDArray[np.bool_] = (judged[NEIGHBOURS].rank == 0).numpy()
    return hits


def patches(backbone: Backbone, dataset: Dataset) -> Patches:
    """Measure every patch of ``dataset`` at the last block and at the patch embedding."""
    last, first = Read(backbone.architecture.depth - 1), Read("embedding")
    side = backbone.architecture.patch
    norms, objects, likeness = [], [], []
    index = 0
    for batch in _stream(backbone, dataset, last, first):
        norms.append(batch.tokens[last].patches.float().norm(dim=-1).cpu().numpy())
        likeness.append(neighbour_cosines(batch.tokens[first].patches).cpu().numpy())
        for _ in batch.ids:
            instances = dataset.dense(index).instances
            assert instances is not None
            rows, columns = (length // side for length in instances.shape)
            whole = instances[: rows * side, : columns * side]
            objects.append(by_patch((whole > 0).astype(np.float32), side))
            index += 1
    return Patches(
        np.concatenate([each.ravel() for each in norms]),
        np.concatenate([each.ravel() for each in objects]),
        np.concatenate([each.ravel() for each in likeness]),
    )


def _stream(backbone: Backbone, dataset: Dataset, *reads: Read) -> Iterator[Batch]:
    view = WholePicture(backbone.architecture.patch, 10_000)
    wanted = Pass(view, frozenset(reads))
    return stream(backbone, dataset, wanted, range(len(dataset.samples)), Tally(_BATCH))


def _labels(dataset: Dataset) -> Tensor:
    return torch.tensor([sample.target.label for sample in dataset.samples])


def _report(name: str, found: Patches) -> None:
    median = float(np.median(found.norms))
    low, high = (float(value) for value in np.quantile(found.norms, (0.01, 0.99)))
    print(f"{name}: norm of patch tokens, last block: median {median:.1f}, 1 % {low:.1f}, ", end="")
    print(f"99 % {high:.1f}, largest {found.norms.max():.1f}")
    counts, edges = np.histogram(found.norms, bins=_BINS)
    for count, edge in zip(counts, edges, strict=False):
        bar = "#" * round(50 * np.log1p(count) / np.log1p(counts.max()))
        print(f"  {edge:7.1f} {count:8,} {bar}")
    print("  (bars are logarithmic)")
    background = found.objects == 0
    share = 100 * background.mean()
    print(f"  of all patches {share:.1f} % show no object; ", end="")
    print(f"neighbours' cosine {found.likeness.mean():.2f}")
    for times in TIMES:
        out = found.norms > times * median
        text = f"  norm > {times:g} x median: {100 * out.mean():.2f} % of patches"
        if out.any():
            text += (
                f", {100 * background[out].mean():.1f} % of these show no object; neighbours' "
                f"cosine {found.likeness[out].mean():.2f}"
            )
        print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures for the models named."""
    parser = argparse.ArgumentParser(prog="python -m harness.nano.examine")
    parser.add_argument("model", nargs="+")
    parser.add_argument("--models", action="append", default=[], type=Path)
    parser.add_argument("--allow-code", action="store_true")
    parser.add_argument("--weights", choices=("released", "random"), default="released")
    parser.add_argument("--train", type=int, default=8000, help="pictures to find neighbours among")
    parser.add_argument("--test", type=int, default=1000)
    options = parser.parse_args(arguments)
    roles = Catalog.load().open("scenes")
    train, test = First(roles["train"], options.train), First(roles["test"], options.test)
    registry = Registry.load(options.models, options.allow_code)
    try:
        for name in options.model:
            backbone = load_backbone(registry.entry(name), weights=options.weights)
            hits = knn_hits(backbone, train, test)
            error = 196 * np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
            print(f"{name} ({options.weights}): kNN top-1 {100 * hits.mean():.1f} % ± {error:.1f}")
            _report(name, patches(backbone, test))
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
