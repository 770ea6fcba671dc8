"""All patches of a picture in the store, and labels of pixels read beside what it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from storing import BATCH, ONE, PATCHES, SHARD, VIEW, Noise, model, source, tiny_backbone

from harness.backbone.vit import Read
from harness.data.fixed_size import FixedSize
from harness.data.joint import Labelled
from harness.data.views import Geometry, View
from harness.errors import BadPicture, HarnessError
from harness.features import store as store_module
from harness.features.extract import Pass, Tally, normalise
from harness.features.loading import load
from harness.features.select import Selector, patch_grid, select
from harness.features.serve import Reader, batches, stored_features
from harness.features.store import Filling, Store, geometry_of, shard_size
from harness.task import Batch

FIXED = FixedSize(14, (28, 42))
WHOLE = Selector("patches", 3)
PICTURES = Noise(20)


def read(
    store: Store | None,
    dataset: Noise,
    selector: Selector = PATCHES,
    view: View = FIXED,
    dense: Labelled | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    batch_size: int = BATCH,
) -> tuple[list[Batch], Tally]:
    tally, backbone = Tally(batch_size), tiny_backbone()
    wanted = Pass(view, selector.reads, selectors=frozenset({selector}), dense=dense)
    features: Mapping[Selector, Any] = {}
    shard = min(SHARD, shard_size(store, [selector], backbone.architecture, view))
    if store is not None:
        pictures = len(dataset.samples)
        features = stored_features(store, model(), source(dataset, view), wanted, pictures)
    counts: list[int] = []
    how = tally, 0, workers, skip_bad, shard, counts.append
    found = list(batches(Reader(backbone, dataset, wanted, *how), features, True))
    assert sum(counts) == len(dataset.samples), "progress ends at the end"
    return found, tally


def by_id(found: list[Batch], selector: Selector = PATCHES) -> dict[str, torch.Tensor]:
    return {
        batch.ids[picture]: batch.selected[selector].values[row]
        for batch in found
        for row, picture in enumerate(batch.sample)
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[i], other[i]) for i in one)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, SHARD)


@pytest.mark.parametrize("selector", [PATCHES, WHOLE])
def test_all_patches_come_back_as_the_backbone_gave_them(store: Store, selector: Selector) -> None:
    read(store, PICTURES, selector)
    found, tally = read(store, PICTURES, selector)
    assert tally.forward_passes == 0
    backbone, row = tiny_backbone(), 0
    (loaded,) = load(PICTURES, FIXED, [7], 0, 0)
    tokens = backbone(normalise(backbone, loaded.crops), selector.reads)
    expected = tokens.tokens[Read(3, "token", True)].patches
    values = by_id(found, selector)["p7"][None]
    grid = patch_grid(values, found[row].geometry[0].padded, 14)
    assert grid.shape == (1, 2, 3, 48)
    assert grid.dtype == (torch.float16 if selector.half else torch.float32)
    assert torch.allclose(grid.float(), expected, atol=2e-2 if selector.half else 1e-5)


def test_half_precision_is_the_same_from_the_store_and_from_a_stream(store: Store) -> None:
    streamed, _ = read(None, PICTURES)
    first, _ = read(store, PICTURES)
    again, tally = read(store, PICTURES)
    assert tally.forward_passes == 0
    assert same(by_id(streamed), by_id(first)) and same(by_id(first), by_id(again))
    assert by_id(first)["p0"].dtype == torch.float16
    halves = sum(path.stat().st_size for path in store.folder.rglob("*.safetensors"))
    assert halves < 20 * (2 * 6 * 48 + 100) + 3 * 600, "half the bytes on the disk too"


def test_what_half_precision_cannot_hold_is_an_error(store: Store) -> None:
    backbone = tiny_backbone()
    (loaded,) = load(PICTURES, FIXED, [0], 0, 0)
    tokens = backbone(normalise(backbone, loaded.crops), PATCHES.reads).tokens
    tokens[Read(3, "token", True)].patches[0, 0, 0, 0] = 70_000
    assert select(WHOLE, tokens, ["p0"], {}).values.amax() == 70_000
    with pytest.raises(HarnessError, match=r"65,504.*single precision"):
        select(PATCHES, tokens, ["p0"], {})


def test_a_shard_of_wide_rows_has_fewer_pictures(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = tiny_backbone().architecture
    assert shard_size(store, [PATCHES], architecture, FIXED) == SHARD
    monkeypatch.setattr(store_module, "SHARD_BYTES", 3 * 2 * 6 * 48 + 5)
    assert shard_size(store, [PATCHES], architecture, FIXED) == 3
    assert shard_size(store, [PATCHES, *ONE], architecture, FIXED) == 3
    assert shard_size(store, [WHOLE], architecture, FIXED) == 1
    assert shard_size(store, ONE, architecture, FIXED) == SHARD
    first, _ = read(store, PICTURES)
    files = sorted(store.folder.rglob("*.safetensors"))
    assert len(files) == 7
    for path in files[2:4]:
        path.unlink()
    again, tally = read(store, PICTURES)
    assert tally.forward_passes == 6 and same(by_id(first), by_id(again))
    assert read(store, PICTURES)[1].forward_passes == 0
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1)
    assert shard_size(store, [PATCHES], architecture, FIXED) == 1


def test_a_1024_patch_shard_of_a_large_model_is_bounded() -> None:
    from dataclasses import replace

    large = replace(tiny_backbone().architecture, width=1024)
    view = FixedSize(14, (448, 448))
    assert shard_size(None, [WHOLE], large, view) == 32
    assert shard_size(None, [PATCHES], large, view) == 64
    assert shard_size(None, ONE, large, view) == store_module.SHARD


# ------------------------------------------------------------------------------------- labels


def depths(found: list[Batch]) -> dict[str, float]:
    """The depth that each picture came with, which tells its index."""
    result = {}
    for batch in found:
        for row, picture in enumerate(batch.sample):
            if batch.dense:
                depth = batch.dense[picture].depth
                assert depth is not None and depth.shape == (30, 32)
            else:
                assert batch.dense_crops is not None and batch.dense_crops.depth is not None
                depth = batch.dense_crops.depth[row].numpy()
                assert depth.shape == batch.geometry[row].padded
            (value,) = np.unique(depth)
            result[batch.ids[picture]] = float(value) - 1
    return result


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("dense", ["crops", "pictures"])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_labels_come_with_their_own_picture_from_the_store_and_without(
    store: Store, dense: Labelled, workers: int
) -> None:
    expected = {f"p{i}": float(i) for i in range(20)}
    first, told = read(store, PICTURES, dense=dense, workers=workers)
    again, tally = read(store, PICTURES, dense=dense, workers=workers)
    assert (told.forward_passes, tally.forward_passes) == (20, 0)
    assert depths(first) == depths(again) == expected
    assert same(by_id(first), by_id(again))
    assert max(len(batch.ids) for batch in again) <= BATCH, "labels of one batch at a time"
    assert {count for batch in again for count in batch.crops} == {1}


def test_labels_cost_no_pass_where_features_are_there_without_them(store: Store) -> None:
    read(store, PICTURES)
    assert read(store, PICTURES, dense="crops")[1].forward_passes == 0
    assert read(store, PICTURES, dense="pictures")[1].forward_passes == 0


@pytest.mark.parametrize("filled", [True, False])
def test_a_picture_whose_labels_are_bad_is_bad_for_those_who_want_them_alone(
    store: Store, filled: bool
) -> None:
    pictures = Noise(20, broken={17}, unlabelled={3, 9})
    if filled:
        read(store, pictures, skip_bad=True)
    with pytest.raises(BadPicture, match=r"p3: torn depth.*--on-bad-image"):
        read(store, Noise(20, unlabelled={3, 9}), dense="pictures")
    for _ in range(2):
        found, tally = read(store, pictures, dense="pictures", skip_bad=True)
        assert sorted(name for name, _ in tally.bad) == ["p17", "p3", "p9"]
        assert depths(found) == {f"p{i}": float(i) for i in range(20) if i not in {3, 9, 17}}
    plain, tally = read(store, pictures, skip_bad=True)
    assert [name for name, _ in tally.bad] == ["p17"] and len(by_id(plain)) == 19
    assert same(by_id(plain), by_id(read(None, pictures, skip_bad=True)[0]))
    assert read(store, pictures, skip_bad=True)[1].forward_passes == 0


def test_a_view_of_several_sizes_has_no_patches_to_select() -> None:
    from harness.data.views import WholePicture
    from harness.task import TokenRequest

    with pytest.raises(ValueError, match="one size"):
        TokenRequest(WholePicture(14, 100), select=(PATCHES,))
    with pytest.raises(ValueError, match="joint view"):
        TokenRequest(VIEW, select=ONE, dense="crops")
    assert TokenRequest(VIEW, select=(PATCHES,), dense="pictures").storable


@given(st.lists(st.integers(0, 9999), min_size=12, max_size=12), st.booleans())
def test_a_geometry_is_kept_whole_and_older_ones_are_read(row: list[int], mirrored: bool) -> None:
    a, b, c, d, x, y, width, height, *pad = row
    left, top, right, bottom = pad
    place, around = (x, y, width, height), (left, top, right, bottom)
    geometry = Geometry((a, b), (c, d), place, around, mirrored)
    filling = Filling(1)
    filling.add([0], torch.zeros(1, 1), torch.ones(1, dtype=torch.bool), [geometry])
    assert geometry_of(filling.rows({}).geometry[0].tolist()) == geometry
    assert geometry_of(row) == Geometry((a, b), (c, d), place, around)
