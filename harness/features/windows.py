"""Predictions of the crops of one picture -> one prediction of every pixel, at its stored size.

Overlapping windows are averaged, as mmsegmentation's ``slide_inference`` does; so are the scales
and flips of a picture. It is done a band of rows at a time: what windows predict at the size of
their patch grid is small, and the prediction of all classes at all pixels of a large picture is
not (2000 x 3000 pixels and 150 classes are 3.6 GB).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from harness.data.views import Geometry

BAND_BYTES = 2**25
"""What one band of a prediction takes, about; three or four of that size are held at once."""


def label_map(
    logits: Sequence[Tensor], geometry: Sequence[Geometry], stretched: bool = False
) -> Tensor:
    """The most likely class of every pixel of a picture, ``[height, width]`` int64, stored size.

    ``logits[i] [C, rows, columns]`` are those of the crop of ``geometry[i]``; each pixel needs one
    that covers it. Crops of one resized picture are averaged before, resized and flipped pictures
    after the softmax. Classes that are equally likely: the first. ``stretched`` as in ``bands``.
    """
    several = len({_map_of(each) for each in geometry}) > 1
    parts = bands(logits, geometry, stretched, probabilities=several)
    return torch.cat([part.argmax(0) for part in parts])


def full_size(
    values: Sequence[Tensor], geometry: Sequence[Geometry], stretched: bool = False
) -> Tensor:
    """Numbers of every pixel of a picture ``[C, height, width]``, stored size, averaged over all
    crops (depth: C is 1). NaN where no crop is."""
    return torch.cat(list(bands(values, geometry, stretched)), dim=1)


def bands(
    values: Sequence[Tensor],
    geometry: Sequence[Geometry],
    stretched: bool = False,
    probabilities: bool = False,
) -> Iterator[Tensor]:
    """The prediction of a picture, ``[C, some rows, width]`` float32 at a time from the top.

    All resizing is bilinear, corners not aligned. A crop's grid is stretched over the crop with its
    padding, and the padding cut off. ``stretched`` lays it over the crop without: the published
    code does so where its backbone pads by itself (DINOv2's windows of 512 seen as 518).
    ``probabilities`` takes the softmax over C of each resized or flipped picture before they are
    averaged.
    """
    groups: dict[tuple[tuple[int, int], bool], list[tuple[Tensor, Geometry]]] = {}
    for each, where in zip(values, geometry, strict=True):
        groups.setdefault(_map_of(where), []).append((each.float(), where))
    width, height = geometry[0].stored
    widest = max(width, *(size[0] for size, _ in groups))
    rows = max(1, BAND_BYTES // (4 * len(values[0]) * widest))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        total: Tensor | None = None
        for (size, _), members in groups.items():
            part = _stored_rows(members, size, (width, height), first, last, stretched)
            if probabilities:
                part = part.softmax(0)
            total = part if total is None else total.add_(part)
        assert total is not None
        yield total.div_(len(groups))


def _map_of(geometry: Geometry) -> tuple[tuple[int, int], bool]:
    """Crops of which this agrees are of one resized, or resized and flipped, picture."""
    return geometry.resized, geometry.mirrored


def _stored_rows(
    members: Sequence[tuple[Tensor, Geometry]],
    resized: tuple[int, int],
    stored: tuple[int, int],
    first: int,
    last: int,
    stretched: bool,
) -> Tensor:
    """Rows ``first`` to ``last`` (exclusive) of the stored picture, from one resized picture."""
    device = members[0][0].device
    if resized == stored:
        return _resized_rows(members, resized[0], first, last, stretched)
    down = _between(resized[1], stored[1], first, last, device)
    top, bottom = int(down[0][0]), int(down[1][-1]) + 1
    found = _resized_rows(members, resized[0], top, bottom, stretched)
    # Columns first: a larger picture has them in fewer rows, and rows are quicker to pick.
    found = _interpolated(found, 2, _between(resized[0], stored[0], 0, stored[0], device))
    return _interpolated(found, 1, (down[0] - top, down[1] - top, down[2]))


def _resized_rows(
    members: Sequence[tuple[Tensor, Geometry]], width: int, first: int, last: int, stretched: bool
) -> Tensor:
    """Rows ``first`` to ``last`` of a resized picture, ``[C, rows, width]``: the mean of the crops
    that lie there."""
    values = members[0][0]
    total = values.new_zeros(len(values), last - first, width)
    count = values.new_zeros(last - first, width)
    for values, geometry in members:
        x, y, wide, high = geometry.crop
        top, bottom = max(first, y), min(last, y + high)
        if top >= bottom:
            continue
        part = _crop_rows(values, geometry, top - y, bottom - y, stretched)
        if geometry.mirrored:
            part = part.flip(2)
        total[:, top - first : bottom - first, x : x + wide] += part
        count[top - first : bottom - first, x : x + wide] += 1
    return total.div_(count)


def _crop_rows(
    values: Tensor, geometry: Geometry, first: int, last: int, stretched: bool
) -> Tensor:
    """Rows ``first`` to ``last`` of a crop, its padding cut off, from its patch grid."""
    rows, columns = values.shape[1:]
    _, _, wide, high = geometry.crop
    left, top = (0, 0) if stretched else geometry.pad[:2]
    whole_high, whole_wide = (high, wide) if stretched else geometry.padded
    across = _between(columns, whole_wide, left, left + wide, values.device)
    down = _between(rows, whole_high, top + first, top + last, values.device)
    return _interpolated(_interpolated(values, 2, across), 1, down)


def _between(
    size: int, wanted: int, first: int, last: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Places ``first`` to ``last`` of ``wanted`` over a side of ``size``: the two that each lies
    between, and the share of the second (torch's ``interpolate``, bilinear, in float64)."""
    places = torch.arange(first, last, dtype=torch.float64, device=device)
    places = ((places + 0.5) * (size / wanted) - 0.5).clamp_min_(0)
    lower = places.long().clamp_max_(size - 1)
    return lower, (lower + 1).clamp_max_(size - 1), (places - lower).float()


def _interpolated(values: Tensor, dim: int, between: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    lower, upper, share = between
    shares = share[:, None] if dim == 1 else share
    return torch.lerp(values.index_select(dim, lower), values.index_select(dim, upper), shares)
