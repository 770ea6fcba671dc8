"""One forward pass over a data set, dealt out as batches of tokens.

Pictures of one size are brought together, so that the device gets full batches without padding
(padding would change numbers). At most ``LOOKAHEAD`` batches' worth of decoded pictures wait, so
memory does not grow with the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from harness.backbone.vit import Backbone, Forward, Precision, Read
from harness.data.dataset import Dataset
from harness.data.joint import Labelled
from harness.data.views import Crop, View
from harness.errors import BadPicture, HarnessError
from harness.features.loading import Loaded, load
from harness.features.order import join_received, join_tokens
from harness.features.outliers import OutlierRule
from harness.features.select import Selector, select
from harness.task import Batch, DenseCrops

LOOKAHEAD = 4
LABEL_BYTES = 2**28
"""Labels that may wait for a full batch; decoded, those of a large picture take 30 MB."""


@dataclass(frozen=True)
class Pass:
    """What one pass over a data set reads, for all its listeners together."""

    view: View
    reads: frozenset[Read]
    attention: frozenset[int] = frozenset()
    received: frozenset[int] = frozenset()
    pixels: bool = False
    precision: Precision = "fp32"
    selectors: frozenset[Selector] = frozenset()
    cutoffs: Mapping[OutlierRule, float] = field(default_factory=dict)
    dense: Labelled | None = None


@dataclass
class Tally:
    """What a pass has done so far. ``batch_size`` shrinks when the device runs out of memory.
    ``bad_labels`` are the ids of those in ``bad`` whose pixels could be used."""

    batch_size: int
    pictures: int = 0
    forward_passes: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    bad_labels: set[str] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)


def stream(
    backbone: Backbone,
    dataset: Dataset,
    wanted: Pass,
    order: Sequence[int],
    tally: Tally,
    seed: int = 0,
    workers: int = 0,
    skip_bad: bool = False,
    on_picture: Callable[[int], None] | None = None,
    shard: int | None = None,
) -> Iterator[Batch]:
    """Run the pictures of ``order`` through the backbone and yield their batches.

    Batches come in order, except that a picture may wait for others of its size. All crops of a
    picture come together (in consecutive batches where their sizes differ). A picture that cannot
    be used raises ``BadPicture``, or with ``skip_bad`` is noted in ``tally.bad``. With ``shard``,
    no batch goes across a multiple of that many pictures of the data set: what stands in a batch
    beside a picture, which can move the last bits of its tokens, then does not depend on where a
    pass began.
    """
    waiting: dict[tuple[tuple[int, int], ...], list[Loaded]] = {}
    held, labels, place = 0, 0, -1

    def flush(group: list[Loaded]) -> Iterator[Batch]:
        yield from _batches(backbone, dataset, wanted, group, tally)
        tally.pictures += len(group)
        if on_picture:
            on_picture(len(group))

    for loaded in load(dataset, wanted.view, order, seed, workers, wanted.dense):
        if shard is not None and loaded.index // shard != place:
            for group in waiting.values():
                yield from flush(group)
            waiting, held, labels, place = {}, 0, 0, loaded.index // shard
        if loaded.bad is not None:
            note_bad(dataset, loaded, tally, skip_bad)
            if on_picture:
                on_picture(1)
            continue
        key = tuple(crop.geometry.padded for crop in loaded.crops)
        group = waiting.setdefault(key, [])
        group.append(loaded)
        held, labels = held + 1, labels + loaded.label_bytes
        # A fold that puts crops together to pictures holds those of which some are still to come:
        # one picture at a time.
        parted = wanted.dense == "pictures" and len(set(key)) > 1
        full = parted or len(group) * len(key) >= tally.batch_size
        if full or held >= LOOKAHEAD * tally.batch_size or labels >= LABEL_BYTES:
            group = waiting.pop(key if full else next(iter(waiting)))
            held, labels = held - len(group), labels - sum(each.label_bytes for each in group)
            yield from flush(group)
    for group in waiting.values():
        yield from flush(group)


def note_bad(dataset: Dataset, loaded: Loaded, tally: Tally, skip_bad: bool) -> None:
    """Count a picture that cannot be used. Raises ``BadPicture`` unless those are skipped."""
    assert loaded.bad is not None
    if not skip_bad:
        raise BadPicture(f"{loaded.bad} (--on-bad-image skip would count it and go on)")
    identity = dataset.samples[loaded.index].id
    tally.bad.append((identity, loaded.bad))
    if loaded.bad_labels:
        tally.bad_labels.add(identity)


def dense_crops(crops: Sequence[Crop]) -> DenseCrops | None:
    """The labels of crops of one padded size, one below the other; None where they bring none."""
    found = [crop.dense for crop in crops if crop.dense is not None]
    if not found or len(found) < len(crops):
        return None

    def stacked(kind: str) -> Tensor | None:
        maps = [getattr(dense, kind) for dense in found]
        return None if any(each is None for each in maps) else torch.from_numpy(np.stack(maps))

    return DenseCrops(stacked("semantic"), stacked("instances"), stacked("depth"))


def _batches(
    backbone: Backbone, dataset: Dataset, wanted: Pass, group: list[Loaded], tally: Tally
) -> Iterator[Batch]:
    """One batch for each size among the crops of a group of alike pictures."""
    by_size: dict[tuple[int, int], list[tuple[int, Crop]]] = {}
    for position, loaded in enumerate(group):
        for crop in loaded.crops:
            by_size.setdefault(crop.geometry.padded, []).append((position, crop))
    for rows in by_size.values():
        crops = [crop for _, crop in rows]
        forward, pixels = _forward(backbone, wanted, crops, tally)
        samples = [dataset.samples[loaded.index] for loaded in group]
        row_ids = [samples[position].id for position, _ in rows]
        yield Batch(
            tokens=forward.tokens,
            attention=forward.attention,
            received=forward.received,
            ids=tuple(sample.id for sample in samples),
            targets=tuple(sample.target for sample in samples),
            sample=tuple(position for position, _ in rows),
            geometry=tuple(crop.geometry for crop in crops),
            pixels=pixels,
            selected={
                selector: select(selector, forward.tokens, row_ids, wanted.cutoffs)
                for selector in wanted.selectors
            },
            crops=tuple(len(loaded.crops) for loaded in group),
            dense=tuple(loaded.dense for loaded in group if loaded.dense is not None),
            dense_crops=dense_crops(crops),
        )


def _forward(
    backbone: Backbone, wanted: Pass, crops: Sequence[Crop], tally: Tally
) -> tuple[Forward, Tensor | None]:
    """Crops of one size through the backbone, in parts of at most ``tally.batch_size``."""
    parts: list[Forward] = []
    kept: list[Tensor] = []
    start = 0
    while start < len(crops):
        part = crops[start : start + tally.batch_size]
        done = _attempt(backbone, wanted, part)
        if done is None:
            _halve(backbone, tally, len(part), crops[start])
            continue
        pixels, forward = done
        parts.append(forward)
        if wanted.pixels:
            kept.append(pixels)
        start += len(part)
        tally.forward_passes += len(part)
    return _joined(parts, wanted), torch.cat(kept) if kept else None


def _attempt(
    backbone: Backbone, wanted: Pass, crops: Sequence[Crop]
) -> tuple[Tensor, Forward] | None:
    """One pass, or None when the memory is full: what filled it is let go of by returning."""
    try:
        pixels = normalise(backbone, crops)
        asked = wanted.reads, wanted.attention, wanted.precision, wanted.received
        return pixels, backbone(pixels, *asked)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return None


def _joined(parts: Sequence[Forward], wanted: Pass) -> Forward:
    if len(parts) == 1:
        return parts[0]
    return Forward(
        {read: join_tokens([part.tokens[read] for part in parts]) for read in wanted.reads},
        {at: torch.cat([part.attention[at] for part in parts]) for at in wanted.attention},
        {at: join_received([part.received[at] for part in parts]) for at in wanted.received},
    )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device's memory, or the machine's, is full."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    said = "can't allocate memory", "not enough memory", "out of memory"  # the last: faiss
    return any(each in str(error) for each in said)


def _halve(backbone: Backbone, tally: Tally, tried: int, crop: Crop) -> None:
    height, width = crop.geometry.padded
    if tried == 1:
        raise HarnessError(
            f"out of memory on {backbone.device} with a single picture of {width}x{height}; "
            f"another device, bf16 (--set precision=bf16), or a smaller max_patches with "
            f"--on-bad-image skip may help"
        )
    tally.batch_size = tried // 2
    tally.notices.append(f"out of memory on {backbone.device}: forward batch is now {tried // 2}")
    if backbone.device.type == "cuda":
        torch.cuda.empty_cache()


def normalise(backbone: Backbone, crops: Sequence[Crop]) -> Tensor:
    """Crops of one padded size -> ``[B, 3, H, W]`` float32 on the device: (x/255 - mean) / std.

    Padding is laid round *after* normalisation, so padded pixels are exactly 0. Pixels travel to
    the device as uint8, a quarter of the bytes.
    """
    facts, device = backbone.architecture, backbone.device
    height, width = crops[0].geometry.padded
    mean, std = _statistics(facts.mean, facts.std, device)
    batch = torch.zeros(len(crops), 3, height, width, device=device)
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, crop in enumerate(crops):
        alike.setdefault((*crop.geometry.pad[:2], *crop.pixels.shape[:2]), []).append(row)
    for (left, top, high, wide), rows in alike.items():
        pinned = device.type == "cuda"
        pixels = torch.empty(len(rows), high, wide, 3, dtype=torch.uint8, pin_memory=pinned)
        for place, row in enumerate(rows):
            pixels[place] = torch.from_numpy(crops[row].pixels)
        seen = pixels.to(device, non_blocking=pinned).permute(0, 3, 1, 2)
        values = seen.float().div_(255).sub_(mean).div_(std)
        inside = batch[:, :, top : top + high, left : left + wide]
        if len(alike) == 1:
            inside.copy_(values)
        else:
            inside[rows] = values
    return batch


@cache
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Each ``[3, 1, 1]`` on the device. Laid there once: copying them would wait for the pass
    before, and no picture would be fetched meanwhile."""
    facts = torch.tensor([mean, std], device=device)[..., None, None]
    return facts[0], facts[1]
