"""Labels of pixels from the data set to a task and its record, through training crops, windows and
the feature store.

The pictures show their labels, so what a task reads off the pixels must be what it is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from harness import plan, run
from harness.backbone.layout import Tokens
from harness.backbone.vit import Backbone, Forward, Read
from harness.data.dataset import Dense, Role
from harness.data.depth_views import DepthTraining, WholeCentred
from harness.data.fixed_size import FixedSize
from harness.data.segmentation_views import SegmentationTraining, SlidingWindows
from harness.data.views import View
from harness.errors import BadPicture
from harness.features.select import Selector, patch_grid
from harness.features.windows import full_size, label_map
from harness.nano.scenes import SEMANTIC_CLASSES, ScenesDataset
from harness.options import Options
from harness.schema import Record
from harness.task import (
    Batch,
    Context,
    Evaluation,
    MetricSpec,
    Outcome,
    Protocol,
    Task,
    TokenRequest,
)

SIDE = 128
PICTURES = 4
STEP = 10  # grey levels between two classes, and between metres of depth
FARTHEST = 255 / STEP
READ = Read(3, "token", False)
EVERY = Selector("patches", 3, norm=False, half=True)


def show(dense: Dense) -> NDArray[np.uint8]:
    """Red tells the class, green the depth."""
    assert dense.semantic is not None and dense.depth is not None
    depth = np.rint(dense.depth * STEP).clip(0, 255).astype(np.uint8)
    return np.stack([dense.semantic * STEP, depth, depth * 0], axis=-1)


def shown(batch: Batch, architecture: Any, channel: int) -> Tensor:
    """What the pixels of a batch say, ``[B, H, W]``."""
    assert batch.pixels is not None
    grey = batch.pixels[:, channel].cpu() * architecture.std[channel] + architecture.mean[channel]
    return grey * 255 / STEP


class OracleProtocol(Protocol):
    name: str
    version: str = "1.0"
    kind: Literal["windows", "depth", "stored"] = "windows"
    patch_norms: bool = True

    def views(self, patch: int) -> tuple[View, View]:
        """To train and to test; nothing is resized, so that what is shown is what is told."""
        if self.kind == "depth":
            train: View = DepthTraining(patch, (70, 90), None, rotate=0.0, colours=None)
            return train, WholeCentred(patch, 10_000)
        train = SegmentationTraining(patch, 80, SIDE, (1.0, 1.0), colours=None)
        if self.kind == "stored":
            return FixedSize(patch, (SIDE, SIDE)), FixedSize(patch, (SIDE, SIDE))
        return train, SlidingWindows(patch, SIDE, 80, 48, flip=True)


class OracleEvaluation(Evaluation):
    """Right pixels of every picture, at its stored size; the mean norm of its patches; and of each
    crop that was trained on whether it was as it was told."""

    def __init__(self, context: Context[OracleProtocol]) -> None:
        self._context = context
        self._rows: dict[str, tuple[float, float]] = {}
        self._parts: dict[str, list[Any]] = {}
        self._trained: list[tuple[str, ...]] = []

    def update(self, role: Role, batch: Batch) -> None:
        protocol, facts = self._context.protocol, self._context.architecture
        if protocol.kind == "stored":
            self._stored(role, batch)
        elif role == "train":
            self._train(batch)
        else:
            for row, picture in enumerate(batch.sample):
                crops = self._parts.setdefault(batch.ids[picture], [])
                told = shown(batch, facts, int(protocol.kind == "depth"))[row]
                patches = batch.tokens[READ].patches[row].norm(dim=-1).mean()
                crops.append((told, batch.geometry[row], float(patches)))
                if len(crops) == batch.crops[picture]:
                    self._score(batch.ids[picture], batch.dense[picture])

    def _train(self, batch: Batch) -> None:
        assert batch.dense_crops is not None and not batch.dense
        depth = self._context.protocol.kind == "depth"
        found = batch.dense_crops.depth if depth else batch.dense_crops.semantic
        told = shown(batch, self._context.architecture, int(depth))
        assert found is not None and found.shape == told.shape
        labelled = found != (0 if depth else 255)
        assert 0.5 < labelled.float().mean() < 1, "crops are padded"
        error = (told - found.clamp(max=FARTHEST))[labelled].abs()
        assert (error <= 0.51 / STEP + 0.01).all()
        self._trained.append(batch.ids)

    def _score(self, identity: str, dense: Dense) -> None:
        told, places, norms = zip(*self._parts.pop(identity), strict=True)
        if self._context.protocol.kind == "depth":
            assert dense.depth is not None
            depth = full_size([each[None] for each in told], places)[0]
            error = np.abs(depth.numpy() - dense.depth.clip(max=FARTHEST))
            right = error <= 0.51 / STEP + 0.01
        else:
            assert dense.semantic is not None
            classes = [each.round().long().clamp(0, len(SEMANTIC_CLASSES) - 1) for each in told]
            logits = [one_hot(c, len(SEMANTIC_CLASSES)).permute(2, 0, 1) for c in classes]
            right = label_map(logits, places).numpy() == dense.semantic
        assert right.shape == (SIDE, SIDE)
        self._rows[identity] = float(right.mean()), float(np.mean(norms))

    def _stored(self, role: Role, batch: Batch) -> None:
        """Labels and patches of the right pictures: those the data set gives for their ids."""
        assert not batch.tokens or batch.pixels is None
        dataset = self._context.datasets[role]
        index = {sample.id: place for place, sample in enumerate(dataset.samples)}
        grids = patch_grid(batch.selected[EVERY].values, batch.geometry[0].padded, 14)
        assert grids.dtype == torch.float16
        for row, picture in enumerate(batch.sample):
            expected = dataset.dense(index[batch.ids[picture]]).semantic
            assert expected is not None
            if role == "train":
                assert batch.dense_crops is not None and batch.dense_crops.semantic is not None
                left, top = batch.geometry[row].pad[:2]
                found = batch.dense_crops.semantic[row, top : top + SIDE, left : left + SIDE]
                right = float((found.numpy() == expected).mean())
            else:
                right = float((batch.dense[picture].semantic == expected).mean())
            norm = float(grids[row].float().norm(dim=-1).mean())
            self._rows[f"{role} {batch.ids[picture]}"] = right, norm

    def finish(self) -> Outcome:
        assert not self._parts, "every picture was whole"
        names = sorted(self._rows)
        table = np.array([self._rows[name] for name in names])
        columns = {"image_id": names, "right": table[:, 0], "norm": table[:, 1]}
        metrics = {
            "right": MetricSpec("right", "%", True, 100),
            "norm": MetricSpec("norm", "", True),
        }
        return Outcome(columns, metrics, details={"trained": [list(ids) for ids in self._trained]})

    def state(self) -> object:
        return self._rows

    def load(self, state: Any) -> None:
        self._rows = state

    def merge(self, other: Self) -> None:
        self._rows |= other._rows


class Oracle(Task[OracleProtocol]):
    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "reads labels off pictures that show them"
    protocols: Mapping[str, OracleProtocol] = {
        "windows": OracleProtocol(name="windows"),
        "depth": OracleProtocol(name="depth", kind="depth"),
        "stored": OracleProtocol(name="stored", kind="stored"),
    }

    def requests(
        self, architecture: Any, datasets: Any, protocol: OracleProtocol, seed: int = 0
    ) -> dict[Role, TokenRequest]:
        train, test = protocol.views(architecture.patch)
        if protocol.kind == "stored":
            return {
                "train": TokenRequest(train, select=(EVERY,), dense="crops"),
                "test": TokenRequest(test, select=(EVERY,), dense="pictures"),
            }
        common: dict[str, Any] = {"layers": (3,), "pixels": True}
        shuffled: dict[str, Any] = {"order": "shuffled", "steps": 4, "step_size": 3}
        return {
            "train": TokenRequest(train, **common, **shuffled, dense="crops"),
            "test": TokenRequest(test, **common, dense="pictures"),
        }

    def start(self, context: Context[OracleProtocol]) -> OracleEvaluation:
        return OracleEvaluation(context)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_task", lambda name: Oracle())
    monkeypatch.setattr(ScenesDataset, "picture", lambda self, index: show(self.dense(index)))


@pytest.fixture
def go(tiny_models: Path, tmp_path: Path) -> Any:
    def run_it(protocol: str, **changes: Any) -> Record:
        given: dict[str, Any] = {
            "tasks": ["oracle"],
            "models": ["tiny-reg4"],
            "datasets": ["scenes"],
            "protocols": [protocol],
            "model_files": [tiny_models],
            "out": tmp_path / "out",
            "limit": PICTURES,
            "workers": 0,
            "device": "cpu",
            "overwrite": True,
        }
        options = Options(**{**given, **changes})
        ((_, record),) = run.run(plan.plan(options), options)
        return record

    return run_it


def values(record: Record) -> dict[str, float]:
    return {name: metric.value for name, metric in record.metrics.items()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("protocol", ["windows", "depth"])
def test_who_reads_the_labels_off_the_pixels_is_right_at_full_size(protocol: str, go: Any) -> None:
    record = go(protocol)
    assert values(record)["right"] == 100
    windows = 2 * (4 if protocol == "windows" else 1)  # and 4 steps of 3 crops to train
    assert record.cost.forward_passes == PICTURES * windows + 12
    assert [len(ids) for ids in record.details["trained"]] == [3, 3, 3, 3]
    for changes in ({"batch_size": 1}, {"batch_size": 7}, {"workers": 1}, {"workers": 3}):
        other = go(protocol, **changes)
        assert values(other) == pytest.approx(values(record), rel=1e-5), changes
        assert other.details == record.details, changes


def test_a_plan_counts_the_windows(tiny_models: Path, tmp_path: Path) -> None:
    options = Options(
        tasks=["oracle"],
        models=["tiny-reg4"],
        datasets=["scenes"],
        protocols=["windows", "depth"],
        model_files=[tiny_models],
        out=tmp_path,
        limit=PICTURES,
    )
    windows, depth = (list(cell.passes.values()) for cell in plan.plan(options))
    assert windows == [12, PICTURES * 8] and depth == [12, PICTURES * 2]


def test_patches_and_labels_of_pictures_come_from_the_store(go: Any) -> None:
    first = go("stored")
    assert values(first)["right"] == 100 and first.cost.forward_passes == 2 * PICTURES
    for changes in ({}, {"batch_size": 2}, {"workers": 1}):
        again = go("stored", **changes)
        assert again.cost.forward_passes == 0
        assert values(again) == values(first)
    streamed = go("stored", store=False)
    assert values(streamed) == values(first) and streamed.cost.forward_passes == 2 * PICTURES


@pytest.mark.parametrize("protocol", ["windows", "stored"])
def test_registers_move_nothing_that_is_dense(
    protocol: str, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, forward = values(go(protocol, store=False)), Backbone.__call__

    def permuted(self: Backbone, *rest: Any) -> Forward:
        found = forward(self, *rest)
        tokens = {
            read: Tokens(each.cls, each.registers.flip(1) * 5, each.patches, each.pooled)
            for read, each in found.tokens.items()
        }
        return Forward(tokens, found.attention)

    monkeypatch.setattr(Backbone, "__call__", permuted)
    assert values(go(protocol, store=False)) == expected


@pytest.mark.parametrize("protocol", ["windows", "stored"])
def test_a_bad_mask_names_its_picture_or_is_skipped_and_counted(
    protocol: str, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = ScenesDataset.dense

    def torn(self: ScenesDataset, index: int) -> Dense:
        if index == 2 and self.split == "test":
            return Dense(semantic=np.zeros((SIDE, SIDE - 1), np.uint8))
        return dense(self, index)

    monkeypatch.setattr(ScenesDataset, "picture", lambda self, index: show(dense(self, index)))
    monkeypatch.setattr(ScenesDataset, "dense", torn)
    with pytest.raises(BadPicture, match=r"test-000002: semantic labels of 127x128.*128x128"):
        go(protocol)
    record = go(protocol, on_bad_picture="skip")
    assert [bad.id for bad in record.bad_pictures] == ["test-000002"]
    assert values(record)["right"] == 100
