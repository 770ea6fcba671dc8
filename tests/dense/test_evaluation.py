"""Heads are trained as they would be by hand, and a state goes on to the same weights."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURE

from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.data.dataset import Dataset, Dense, Role, Sample
from harness.data.views import Geometry
from harness.dense.classes import ClassJudge
from harness.dense.evaluation import HeadEvaluation, learning_roles
from harness.dense.reading import Reading
from harness.errors import HarnessError
from harness.features.order import shuffled
from harness.features.select import Selected
from harness.probes.dense_head import DenseHeads
from harness.task import Batch, Context, DenseCrops, NotApplicable
from harness.task_names import find_task

CLASSES = ("a", "b", "c")
GRID, SIDE, PATCH = 2, 28, 14
PLACE = Geometry((SIDE, SIDE), (SIDE, SIDE), (0, 0, SIDE, SIDE), (0, 0, 0, 0))


class Pictures(Dataset):
    def __init__(self, split: str, count: int) -> None:
        self.name, self.split, self.semantic_classes = "made", split, CLASSES
        self.samples = [Sample(f"{split}{place}", (SIDE, SIDE)) for place in range(count)]


DATASETS: dict[Role, Dataset] = {"train": Pictures("train", 6), "test": Pictures("test", 3)}
LABELS = torch.randint(0, 3, (6, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).byte()
TOKENS = torch.randn(6, GRID, GRID, 48, generator=torch.Generator().manual_seed(2))


def protocol(name: str, **settings: Any) -> Any:
    small = {"batch_size": 2, "steps": 9, "learning_rates": [1e-3, 1e-2], **settings}
    return find_task("segmentation").protocols[name].changed(small)


def started(settings: Any, seed: int = 3) -> Any:
    context = Context(ARCHITECTURE, DATASETS, settings, seed)
    return find_task("segmentation").start(context)


def batch(role: Role, rows: list[int], stored: Reading | None) -> Batch:
    tokens = TOKENS[rows]
    labels = LABELS[rows]
    read = {Read(3, "token", True): Tokens(tokens[:, 0, 0], tokens[:, 0], tokens)}
    selected = (
        {}
        if stored is None
        else {stored.selectors[0]: Selected(tokens.flatten(1).half(), torch.ones(len(rows)).bool())}
    )
    test = role == "test"
    return Batch(
        tokens={} if stored else read,
        attention={},
        ids=tuple(f"{role}{row}" for row in rows),
        targets=(),
        sample=tuple(range(len(rows))),
        geometry=(PLACE,) * len(rows),
        selected=selected,
        crops=(1,) * len(rows),
        dense=tuple(Dense(semantic=each.numpy()) for each in labels) if test else (),
        dense_crops=None if test else DenseCrops(semantic=labels),
    )


def weights(heads: DenseHeads) -> list[torch.Tensor]:
    return list(heads.state()["tensors"].values())


@pytest.mark.parametrize("name", ["linear-seg", "dinov2-linear-seg"])
def test_heads_are_those_of_a_plain_loop(name: str) -> None:
    settings = protocol(name, selection_share=0.3) if name == "linear-seg" else protocol(name)
    one = settings.changed({"learning_rates": 1e-2})
    evaluation, reading = started(one), Reading.of(ARCHITECTURE, "last", True)
    order = list(shuffled(6, 18, 3))
    if name == "linear-seg":
        for rows in ([3, 1], [0, 2, 5, 4]):
            evaluation.update("train", batch("train", rows, reading))
    else:
        for step in range(9):
            evaluation.update("train", batch("train", order[2 * step : 2 * step + 2], None))
    evaluation.end("train")
    judge = ClassJudge(CLASSES, evaluation._judge.objective, None, PATCH)
    plain = DenseHeads(one.heads(), 48, judge.objective, one.form(), one.training(9), 3)
    for step in range(9):
        rows = order[2 * step : 2 * step + 2]
        tokens = TOKENS[rows].half().float() if name == "linear-seg" else TOKENS[rows]
        labels = LABELS[rows]
        if name != "linear-seg":
            labels = evaluation._judge.targets(DenseCrops(semantic=labels))
        plain.step(tokens, labels)
    for ours, theirs in zip(weights(evaluation._trained.heads), weights(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("when", ["in train", "after train", "in test"])
@pytest.mark.parametrize("name", ["linear-seg", "dinov2-linear-seg", "knn-seg"])
def test_a_state_goes_on_to_the_same_outcome(name: str, when: str) -> None:
    reading = Reading.of(ARCHITECTURE, "last", True)
    settings: Any = find_task("segmentation").protocols[name]
    settings = settings if name == "knn-seg" else protocol(name)
    stored = None if name == "dinov2-linear-seg" else reading
    learn = [[0, 1], [2, 3], [4, 5]]
    found = []
    for stop in (None, when):
        evaluation = started(settings)

        def again(point: str, evaluation: Any = evaluation, stop: str | None = stop) -> Any:
            if point != stop:
                return evaluation
            other = started(settings)
            other.load(pickle.loads(pickle.dumps(evaluation.state())))
            return other

        for number, rows in enumerate(learn):
            evaluation.update("train", batch("train", rows, stored))
            if number == 1:
                evaluation = again("in train", evaluation)
        evaluation.end("train")
        evaluation = again("after train", evaluation)
        evaluation.update("test", batch("test", [2, 0], stored))
        evaluation = again("in test", evaluation)
        evaluation.update("test", batch("test", [1], stored))
        found.append(evaluation.finish())
    first, second = found
    assert first.metrics == second.metrics and first.resolved == second.resolved
    assert first.details == second.details and first.counts == second.counts
    assert first.columns["image_id"] == ["test0", "test1", "test2"]
    for name_, column in first.columns.items():
        assert np.array_equal(column, second.columns[name_]), name_


def test_a_state_taken_between_two_crops_is_not_moved_by_what_comes_after() -> None:
    settings = find_task("segmentation").protocols["knn-seg"]
    reading = Reading.of(ARCHITECTURE, "last", True)
    first = started(settings)
    first.update("train", batch("train", [0, 1, 2, 3], reading))
    first.end("train")
    half = replace(batch("test", [0], reading), crops=(2,))
    first.update("test", half)
    state = pickle.loads(pickle.dumps(first.state())), first.state()
    first.update("test", half)
    for each in state:
        other = started(settings)
        other.load(each)
        other.update("test", half)
        assert np.array_equal(
            other.finish().columns["labelled"], first.finish().columns["labelled"]
        )


def test_a_token_that_is_no_number_is_an_error() -> None:
    evaluation = started(protocol("dinov2-linear-seg"))
    broken = batch("train", [0, 1], None)
    broken.tokens[Read(3, "token", True)].patches[0, 0, 0, 0] = float("nan")
    try:
        with pytest.raises(HarnessError, match="not finite"):
            evaluation.update("train", broken)
    finally:
        TOKENS[0, 0, 0, 0] = 0.5


def test_nothing_to_train_on_is_an_error() -> None:
    for name in ("linear-seg", "dinov2-linear-seg"):
        evaluation = started(protocol(name))
        evaluation.end("train")
        evaluation.update("test", batch("test", [0], None))  # its neighbours' pass goes on
        with pytest.raises(HarnessError, match="no train picture"):
            evaluation.finish()


def test_a_head_that_cannot_be_had_is_told_after_a_state_was_loaded_too() -> None:
    evaluation = started(protocol("linear-seg"))
    evaluation.end("train")
    other = started(protocol("linear-seg"))
    other.load(pickle.loads(pickle.dumps(evaluation.state())))
    other.update("test", batch("test", [0], None))
    with pytest.raises(HarnessError, match="no train picture"):
        other.finish()


def test_a_split_that_is_there_chooses_where_there_is_something_to_choose() -> None:
    with_select: dict[Role, Any] = {**DATASETS, "select": Pictures("select", 2)}
    assert learning_roles(protocol("linear-seg"), with_select) == ["train", "select"]
    alone = protocol("linear-seg", learning_rates=1e-3)
    assert learning_roles(alone, with_select) == ["train"]
    assert learning_roles(protocol("dinov2-linear-seg"), with_select) == ["train"]
    task = find_task("segmentation")
    asked = task.requests(ARCHITECTURE, with_select, protocol("linear-seg"))
    assert list(asked) == ["train", "select", "test"]


def test_heads_that_were_trained_apart_are_not_merged() -> None:
    one: HeadEvaluation[Any] = started(protocol("linear-seg"))
    with pytest.raises(TypeError):
        one.merge(one)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("last", (3,)), ("last:4", (0, 1, 2, 3)), ("quarters", (0, 1, 2, 3)), ((-1, 0), (3, 0))],
)
def test_layers_stand_side_by_side(layers: Any, expected: tuple[int, ...]) -> None:
    reading = Reading.of(ARCHITECTURE, layers, False, class_token=True)
    assert reading.layers == expected
    assert reading.width == 48 * 2 * len(expected)


def test_a_layer_that_the_model_does_not_have_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="layer 9"):
        Reading.of(ARCHITECTURE, (9,), True)
    with pytest.raises(NotApplicable, match="no layer"):
        Reading.of(ARCHITECTURE, (), True)
