from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms import transforms as torchvision_transforms

from harness.data.dataset import Target
from harness.data.views import CentreCrop, RandomResizedCropFlip
from harness.errors import BadPicture
from harness.nano.draw import Draw

sides = st.integers(1, 90)
VIEW = RandomResizedCropFlip(32)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def seen(view: Any, picture: NDArray[np.uint8], seed: int = 0, index: int = 0) -> NDArray[np.uint8]:
    (crop,) = view(picture, Target(), seed, index)
    pixels: NDArray[np.uint8] = crop.pixels
    assert crop.geometry.padded == pixels.shape[:2] and pixels.dtype == np.uint8
    return pixels


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([(32, 28), (28, 28), (57, 42)]))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_centre_crop_is_torchvisions_to_the_bit(
    interpolation: str, height: int, width: int, sizes: tuple[int, int]
) -> None:
    picture = noise(height, width)
    transform = transforms.Compose(
        [
            transforms.Resize(sizes[0], InterpolationMode(interpolation)),
            transforms.CenterCrop(sizes[1]),
        ]
    )
    expected = np.array(transform(Image.fromarray(picture)))
    np.testing.assert_array_equal(seen(CentreCrop(*sizes, interpolation), picture), expected)


def test_a_centre_crops_geometry_says_where_it_was_cut() -> None:
    picture = noise(40, 90)
    (crop,) = CentreCrop(32, 28)(picture, Target(), 0, 0)
    left, top, width, height = crop.geometry.crop
    resized = F.resize(Image.fromarray(picture), [32], InterpolationMode.BICUBIC)
    assert crop.geometry.stored == (90, 40) and crop.geometry.resized == resized.size == (72, 32)
    np.testing.assert_array_equal(
        crop.pixels, np.array(resized)[top : top + height, left : left + width]
    )


def test_a_picture_that_a_resize_would_blow_up_is_refused() -> None:
    with pytest.raises(BadPicture, match="shorter side of 256"):
        CentreCrop(256, 224)(np.zeros((1, 2000, 3), np.uint8), Target(), 0, 0)


class TorchDrawing:
    """What torchvision's ``get_params`` uses of torch, with our numbers in place of torch's."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.log, self.exp = torch.log, torch.exp

    def tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def empty(self, size: int) -> Any:
        def uniform_(low: float, high: float) -> torch.Tensor:
            return self.tensor([self._draw.uniform(float(low), float(high))])

        return SimpleNamespace(uniform_=uniform_)

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        return torch.tensor([self._draw.integer(low, high - 1)])


extents = st.one_of(st.integers(1, 12), st.integers(1, 4000))


@settings(max_examples=300, deadline=None)
@given(extents, extents, st.integers(0, 2**63 - 1))
def test_the_random_part_is_torchvisions_given_the_same_numbers(
    height: int, width: int, seed: int
) -> None:
    image = torch.empty(3, 1, 1).expand(3, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision_transforms, "torch", TorchDrawing(Draw(seed, 5)))
        expected = transforms.RandomResizedCrop.get_params(
            image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        )
    assert VIEW.part(Draw(seed, 5), height, width) == tuple(int(each) for each in expected)


def test_its_scale_and_ratio_are_torchvisions_own() -> None:
    default = transforms.RandomResizedCrop(224)
    assert (VIEW.scale, VIEW.ratio) == (tuple(default.scale), tuple(default.ratio))
    assert transforms.RandomHorizontalFlip().p == VIEW.flip


def test_it_is_the_part_resized_and_flipped_by_torchvision() -> None:
    picture, flipped = noise(60, 90), []
    for index in range(20):
        draw = Draw(3, index)
        top, left, high, wide = VIEW.part(draw, 60, 90)
        image = F.resized_crop(
            Image.fromarray(picture), top, left, high, wide, [32, 32], InterpolationMode.BICUBIC
        )
        flipped.append(draw.chance(0.5))
        expected = F.hflip(image) if flipped[-1] else image
        np.testing.assert_array_equal(seen(VIEW, picture, 3, index), np.array(expected))
    assert True in flipped and False in flipped


def test_what_is_drawn_spreads_as_torchvisions_draws_do() -> None:
    image, count = torch.empty(3, 1, 1).expand(3, 1000, 1000), 3000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            transforms.RandomResizedCrop.get_params(image, list(VIEW.scale), list(VIEW.ratio))
            for _ in range(count)
        ]
    draws = [Draw(0, index) for index in range(count)]
    ours = [VIEW.part(draw, 1000, 1000) for draw in draws]
    assert np.mean([draw.chance(VIEW.flip) for draw in draws]) == pytest.approx(0.5, abs=0.03)
    for column in range(4):  # top, left, height, width: 3,000 draws tell means to 5 pixels
        both = [np.array([part[column] for part in parts]) for parts in (ours, theirs)]
        assert both[0].mean() == pytest.approx(both[1].mean(), abs=20)
        assert np.percentile(both[0], 10) == pytest.approx(np.percentile(both[1], 10), abs=30)
        assert np.percentile(both[0], 90) == pytest.approx(np.percentile(both[1], 90), abs=30)


def test_seed_and_index_decide_and_nothing_else() -> None:
    picture = noise(50, 70)
    state = torch.get_rng_state()
    first = seen(VIEW, picture, 1, 2)
    torch.manual_seed(99)
    np.random.seed(99)
    again = seen(pickle.loads(pickle.dumps(VIEW)), picture, 1, 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, seen(VIEW, picture, 2, 2))
    assert not np.array_equal(first, seen(VIEW, picture, 1, 3))
    torch.set_rng_state(state)


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.integers(0, 1000))
def test_any_picture_gives_one_crop_of_the_size_asked_for(
    height: int, width: int, index: int
) -> None:
    assert seen(VIEW, noise(height, width), 0, index).shape == (32, 32, 3)
