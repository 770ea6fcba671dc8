"""Which neurons make outliers: the files that test-time registers read.

The search is algorithm 1 of "Vision Transformers Don't Need Trained Registers" (arXiv:2506.08010)
with the defaults of its appendix A.4: a patch is an outlier above the mean and three standard
deviations, only layers up to the one where outliers first appear are searched, and as many neurons
are moved as make outliers vanish.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.backbone.arithmetic import exact_float32
from harness.backbone.interventions import Intervention, second_linear
from harness.backbone.vit import Backbone, Read
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule
from harness.interventions import CurvePoint, NeuronFile, Rule, text
from harness.options import Options
from harness.plan import Cell
from harness.progress import Progress
from harness.register_pictures import Pictures, ready, unchanged, write
from harness.registry import ModelEntry

PICTURES = 500
"""How many pictures the published code reads."""
SWEPT = 100
"""Pictures, at most, on which each number of neurons is tried."""
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
VANISHED = 0.01
"""The share of outliers that may be left where they count as gone."""
_SPARSE = 0.5  # a neuron below this, at this share of tokens, is sparse (shared/algorithms.py)


@dataclass(frozen=True)
class Search:
    """How neurons are looked for. ``threshold`` is a norm, ``quantile0.98`` or ``mean+3sd`` at
    ``detect_layer``; of ``top_layer`` and ``top_k``, None is found. ``sparse``: only neurons below
    0.5 at half of a picture's tokens count there. ``size`` is the side of the pictures in pixels,
    by default the model's own."""

    threshold: str = "mean+3sd"
    detect_layer: int = -2
    top_layer: int | None = None
    top_k: int | None = None
    sparse: bool = False
    rule: Rule = "shared-scalar"
    pictures: int = PICTURES
    size: int | None = None

    def __post_init__(self) -> None:
        try:
            OutlierRule.parse(self.threshold)
        except ValueError as error:
            raise HarnessError(f"--threshold {error}") from None
        for name, value in (("--pictures", self.pictures), ("--top-k", self.top_k)):
            if value is not None and value < 1:
                raise HarnessError(f"{name} {value}: at least 1")


def find(
    search: Search, options: Options, out: Path, progress: Progress | None = None
) -> NeuronFile:
    """Find the register neurons of the first model of ``options`` on pictures of its first data
    set, and write them to ``out``.

    Raises ``HarnessError`` where no patch is an outlier, for a layer that there is not, for a
    block without an MLP of two linears, and where ``out`` is there (unless ``overwrite``).
    """
    backbone, pictures = ready(search.pictures, search.size, options, out, progress)
    with exact_float32():
        found = _find(search, backbone, pictures)
    write(out, text(found).encode())
    return found


@contextmanager
def searched(
    backbone: Backbone, cell: Cell, options: Options, progress: Progress
) -> Iterator[tuple[Backbone, int]]:
    """The backbone that ``cell`` runs, and the forward passes that it took to find it.

    Of an entry with ``neurons: auto``, ``backbone`` is as it was trained, and the neurons are found
    on the role train of the cell's data set (of a further test set: of the data set that its head
    was trained on). Of any other it is ready.
    """
    added = cell.entry.test_time_registers
    if added is None or not added.searched:
        yield backbone, 0
        return
    search = Search(rule=added.rule)
    dataset = (cell.base or cell).dataset
    pictures = Pictures(backbone, dataset, options, search.pictures, search.size, progress)
    with exact_float32():
        found = _find(search, backbone, pictures)
    change = Intervention(added.count, tuple(found.neurons), added.rule)
    with backbone.changed(change) as changed:
        yield changed, pictures.passes


def as_loaded(entry: ModelEntry) -> ModelEntry:
    """The entry to load: with ``neurons: auto``, as it was trained."""
    added = entry.test_time_registers
    return unchanged(entry) if added is not None and added.searched else entry


def _find(search: Search, backbone: Backbone, pictures: Pictures) -> NeuronFile:
    detect = _layer("--detect-layer", search.detect_layer, backbone)
    norms = _norms(backbone, pictures, detect)
    rule = OutlierRule.parse(search.threshold)
    threshold = rule.cutoff(norms[detect].reshape(-1))
    outliers = norms[detect] > threshold
    if not outliers.any():
        raise HarnessError(
            f"model {backbone.name!r}: no patch of {len(pictures.order)} pictures has a norm above "
            f"{threshold:.6g} after layer {detect} (the largest: {norms[detect].max():.6g}), so "
            f"there is nothing to move; --threshold sets another"
        )
    if search.top_layer is None:
        # Where they first appear: at least half as many as there are where they are looked for.
        most = outliers.mean() / 2
        top = next(
            layer for layer in range(detect + 1) if (norms[layer] > threshold).mean() >= most
        )
    else:
        top = _layer("--top-layer", search.top_layer, backbone)
    scores = _scores(backbone, pictures, outliers, top, search.sparse)
    there = int(np.isfinite(scores).sum())
    if search.top_k is not None and search.top_k > there:
        raise HarnessError(f"--top-k {search.top_k}: layers to {top} have {there:,} neurons")
    ranked = np.argsort(-scores, axis=None, kind="stable")[
        : min(search.top_k or max(COUNTS), there)
    ]
    pairs = [divmod(int(place), scores.shape[1]) for place in ranked]
    curve = _curve(search, backbone, pictures, norms[detect], detect, threshold, pairs)
    best = min(curve[1:], key=lambda point: (point.outlier_fraction, point.neurons))
    chosen = pairs[: best.neurons]
    return NeuronFile(
        model=backbone.name,
        weights_digest=backbone.weights_digest,
        neurons=chosen,
        scores=[float(scores[pair]) for pair in chosen],
        settings={
            **asdict(search),
            "detect_layer": detect,
            "top_layer": top,
            "top_k": best.neurons,
            "threshold_norm": threshold,
            "pictures": len(pictures.order),
            "size": pictures.facts["size"],
        },
        pictures=pictures.facts,
        curve=curve,
    )


def _norms(backbone: Backbone, pictures: Pictures, last: int) -> NDArray[np.float32]:
    """``[layers, pictures, H, W]``: norms of patches before the final norm, to layer ``last``."""
    reads = [Read(layer) for layer in range(last + 1)]
    parts = []
    for _, pixels in pictures.batches("norms", range(len(pictures.order))):
        tokens = backbone(pixels, reads).tokens
        norms = [tokens[read].patches.norm(dim=-1) for read in reads]
        parts.append(torch.stack(norms).cpu().numpy())
    return np.concatenate(parts, axis=1)


def _scores(
    backbone: Backbone,
    pictures: Pictures,
    outliers: NDArray[np.bool_],
    top: int,
    sparse: bool,
) -> NDArray[np.float64]:
    """``[layers, neurons]``: over the pictures that have outliers, the mean of a neuron's magnitude
    at them. Layers of fewer neurons than the widest have a score of -inf beyond their own."""
    layout = backbone.architecture.layout
    blocks: Any = backbone.module.blocks
    linears = [second_linear(backbone.name, block) for block in list(blocks)[: top + 1]]
    sums = [torch.zeros(each.in_features, dtype=torch.float64) for each in linears]
    shares = torch.empty(0)  # [B, 1, patches] of the batch: each outlier's share of its picture's

    def listen(total: Tensor) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            (neurons,) = inputs
            seen = (shares @ neurons[:, layout.patch_slice].float().abs())[:, 0]
            if sparse:
                quiet = (neurons < _SPARSE).float().mean(1) >= _SPARSE
                seen = seen * quiet
            total.add_(seen.double().sum(0).cpu())

        return hook

    with_any = np.flatnonzero(outliers.any((1, 2))).tolist()
    with ExitStack() as hooks:
        for linear, total in zip(linears, sums, strict=True):
            hooks.callback(linear.register_forward_pre_hook(listen(total)).remove)
        for places, pixels in pictures.batches("neurons", with_any):
            masks = torch.from_numpy(outliers[places]).flatten(1).float().to(backbone.device)
            shares = (masks / masks.sum(1, keepdim=True))[:, None]
            backbone(pixels, [Read(top)])
    scores = np.full((top + 1, max(map(len, sums))), -math.inf)
    for row, total in zip(scores, sums, strict=True):
        row[: len(total)] = (total / len(with_any)).numpy()
    return scores


def _curve(
    search: Search,
    backbone: Backbone,
    pictures: Pictures,
    norms: NDArray[np.float32],
    detect: int,
    threshold: float,
    pairs: Sequence[tuple[int, int]],
) -> list[CurvePoint]:
    """Without a test-time register, then with more and more neurons, until outliers vanish."""
    places = range(min(SWEPT, len(pictures.order)))
    before = norms[: len(places)]
    curve = [
        CurvePoint(
            neurons=0,
            outlier_fraction=float((before > threshold).mean()),
            largest_norm=float(before.max()),
            register_norm=None,
        )
    ]
    read = Read(detect)
    counts = [k for k in COUNTS if k <= len(pairs)] if search.top_k is None else [len(pairs)]
    for count in counts:
        change = Intervention(1, tuple(pairs[:count]), search.rule)
        above, seen, largest, register = 0, 0, 0.0, 0.0
        with backbone.changed(change) as changed:
            for _, pixels in pictures.batches(f"{count} neurons moved", places):
                tokens = changed(pixels, [read]).tokens[read]
                after = tokens.patches.norm(dim=-1)
                above += int((after > threshold).sum())
                seen += after.numel()
                largest = max(largest, float(after.max()))
                register = max(register, float(tokens.registers[:, -1].norm(dim=-1).max()))
        curve.append(
            CurvePoint(
                neurons=count,
                outlier_fraction=above / seen,
                largest_norm=largest,
                register_norm=register,
            )
        )
        if above / seen <= VANISHED * curve[0].outlier_fraction:
            break
    return curve


def _layer(option: str, layer: int, backbone: Backbone) -> int:
    depth = backbone.architecture.depth
    if not -depth <= layer < depth:
        raise HarnessError(f"{option} {layer}: model {backbone.name!r} has {depth} layers")
    return layer % depth
