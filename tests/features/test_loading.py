from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from harness.data.dataset import Dataset, Dense, Sample
from harness.data.depth_views import DepthTraining
from harness.data.joint import Labelled
from harness.data.segmentation_views import SegmentationTraining, SlidingWindows
from harness.data.views import CentreCrop, RandomResizedCropFlip, View, WholePicture
from harness.errors import BadPicture
from harness.features import loading
from harness.features.loading import by_workers, load, occurrences, view_seed
from harness.features.order import indices, shuffled
from harness.task import TokenRequest

AUGMENTED = RandomResizedCropFlip(8)


class Noise(Dataset):
    name, split = "noise", "train"

    def __init__(self, pictures: int) -> None:
        self.samples = [Sample(f"p{place}", (40, 30)) for place in range(pictures)]

    def picture(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)

    def dense(self, index: int) -> Dense:
        draw = np.random.default_rng(index)
        depth = draw.uniform(1, 9, (30, 40)).astype(np.float32)
        return Dense(semantic=draw.integers(0, 5, (30, 40), np.uint8), depth=depth)


def crops(
    view: View, order: Sequence[int], seed: int = 0, workers: int = 0
) -> list[tuple[int, bytes]]:
    loaded = load(Noise(5), view, order, seed, workers)
    return [(each.index, each.crops[0].pixels.tobytes()) for each in loaded]


@given(st.lists(st.integers(0, 4)))
def test_an_index_comes_with_how_often_it_came_before(order: list[int]) -> None:
    found = list(occurrences(order, 5))
    assert [index for index, _ in found] == order
    assert [times for _, times in found] == [
        Counter(order[:place])[index] for place, index in enumerate(order)
    ]


def test_a_picture_read_again_is_cut_otherwise_and_the_same_in_every_run() -> None:
    order = shuffled(5, 15, seed=1)
    found = crops(AUGMENTED, order, seed=1)
    assert len(set(found)) == 15
    assert crops(AUGMENTED, order, seed=1) == found
    assert not set(crops(AUGMENTED, order, seed=2)) & set(found)


def test_a_picture_read_again_in_a_fixed_view_is_the_same() -> None:
    assert len(set(crops(CentreCrop(20, 16), shuffled(5, 15, 1)))) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_cut_as_one_process_does(workers: int) -> None:
    order = shuffled(5, 12, seed=4)
    assert crops(AUGMENTED, order, 4, workers) == crops(AUGMENTED, order, 4, 0)


@pytest.mark.parametrize("room", [0, 2**40])
def test_pictures_of_many_sizes_are_the_same_through_shared_memory_and_a_pipe(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Several(Noise):
        def picture(self, index: int) -> NDArray[np.uint8]:
            if index == 3:
                raise BadPicture("p3: torn")
            return super().picture(index)[: 16 + index, : 20 + 2 * index]

    def found(workers: int) -> list[tuple[int, str | None, list[tuple[tuple[int, ...], bytes]]]]:
        loaded = load(Several(11), WholePicture(8, 100), list(range(11)), 0, workers)
        return [
            (each.index, each.bad, [(c.pixels.shape, c.pixels.tobytes()) for c in each.crops])
            for each in loaded
        ]

    class Room:
        f_bavail, f_frsize = room, 1

    alone = found(0)
    assert len({shape for _, _, crops in alone for shape, _ in crops}) == 10
    monkeypatch.setattr(os, "statvfs", lambda _: Room())
    handed: list[int] = []
    unpacked = loading._unpacked
    monkeypatch.setattr(
        loading, "_unpacked", lambda group, pixels: handed.append(1) or unpacked(group, pixels)
    )
    assert found(2) == alone
    assert len(handed) == (3 if room else 0)  # of four, four and three pictures


def test_no_two_readings_share_a_seed() -> None:
    seeds = [view_seed(seed, times) for seed in range(40) for times in range(40)]
    assert len(set(seeds)) == 1600 and all(0 <= seed < 2**63 for seed in seeds)


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_epochs_are_whole_and_the_beginning_is_that_of_a_longer_order(
    pictures: int, count: int, seed: int
) -> None:
    order = list(shuffled(pictures, count, seed))
    assert len(order) == count
    assert order == list(shuffled(pictures, count + 7, seed))[:count]
    for start in range(0, count - pictures + 1, pictures):
        assert sorted(order[start : start + pictures]) == list(range(pictures))


def test_a_shuffled_request_reads_in_that_order() -> None:
    request = TokenRequest(AUGMENTED, (0,), order="shuffled", steps=3, step_size=4)
    assert list(indices(request, 5, 6)) == list(shuffled(5, 12, 6))
    assert list(indices(TokenRequest(AUGMENTED, (0,)), 5, 6)) == [0, 1, 2, 3, 4]
    assert list(indices(request, 0, 6)) == []


JOINT: list[tuple[View, Labelled]] = [
    (SegmentationTraining(4, crop=20, short=20), "crops"),
    (DepthTraining(4, crop=(20, 24), cut=None), "crops"),
    (SlidingWindows(4, 20, 16, 11), "pictures"),
]


def everything(
    view: View, labelled: Labelled, order: Sequence[int], workers: int, seed: int = 4
) -> list[object]:
    """All that comes of a reading, bit by bit."""

    def bits(dense: Dense | None) -> object:
        if dense is None:
            return None
        assert dense.semantic is not None and dense.depth is not None
        return dense.semantic.tobytes(), dense.depth.tobytes()

    return [
        (
            each.index,
            [(crop.pixels.tobytes(), crop.geometry, bits(crop.dense)) for crop in each.crops],
            bits(each.dense),
        )
        for each in load(Noise(5), view, order, seed, workers, labelled)
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("view", "labelled"), JOINT)
def test_pictures_and_labels_are_the_same_with_any_number_of_workers(
    view: View, labelled: Labelled
) -> None:
    order = shuffled(5, 12, seed=4)
    alone = everything(view, labelled, order, 0)
    assert everything(view, labelled, order, 1) == alone
    assert everything(view, labelled, order, 3) == alone
    assert len({str(each) for each in alone}) == (5 if labelled == "pictures" else 12)


def test_what_labels_take_in_memory_is_known() -> None:
    (crops,) = load(Noise(1), JOINT[0][0], [0], 0, 0, "crops")
    (whole,) = load(Noise(1), JOINT[2][0], [0], 0, 0, "pictures")
    (none,) = load(Noise(1), JOINT[0][0], [0], 0, 0)
    assert (crops.label_bytes, whole.label_bytes, none.label_bytes) == (5 * 400, 5 * 1200, 0)


class _Unreachable(TorchDataset[int]):
    def __getitem__(self, index: int) -> int:
        raise ConnectionError("refused")


def test_a_broken_connection_in_this_process_is_no_workers_death() -> None:
    with pytest.raises(ConnectionError, match="refused"):
        list(by_workers(_Unreachable(), [0], 0, 0, 1))
