from __future__ import annotations

import io
import os
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from harness.backbone.architecture import Architecture
from harness.backbone.layout import TokenLayout
from harness.backbone.vit import Forward, Read
from harness.data.dataset import Dataset, Dense, Sample, Target
from harness.data.fixed_size import FixedSize
from harness.data.segmentation_views import SlidingWindows
from harness.data.views import Crop, Geometry, WholePicture
from harness.errors import BadPicture, HarnessError
from harness.features import extract
from harness.features.extract import LOOKAHEAD, Pass, Tally, stream
from harness.features.order import Steps, indices
from harness.task import Batch, TokenRequest

READ = Read(0, "token", False)
CPU = torch.device("cpu")


class Pictures(Dataset):
    """One-colour pictures whose colour is their index; ``broken`` ones are no pictures."""

    def __init__(self, sizes: Sequence[tuple[int, int]], broken: Collection[int] = ()) -> None:
        self.name, self.split = "pictures", "test"
        self.samples = [Sample(f"p{i}", size) for i, size in enumerate(sizes)]
        self._broken = frozenset(broken)

    def read(self, index: int) -> bytes:
        if index in self._broken:
            return b"no picture"
        buffer = io.BytesIO()
        Image.new("RGB", self.samples[index].size, (index, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    def dense(self, index: int) -> Dense:
        """Every pixel's depth and class are the picture's index."""
        size = self.samples[index].size[::-1]
        return Dense(np.full(size, index, np.uint8), depth=np.full(size, index, np.float32))


class Recorder:
    """A stand-in for a backbone: its patch tokens are the red value of each patch, 0 to 255."""

    architecture = Architecture(
        layout=TokenLayout(1, 0),
        patch=4,
        depth=1,
        width=1,
        heads=1,
        stored_grid=(2, 2),
        parameters=0,
        global_feature="class token",
        position=None,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bicubic",
    )

    def __init__(self, most: int = 1000, device: torch.device = CPU) -> None:
        self.device = device
        self.calls: list[int] = []
        self._most = most

    def __call__(self, pixels: torch.Tensor, reads: Any, *_: Any) -> Forward:
        self.calls.append(len(pixels))
        if len(pixels) > self._most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        red = (pixels[:, 0] * 255).round().unfold(1, 4, 4).unfold(2, 4, 4).amax((-1, -2))
        patches = red.flatten(1)[..., None]
        sequence = torch.cat((patches.amax(1, keepdim=True), patches), dim=1)
        grid = red.shape[1], red.shape[2]
        return Forward({read: self.architecture.layout.split(sequence, grid) for read in reads}, {})


@dataclass(frozen=True)
class TwoCrops:
    """The whole picture, and its left upper 4×4 pixels (another size)."""

    crops_per_picture: ClassVar[int] = 2

    def __call__(
        self, picture: NDArray[np.uint8], target: Target, seed: int, index: int
    ) -> list[Crop]:
        height, width = picture.shape[:2]
        size = width, height
        whole = Geometry(size, size, (0, 0, *size), (0, 0, 0, 0))
        corner = Geometry(size, size, (0, 0, 4, 4), (0, 0, 0, 0))
        return [Crop(picture, whole), Crop(picture[:4, :4], corner)]


WHOLE = Pass(WholePicture(4, 10_000), frozenset({READ}))


def run(
    dataset: Dataset, batch_size: int, wanted: Pass = WHOLE, **options: Any
) -> tuple[list[Batch], Tally, Recorder]:
    backbone: Any = options.pop("backbone", None) or Recorder()
    tally = Tally(batch_size)
    order = list(range(len(dataset.samples)))
    return list(stream(backbone, dataset, wanted, order, tally, **options)), tally, backbone


def values(batches: Sequence[Batch]) -> dict[str, float]:
    """Each picture's class token: its index, if the right pixels went with the right name."""
    found = {}
    for batch in batches:
        cls = batch.tokens[READ].cls
        assert cls is not None
        for row, picture in enumerate(batch.sample):
            found[batch.ids[picture]] = float(cls[row, 0])
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([(8, 8), (9, 8), (8, 12), (4, 4)]), max_size=30), st.integers(1, 9))
def test_every_picture_comes_once_with_its_own_tokens(
    sizes: list[tuple[int, int]], batch_size: int
) -> None:
    batches, tally, backbone = run(Pictures(sizes), batch_size)
    assert values(batches) == {f"p{i}": float(i) for i in range(len(sizes))}
    assert sum(len(batch.ids) for batch in batches) == len(sizes)
    assert tally.pictures == tally.forward_passes == len(sizes)
    assert all(size <= batch_size for size in backbone.calls)


def test_pictures_of_one_size_are_brought_together() -> None:
    sizes = [(8, 8), (4, 8)] * 4
    batches, _, backbone = run(Pictures(sizes), 4)
    assert backbone.calls == [4, 4]
    assert [batch.ids for batch in batches] == [
        ("p0", "p2", "p4", "p6"),
        ("p1", "p3", "p5", "p7"),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([(8, 8), (9, 8), (4, 4)]), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 7),
    st.data(),
)
def test_with_shards_the_company_of_a_picture_does_not_depend_on_where_a_pass_began(
    sizes: list[tuple[int, int]], batch_size: int, shard: int, data: st.DataObject
) -> None:
    def company(order: list[int]) -> dict[str, tuple[str, ...]]:
        dataset: Any = Pictures(sizes)
        backbone: Any = Recorder()
        found = stream(backbone, dataset, WHOLE, order, Tally(batch_size), shard=shard)
        return {identity: batch.ids for batch in found for identity in batch.ids}

    shards = [
        list(range(len(sizes)))[start : start + shard] for start in range(0, len(sizes), shard)
    ]
    chosen = data.draw(st.lists(st.sampled_from(range(len(shards))), unique=True).map(sorted))
    whole = company([index for each in shards for index in each])
    part = company([index for number in chosen for index in shards[number]])
    assert part == {f"p{i}": whole[f"p{i}"] for number in chosen for i in shards[number]}


def test_pictures_of_one_size_come_in_order() -> None:
    batches, _, _ = run(Pictures([(8, 8)] * 11), 3)
    assert [image for batch in batches for image in batch.ids] == [f"p{i}" for i in range(11)]


def test_few_pictures_wait_however_many_sizes_there_are() -> None:
    sizes = [(4 * (1 + i), 4) for i in range(40)]
    waiting, most = 0, 0
    done: list[int] = []

    def on_picture(count: int) -> None:
        done.append(count)

    dataset = Pictures(sizes)
    for read, _ in enumerate(
        stream(Recorder(), dataset, WHOLE, list(range(40)), Tally(2), on_picture=on_picture),  # type: ignore[arg-type]
    ):
        waiting = read + 1 - sum(done)
        most = max(most, waiting)
    assert sum(done) == 40
    assert most <= 2 * LOOKAHEAD


def test_padding_is_zero_and_lies_right_and_below() -> None:
    wanted = Pass(WHOLE.view, WHOLE.reads, pixels=True)
    (batch,), _, _ = run(Pictures([(0, 0), (5, 6)][1:]), 1, wanted)
    assert batch.pixels is not None
    assert batch.pixels.shape == (1, 3, 8, 8)
    assert batch.geometry[0].pad == (0, 0, 3, 2)
    assert not batch.pixels[..., 6:, :].any()
    assert not batch.pixels[..., :, 5:].any()


def test_crops_of_several_sizes_padded_to_one_are_normalised_as_each_alone() -> None:
    from harness.features.extract import normalise

    draw = np.random.default_rng(0)
    sizes = [(6, 5), (8, 8), (6, 5), (7, 8)]
    pictures = [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    crops = [WholePicture(4, 10)(picture, Target(), 0, 0)[0] for picture in pictures]
    assert {crop.geometry.padded for crop in crops} == {(8, 8)}
    backbone: Any = Recorder()
    together = normalise(backbone, crops)
    for row, crop in enumerate(crops):
        assert torch.equal(together[row], normalise(backbone, [crop])[0])
        assert together[row].any() and not together[row, :, crop.pixels.shape[0] :].any()


def test_normalisation_is_torchvisions_to_the_bit() -> None:
    from torchvision import transforms  # the ones that the official LOST uses

    from harness.features.extract import normalise

    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    crops = WholePicture(4, 10)(picture, Target(), 0, 0)
    backbone: Any = Recorder()
    facts = backbone.architecture
    backbone.architecture = Architecture(
        **{**facts.__dict__, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    )
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.equal(normalise(backbone, crops)[0], transform(picture))


def test_crops_of_a_picture_come_consecutively_even_when_their_sizes_differ() -> None:
    wanted = Pass(TwoCrops(), WHOLE.reads)
    batches, tally, _ = run(Pictures([(8, 8), (8, 12), (8, 8)]), 4, wanted)
    assert [batch.ids for batch in batches] == [("p0", "p2")] * 2 + [("p1",)] * 2
    assert [batch.tokens[READ].patches.shape[1:3] for batch in batches] == [
        (2, 2),
        (1, 1),
        (3, 2),
        (1, 1),
    ]
    assert tally.forward_passes == 6 and tally.pictures == 3


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    backbone = Recorder(most=2)
    batches, tally, _ = run(Pictures([(8, 8)] * 9), 8, backbone=backbone)
    assert values(batches) == {f"p{i}": float(i) for i in range(9)}
    assert backbone.calls == [8, 4, 2, 2, 2, 2, 1]
    assert tally.batch_size == 2 and tally.forward_passes == 9
    assert all("out of memory" in notice for notice in tally.notices)


def test_out_of_memory_on_a_single_picture_says_its_size() -> None:
    with pytest.raises(HarnessError, match="12x8"):
        run(Pictures([(12, 8)]), 4, backbone=Recorder(most=0))


def test_another_error_of_the_backbone_is_not_taken_for_lack_of_memory() -> None:
    class Broken(Recorder):
        def __call__(self, *_: Any) -> Forward:
            raise RuntimeError("shapes disagree")

    with pytest.raises(RuntimeError, match="shapes disagree"):
        run(Pictures([(8, 8)]), 4, backbone=Broken())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_stops_the_pass_and_is_named(workers: int) -> None:
    with pytest.raises(BadPicture, match=r"p2.*--on-bad-image skip"):
        run(Pictures([(8, 8)] * 4, broken=[2]), 2, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_can_be_skipped_and_is_counted(workers: int) -> None:
    batches, tally, _ = run(
        Pictures([(8, 8)] * 5, broken=[1, 3]), 2, workers=workers, skip_bad=True
    )
    assert values(batches) == {"p0": 0.0, "p2": 2.0, "p4": 4.0}
    assert [identity for identity, _ in tally.bad] == ["p1", "p3"]


def test_a_picture_of_too_many_patches_names_the_setting() -> None:
    wanted = Pass(WholePicture(4, 5), WHOLE.reads)
    with pytest.raises(BadPicture, match=r"p0.*max_patches 5"):
        run(Pictures([(12, 8)]), 1, wanted)


def test_workers_change_nothing() -> None:
    sizes = [(8, 8), (4, 8), (8, 12)] * 5
    alone, _, _ = run(Pictures(sizes), 4)
    helped, _, _ = run(Pictures(sizes), 4, workers=2)
    assert [batch.ids for batch in alone] == [batch.ids for batch in helped]
    assert values(alone) == values(helped)


def test_workers_leave_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    run(Pictures([(8, 8)] * 3), 2, workers=1)
    assert torch.equal(before, torch.get_rng_state())


class Deadly(Pictures):
    def read(self, index: int) -> bytes:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_killed_worker_is_an_error_with_advice() -> None:
    with pytest.raises(HarnessError, match="--workers"):
        run(Deadly([(8, 8)] * 6), 2, workers=1)


SHUFFLED = TokenRequest(WHOLE.view, (0,), order="shuffled", steps=5, step_size=4)


def test_a_shuffled_order_is_fixed_by_the_seed_and_sees_each_picture_once_an_epoch() -> None:
    order = indices(SHUFFLED, 7, seed=1)
    assert len(order) == 20
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order == indices(SHUFFLED, 7, seed=1) != indices(SHUFFLED, 7, seed=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8))
def test_steps_have_exactly_their_size_whatever_the_forward_batch(
    pictures: int, batch_size: int, step_size: int
) -> None:
    batches, _, _ = run(Pictures([(8, 8)] * pictures), batch_size)
    steps = Steps(step_size)
    dealt = [part for batch in batches for part in steps.add(batch)] + list(steps.rest())
    assert [len(part.ids) for part in dealt[:-1]] == [step_size] * (len(dealt) - 1)
    assert [image for part in dealt for image in part.ids] == [f"p{i}" for i in range(pictures)]
    assert values(dealt) == values(batches)
    for part in dealt:
        assert part.sample == tuple(range(len(part.ids)))
        assert len(part.geometry) == len(part.targets) == len(part.ids)


def test_steps_keep_the_crops_of_a_picture_together() -> None:
    @dataclass(frozen=True)
    class Twice:
        crops_per_picture: ClassVar[int] = 2

        def __call__(self, picture: Any, target: Target, seed: int, index: int) -> list[Crop]:
            return TwoCrops()(picture, target, seed, index)[:1] * 2

    batches, _, _ = run(Pictures([(8, 8)] * 5), 4, Pass(Twice(), WHOLE.reads))
    steps = Steps(3)
    dealt = [part for batch in batches for part in steps.add(batch)] + list(steps.rest())
    assert [part.sample for part in dealt] == [(0, 0, 1, 1, 2, 2), (0, 0, 1, 1)]


def test_steps_over_several_sizes_are_refused() -> None:
    batches, _, _ = run(Pictures([(8, 8), (4, 8)]), 1)
    steps = Steps(2)
    with pytest.raises(HarnessError, match="one size"):
        [part for batch in batches for part in steps.add(batch)]


def test_steps_refuse_crops_of_several_sizes_even_in_full_batches() -> None:
    batches, _, _ = run(Pictures([(8, 8), (8, 8)]), 4, Pass(TwoCrops(), WHOLE.reads))
    steps = Steps(1)
    with pytest.raises(HarnessError, match="one size"):
        [part for batch in batches for part in steps.add(batch)]


# -------------------------------------------------------------------------------------- labels

WINDOWS = SlidingWindows(4, 8, 8, 6)
FIXED = FixedSize(4, (8, 6))


def check_labels(batches: Sequence[Batch]) -> list[str]:
    """Every row has the labels of its own picture; gives the ids in order."""
    for batch in batches:
        for row, picture in enumerate(batch.sample):
            index = int(batch.ids[picture][1:])
            if batch.dense:
                dense = batch.dense[picture]
                assert dense.semantic is not None and dense.depth is not None
                width, height = batch.geometry[row].stored
                assert dense.semantic.shape == dense.depth.shape == (height, width)
                assert (dense.semantic == index).all() and (dense.depth == index).all()
            else:
                found = batch.dense_crops
                assert found is not None and found.instances is None
                assert found.semantic is not None and found.depth is not None
                assert found.semantic.dtype == torch.uint8
                assert found.depth.dtype == torch.float32
                height, width = batch.geometry[row].padded
                assert found.depth[row].shape == (height, width)
                assert (found.semantic[row][:, 1:7] == index).all()
                assert (found.depth[row][:, 1:7] == index).all()
                assert (found.semantic[row][:, [0, 7]] == 255).all(), "the padding"
                assert (found.depth[row][:, [0, 7]] == 0).all()
    return [image for batch in batches for image in batch.ids]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([(8, 8), (9, 8), (8, 30), (20, 20)]), min_size=1, max_size=12),
    st.sampled_from([1, 7, 64]),
    st.sampled_from(["crops", "pictures"]),
    st.integers(1, 5),
)
def test_labels_come_with_the_picture_that_they_are_of(
    sizes: list[tuple[int, int]], batch_size: int, dense: Any, step_size: int
) -> None:
    wanted = Pass(FIXED if dense == "crops" else WINDOWS, WHOLE.reads, dense=dense)
    batches, _, _ = run(Pictures(sizes), batch_size, wanted)
    assert sorted(check_labels(batches)) == sorted(f"p{i}" for i in range(len(sizes)))
    for batch in batches:
        assert len(batch.crops) == len(batch.ids)
        assert bool(batch.dense) == (dense == "pictures") == (batch.dense_crops is None)
        for picture, count in enumerate(batch.crops):
            assert batch.sample.count(picture) == count  # windows of a picture have one size
    if dense == "crops":
        steps = Steps(step_size)
        dealt = [part for batch in batches for part in steps.add(batch)] + list(steps.rest())
        assert check_labels(dealt) == check_labels(batches)
        assert [len(part.ids) for part in dealt[:-1]] == [step_size] * (len(dealt) - 1)
        for part in dealt:
            assert part.crops == (1,) * len(part.ids)
            assert part.dense_crops is not None and part.dense_crops.depth is not None
            assert len(part.dense_crops.depth) == len(part.ids)


def test_steps_deal_out_labels_of_pictures_with_their_windows() -> None:
    batches, _, _ = run(Pictures([(30, 30)] * 5), 4, Pass(WINDOWS, WHOLE.reads, dense="pictures"))
    steps = Steps(2)
    dealt = [part for batch in batches for part in steps.add(batch)] + list(steps.rest())
    assert check_labels(dealt) == [f"p{i}" for i in range(5)]
    assert [len(part.dense) for part in dealt] == [2, 2, 1]


def test_a_picture_seen_at_several_sizes_is_whole_before_the_next_begins() -> None:
    several = SlidingWindows(4, 16, 8, 6, scales=(0.25, 1.0))
    batches, _, _ = run(Pictures([(8, 8)] * 3), 64, Pass(several, WHOLE.reads, dense="pictures"))
    assert [batch.ids for batch in batches] == [("p0",)] * 2 + [("p1",)] * 2 + [("p2",)] * 2
    assert {batch.crops for batch in batches} == {(10,)}
    assert [len(batch.sample) for batch in batches[:2]] == [1, 9]
    check_labels(batches)


def test_labels_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "LABEL_BYTES", 3 * 8 * 8 * 5)
    wanted = Pass(WINDOWS, WHOLE.reads, dense="pictures")
    batches, _, _ = run(Pictures([(8, 8)] * 8), 64, wanted)
    assert [len(batch.ids) for batch in batches] == [3, 3, 2]
    sizes = [(8, 8), (8, 12)] * 4
    batches, _, _ = run(Pictures(sizes), 64, wanted)
    check_labels(batches)
    assert max(len(batch.ids) for batch in batches) <= 2
    batches, _, _ = run(Pictures(sizes), 64, Pass(WINDOWS, WHOLE.reads))
    assert [len(batch.ids) for batch in batches] == [4, 4], "no labels, no bound"
