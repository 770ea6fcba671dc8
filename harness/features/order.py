"""In which order pictures are read, and how rows are dealt out in steps of one size."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from harness.backbone.attention import Received
from harness.backbone.layout import Tokens
from harness.errors import HarnessError
from harness.features.select import Selected
from harness.task import Batch, DenseCrops, TokenRequest


def indices(request: TokenRequest, pictures: int, seed: int) -> Sequence[int]:
    """The pictures to read, in order: each once, or ``steps`` × ``step_size`` in shuffled epochs.

    The order depends on the seed and the number of pictures only, never on workers or batches.
    """
    if request.order == "once":
        return range(pictures)
    return shuffled(pictures, request.pictures or 0, seed)


def shuffled(pictures: int, count: int, seed: int) -> array[int]:
    """The first ``count`` of endless epochs over ``pictures``, each shuffled by (seed, epoch).

    Four bytes each: DINOv2's linear classifier reads 12.8 million.
    """
    order = array("i")
    epoch = 0
    while pictures and len(order) < count:
        permutation = np.random.default_rng((seed, epoch)).permutation(pictures)
        order.frombytes(permutation[: count - len(order)].astype(np.intc).tobytes())
        epoch += 1
    return order


class Steps:
    """Deals out whole pictures, exactly ``size`` of them each time (the last may be smaller).

    ``add`` raises ``HarnessError`` when batches differ in their patch grid: rows could not be
    joined. With no size, batches pass through as they come.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._pending: list[Batch] = []
        self._padded: tuple[int, int] | None = None

    def add(self, batch: Batch) -> Iterator[Batch]:
        if self._size is None:
            yield batch
            return
        size = batch.geometry[0].padded
        if self._padded not in (None, size):
            raise HarnessError("steps of one size need a view that gives pictures of one size")
        self._padded = size
        self._pending.append(batch)
        while sum(len(part.ids) for part in self._pending) >= self._size:
            joined = _join(self._pending)
            rest = range(self._size, len(joined.ids))
            self._pending = [_pictures(joined, rest)] if rest else []
            yield _pictures(joined, range(self._size))

    def rest(self) -> Iterator[Batch]:
        """What is left at the end of a pass."""
        if self._pending:
            yield _join(self._pending)
            self._pending = []


def _join(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    starts = np.cumsum([0, *(len(batch.ids) for batch in batches)]).tolist()
    return Batch(
        tokens={read: join_tokens([b.tokens[read] for b in batches]) for read in first.tokens},
        attention={at: torch.cat([b.attention[at] for b in batches]) for at in first.attention},
        received={at: join_received([b.received[at] for b in batches]) for at in first.received},
        ids=tuple(image for batch in batches for image in batch.ids),
        targets=tuple(target for batch in batches for target in batch.targets),
        sample=tuple(
            start + picture
            for start, batch in zip(starts, batches, strict=False)
            for picture in batch.sample
        ),
        geometry=tuple(geometry for batch in batches for geometry in batch.geometry),
        pixels=None
        if first.pixels is None
        else torch.cat([b.pixels for b in batches if b.pixels is not None]),
        selected={
            selector: Selected(
                torch.cat([batch.selected[selector].values for batch in batches]),
                torch.cat([batch.selected[selector].there for batch in batches]),
            )
            for selector in first.selected
        },
        crops=tuple(count for batch in batches for count in batch.crops),
        dense=tuple(dense for batch in batches for dense in batch.dense),
        dense_crops=_join_crops([b.dense_crops for b in batches if b.dense_crops is not None]),
    )


def _join_crops(parts: Sequence[DenseCrops]) -> DenseCrops | None:
    def joined(kind: str) -> torch.Tensor | None:
        maps = [getattr(part, kind) for part in parts]
        return None if any(each is None for each in maps) else torch.cat(maps)

    if not parts:
        return None
    return DenseCrops(joined("semantic"), joined("instances"), joined("depth"))


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several batches of one grid, one after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Tokens(
        cls=None if first.cls is None else torch.cat([p.cls for p in parts if p.cls is not None]),
        registers=torch.cat([part.registers for part in parts]),
        patches=torch.cat([part.patches for part in parts]),
        pooled=None
        if first.pooled is None
        else torch.cat([p.pooled for p in parts if p.pooled is not None]),
    )


def join_received(parts: Sequence[Received]) -> Received:
    """What several batches of one grid received, one after the other."""
    return Received(
        join_tokens([part.share for part in parts]),
        join_tokens([part.norm for part in parts]),
        torch.cat([part.rank for part in parts]),
    )


def _pictures(batch: Batch, chosen: range) -> Batch:
    """The rows of a run of pictures; crops of one picture stand together, so they are a slice."""
    rows = [row for row, picture in enumerate(batch.sample) if picture in chosen]
    cut = slice(rows[0], rows[-1] + 1)

    def part(tokens: Tokens) -> Tokens:
        return Tokens(
            None if tokens.cls is None else tokens.cls[cut],
            tokens.registers[cut],
            tokens.patches[cut],
            None if tokens.pooled is None else tokens.pooled[cut],
        )

    return Batch(
        tokens={read: part(tokens) for read, tokens in batch.tokens.items()},
        attention={layer: rows_[cut] for layer, rows_ in batch.attention.items()},
        received={
            layer: Received(part(found.share), part(found.norm), found.rank[cut])
            for layer, found in batch.received.items()
        },
        ids=batch.ids[chosen.start : chosen.stop],
        targets=batch.targets[chosen.start : chosen.stop],
        sample=tuple(picture - chosen.start for picture in batch.sample[cut]),
        geometry=batch.geometry[cut],
        pixels=None if batch.pixels is None else batch.pixels[cut],
        selected={
            selector: Selected(found.values[cut], found.there[cut])
            for selector, found in batch.selected.items()
        },
        crops=batch.crops[chosen.start : chosen.stop],
        dense=batch.dense[chosen.start : chosen.stop],
        dense_crops=None
        if batch.dense_crops is None
        else DenseCrops(
            *(
                None if labels is None else labels[cut]
                for labels in (
                    batch.dense_crops.semantic,
                    batch.dense_crops.instances,
                    batch.dense_crops.depth,
                )
            )
        ),
    )
