"""Predictions of windows put together: what mmseg's code gives, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from harness.data.dataset import Target
from harness.data.depth_views import WholeCentred
from harness.data.segmentation_views import SlidingWindows
from harness.data.views import Geometry
from harness.features import windows
from harness.features.windows import bands, full_size, label_map

PATCH = 7
sides = st.integers(1, 80)


def geometry(view: SlidingWindows | WholeCentred, width: int, height: int) -> list[Geometry]:
    crops = view(np.zeros((height, width, 3), np.uint8), Target(), 0, 0)
    return [crop.geometry for crop in crops]


def predicted(places: Sequence[Geometry], classes: int = 3, seed: int = 0) -> list[Tensor]:
    """Some logits of each crop, at its patch grid."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(classes, *(side // PATCH for side in place.padded), generator=generator)
        for place in places
    ]


def resize(values: Tensor, height: int, width: int) -> Tensor:
    return interpolate(values[None], (height, width), mode="bilinear", align_corners=False)[0]


def at_once(
    logits: Sequence[Tensor], places: Sequence[Geometry], stretched: bool, softmax: bool
) -> Tensor:
    """All of it in the plainest way: canvases, counts, torch's own ``interpolate``."""
    width, height = places[0].stored
    canvases: dict[tuple[tuple[int, int], bool], tuple[Tensor, Tensor]] = {}
    for values, place in zip(logits, places, strict=True):
        x, y, wide, high = place.crop
        left, top = place.pad[:2]
        if stretched:
            part = resize(values, high, wide)
        else:
            part = resize(values, *place.padded)[:, top : top + high, left : left + wide]
        across, down = place.resized
        total, count = canvases.setdefault(
            (place.resized, place.mirrored),
            (torch.zeros(len(values), down, across), torch.zeros(down, across)),
        )
        total[:, y : y + high, x : x + wide] += part.flip(2) if place.mirrored else part
        count[y : y + high, x : x + wide] += 1
    maps = [resize(total / count, height, width) for total, count in canvases.values()]
    return torch.stack([each.softmax(0) if softmax else each for each in maps]).mean(0)


VIEWS = [
    SlidingWindows(PATCH, 30, 20, 13),
    SlidingWindows(PATCH, 30, 20, 13, (0.5, 1.0, 1.75), True),
    SlidingWindows(PATCH, 40, 40, 27, flip=True),
    WholeCentred(PATCH, 10_000),
]


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.sampled_from(VIEWS), st.booleans(), st.booleans(), st.integers(1, 30))
def test_bands_are_the_whole_prediction_in_parts(
    width: int,
    height: int,
    view: SlidingWindows | WholeCentred,
    stretched: bool,
    softmax: bool,
    rows: int,
) -> None:
    places = geometry(view, width, height)
    logits = predicted(places)
    widest = max(width, *(place.resized[0] for place in places))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BAND_BYTES", 4 * 3 * widest * rows)
        parts = list(bands(logits, places, stretched, softmax))
        labels = label_map(logits, places, stretched)
    assert [part.shape[1] for part in parts[:-1]] == [rows] * (len(parts) - 1)
    expected = at_once(logits, places, stretched, softmax)
    assert torch.allclose(torch.cat(parts, 1), expected, atol=2e-5)
    several = len({(place.resized, place.mirrored) for place in places}) > 1
    found = at_once(logits, places, stretched, several).gather(0, labels[None])[0]
    best = at_once(logits, places, stretched, several).amax(0)
    assert torch.allclose(found, best, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_one_window_is_the_whole_picture(width: int, height: int, stretched: bool) -> None:
    view = SlidingWindows(PATCH, min(width, height), 20, 13)
    (place,) = geometry(view, width, height)
    (values,) = predicted([place])
    found = full_size([values], [place], stretched)
    left, top = place.pad[:2]
    whole = resize(values, *place.padded)[:, top : top + height, left : left + width]
    expected = resize(values, height, width) if stretched else whole
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(label_map([values], [place], stretched), found.argmax(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 80), st.integers(20, 80), st.booleans(), st.integers(0, 99))
def test_who_knows_the_label_of_every_pixel_is_right_everywhere(
    width: int, height: int, flip: bool, seed: int
) -> None:
    """With a patch of one pixel and no resizing, what windows are told comes out."""
    view = SlidingWindows(1, min(width, height), 20, 13, flip=flip)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (height, width)))
    logits, places = [], geometry(view, width, height)
    for place in places:
        x, y, wide, high = place.crop
        part = one_hot(labels[y : y + high, x : x + wide], 5).permute(2, 0, 1).float()
        logits.append(part.flip(2) if place.mirrored else part)
    assert torch.equal(label_map(logits, places), labels)


def test_what_is_cut_off_has_no_prediction() -> None:
    places = geometry(WholeCentred(PATCH, 100_000, cut="nyu"), 640, 480)
    found = full_size([torch.ones_like(each) for each in predicted(places, 1)], places)[0]
    nothing = torch.isnan(found)
    assert not nothing[45:472, 43:608].any() and nothing.sum() == 640 * 480 - 427 * 565
    assert (found[~nothing] == 1).all()


def test_half_precision_is_put_together_in_single() -> None:
    places = geometry(VIEWS[0], 50, 40)
    half = [each.half() for each in predicted(places)]
    whole = full_size([each.float() for each in half], places)
    assert torch.equal(full_size(half, places), whole) and whole.dtype == torch.float32


def test_no_band_is_larger_than_it_may_be() -> None:
    places = geometry(SlidingWindows(14), 3000, 2000)
    logits = [torch.zeros(150, 37, 37) for _ in places]
    part = next(bands(logits, places))
    assert part.shape[::2] == (150, 3000) and part.nbytes <= windows.BAND_BYTES


@pytest.mark.slow
def test_a_picture_of_2000_by_3000_pixels_and_150_classes_takes_little_memory() -> None:
    import subprocess
    import sys

    code = """
import resource, numpy as np, torch
from harness.data.dataset import Target
from harness.data.segmentation_views import SlidingWindows
from harness.features.windows import label_map
view = SlidingWindows(14)
places = [c.geometry for c in view(np.zeros((2000, 3000, 3), np.uint8), Target(), 0, 0)]
logits = [torch.randn(150, p.padded[0] // 14, p.padded[1] // 14) for p in places]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert label_map(logits, places).shape == (2000, 3000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(found.stdout) < 600 * 1024  # kilobytes
