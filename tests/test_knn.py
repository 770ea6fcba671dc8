from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import (
    Features,
    Labelled,
    Labels,
    batch,
    clusters,
    colours,
    expected_scores,
    feed,
    finished,
    imagenette,
    labelled,
    recorded,
    table,
)
from harness.tasks.knn import KNN, KnnEvaluation, KnnProtocol, few_shot
from tiny import ARCHITECTURE

from harness import evaluate
from harness.backbone.layout import Tokens
from harness.backbone.vit import Read
from harness.bench.knn import knn
from harness.collected import Examples
from harness.data.dataset import Dataset, Role
from harness.errors import HarnessError
from harness.features.select import Selected, select
from harness.records import read_columns, record_path
from harness.schema import Record
from harness.task import Context, NotApplicable, Outcome

PLAIN = KNN.protocols["dinov2-knn"]


def blobs(train: int, test: int, classes: int, seed: int = 0) -> tuple[Features, Labels]:
    return clusters(classes, 1.0, seed=seed, train=train, test=test)


def started(protocol: KnnProtocol, labels: Labels, classes: int, seed: int = 0) -> KnnEvaluation:
    datasets = labelled(labels, classes)
    KNN.requests(ARCHITECTURE, datasets, protocol)
    return KNN.start(Context(ARCHITECTURE, datasets, protocol, seed))


def scored(
    protocol: KnnProtocol, features: Features, labels: Labels, classes: int, seed: int = 0
) -> Outcome:
    return finished(started(protocol, labels, classes, seed), features)


@pytest.mark.parametrize("registers", [0, 4])
def test_on_recorded_features_top_1_is_the_official_codes(
    registers: int, shared_reference: Path
) -> None:
    expected = expected_scores(shared_reference, registers)
    features, labels = recorded(shared_reference, registers)
    outcome = scored(PLAIN, features, labels, 10)
    for k in PLAIN.k:
        hits = np.asarray(outcome.columns[f"top1_k{k}"], float)
        assert 100 * hits.mean() == pytest.approx(expected[f"knn_top1_k{k}"], abs=1e-4)


def test_columns_say_hits_labels_and_predictions_in_the_data_sets_order() -> None:
    features, labels = blobs(40, 12, 7)
    outcome = scored(PLAIN.changed({"k": [3, 1]}), features, labels, 7)
    columns = {name: np.asarray(column) for name, column in outcome.columns.items()}
    assert columns["image_id"].tolist() == [f"test/{place}" for place in range(12)]
    assert columns["label"].tolist() == labels["test"]
    assert list(outcome.metrics) == ["top1_k1", "top5_k1", "top1_k3", "top5_k3"]
    unit = {role: torch.nn.functional.normalize(each) for role, each in features.items()}
    nearest = (unit["test"] @ unit["train"].T).argmax(1)
    assert columns["predicted_k1"].tolist() == (nearest % 7).tolist()
    for k in (1, 3):
        right = columns[f"predicted_k{k}"] == columns["label"]
        np.testing.assert_array_equal(columns[f"top1_k{k}"], right)
        assert (columns[f"top5_k{k}"] >= right).all()
    assert 0 < columns["top1_k3"].mean() < 1, "the case is too easy or too hard: it shows little"


def test_neither_the_batch_nor_the_order_of_arrival_shows() -> None:
    features, labels = blobs(60, 30, 4)
    protocol = PLAIN.changed({"k": [1, 5, 20], "n_per_class": 10, "draws": 2})
    tables = []
    for size, seed in ((1, 0), (7, 1), (64, 2)):
        evaluation = started(protocol, labels, 4)
        for role, values in features.items():
            order = torch.randperm(
                len(values), generator=torch.Generator().manual_seed(seed)
            ).tolist()
            feed(evaluation, role, values, order, size)
        tables.append(table(evaluation.finish()))
    assert tables[0] == tables[1] == tables[2]


def test_halves_merged_or_resumed_are_the_whole() -> None:
    features, labels = blobs(40, 20, 4)
    protocol = PLAIN.changed({"k": [5]})
    whole, left, right, resumed = (started(protocol, labels, 4) for _ in range(4))
    for role, values in features.items():
        half, rest = list(range(len(values) // 2)), list(range(len(values) // 2, len(values)))
        for evaluation in (whole, left):
            feed(evaluation, role, values, half)
        for evaluation in (whole, right):
            feed(evaluation, role, values, rest)
    resumed.load(left.state())
    for role, values in features.items():
        feed(resumed, role, values, list(range(len(values) // 2, len(values))))
    left.merge(right)
    tables = [table(evaluation.finish()) for evaluation in (whole, left, resumed)]
    assert tables[0] == tables[1] == tables[2]


def test_few_shot_scores_are_means_over_draws_and_their_spread_is_told() -> None:
    features, labels = blobs(200, 50, 5)
    protocol = PLAIN.changed({"k": [1, 3, 100], "n_per_class": 4, "draws": 6})
    outcome = scored(protocol, features, labels, 5)
    assert [name for name in outcome.metrics if name.startswith("top1")] == [
        "top1_k1",
        "top1_k3",
        "top1_k4",  # n_per_class itself, as the official code adds it; 100 is above it
    ]
    for name in outcome.metrics:
        by_draw = outcome.details["draws"][name]
        assert len(by_draw) == 6
        assert 100 * np.mean(outcome.columns[name]) == pytest.approx(np.mean(by_draw))
        assert outcome.metrics[name].sd == pytest.approx(np.std(by_draw, ddof=1))
    assert (outcome.metrics["top1_k1"].sd or 0) > 0
    assert outcome.resolved["train_pictures"] == 20
    assert not any(name.startswith("predicted") for name in outcome.columns)
    again = scored(protocol, features, labels, 5)
    other = scored(protocol, features, labels, 5, seed=1)
    assert table(again) == table(outcome) != table(other)


def test_a_draw_takes_of_each_class_as_many_and_does_not_depend_on_other_pictures() -> None:
    ids = tuple(f"{place}" for place in range(90))
    labels = np.arange(90) % 3
    train = Examples(ids, torch.zeros(90, 1), labels)
    rows = few_shot(train, 7, 0, 0).numpy()
    assert np.bincount(labels[rows]).tolist() == [7, 7, 7]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() != few_shot(train, 7, 0, 1).tolist()
    kept = np.flatnonzero(labels != 2)
    fewer = Examples(tuple(ids[row] for row in kept), torch.zeros(60, 1), labels[kept])
    without = few_shot(fewer, 7, 0, 0).numpy()
    assert kept[without].tolist() == [row for row in rows if labels[row] != 2]


def test_of_equal_pictures_the_first_of_train_vote_whatever_came_first() -> None:
    labels: Labels = {"train": [1] * 3 + [0] * 60, "test": [1, 0]}
    features: Features = {"train": torch.ones(63, 8), "test": torch.ones(2, 8)}
    evaluation = started(PLAIN.changed({"k": [3]}), labels, 2)
    feed(evaluation, "train", features["train"], list(range(62, -1, -1)))
    feed(evaluation, "test", features["test"], [0, 1])
    assert evaluation.finish().columns["predicted_k3"].tolist() == [1, 1]


def test_pictures_without_the_token_are_left_out_and_counted() -> None:
    features, labels = blobs(20, 10, 2)
    protocol = PLAIN.changed({"k": [3], "token": "outlier", "outliers": 150, "draws": 2})
    evaluation = started(protocol, labels, 2)
    evaluation._context = replace(
        evaluation._context, cutoffs={evaluation._selectors[0].rule: 150.0}
    )
    for role, values in features.items():
        rows = list(range(len(values)))
        there = torch.tensor([row % 5 != 0 for row in rows])
        found = {
            selector: Selected(values * (draw == 0), there)
            for draw, selector in enumerate(evaluation._selectors)
        }
        evaluation.update(role, batch(role, rows, found))
    outcome = evaluation.finish()
    assert outcome.counts == {"train_without_token": 4, "test_without_token": 2}
    assert "test/0" not in outcome.columns["image_id"] and len(outcome.columns["image_id"]) == 8
    assert outcome.resolved["outlier_cutoff"] == 150.0
    assert outcome.resolved["train_pictures"] == 16
    assert len(set(outcome.details["draws"]["top1_k3"])) == 2, "both draws were of one feature"


def test_register_values_do_not_move_patch_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    protocol = PLAIN.changed({"token": "patch-mean", "k": [3]})
    labels: Labels = {"train": [0, 1] * 10, "test": [0, 1] * 4}
    tokens = {
        role: Tokens(
            torch.randn(len(of), 48, generator=generator),
            torch.randn(len(of), 4, 48, generator=generator) * 100,
            torch.randn(len(of), 3, 3, 48, generator=generator),
        )
        for role, of in labels.items()
    }
    tables = []
    for shuffled in (False, True):
        evaluation = started(protocol, labels, 2)
        (selector,) = evaluation._selectors
        for role, each in tokens.items():
            if shuffled:
                mixed = torch.randperm(each.registers.numel(), generator=generator)
                registers = each.registers.flatten()[mixed].view_as(each.registers)
                each = Tokens(each.cls, registers, each.patches)
            rows = list(range(len(labels[role])))
            ids = [f"{role}/{row}" for row in rows]
            found = select(selector, {Read(3, "token", True): each}, ids, {})
            evaluation.update(role, batch(role, rows, {selector: found}))
        tables.append(table(evaluation.finish()))
    assert tables[0] == tables[1]


def test_an_index_of_cells_is_close_and_says_how_many() -> None:
    features, labels = blobs(400, 60, 4)
    exact = scored(PLAIN.changed({"k": [10]}), features, labels, 4)
    protocol = PLAIN.changed({"k": [10], "index": "ivf", "ivf_probes": 8})
    outcome = scored(protocol, features, labels, 4)
    assert outcome.resolved["ivf_lists"] == 20
    agree = np.mean(outcome.columns["predicted_k10"] == exact.columns["predicted_k10"])
    assert agree > 0.8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, r"k 200 is more than its 30 train pictures; --set k=\[10,20\]$"),
        ({"k": 31}, r"k 31 is more than its 30 train pictures; --set k=\[30\]$"),
        (
            {"n_per_class": 12},
            "n_per_class 12: the class 'class 2' has 6 train pictures; --set n_per_class=6",
        ),
        ({"k": 5, "index": "ivf", "ivf_lists": 31}, "ivf_lists 31 is more than the 30"),
    ],
)
def test_too_few_train_pictures_are_refused_before_anything_runs(
    change: dict[str, object], complaint: str
) -> None:
    datasets: dict[Role, Dataset] = {
        "train": Labelled("train", [0] * 12 + [1] * 12 + [2] * 6, 3),
        "test": Labelled("test", [0, 1, 2], 3),
    }
    with pytest.raises(HarnessError, match=complaint):
        KNN.requests(ARCHITECTURE, datasets, PLAIN.changed(change))


def test_train_pictures_that_turned_out_too_few_are_refused_at_the_end() -> None:
    """Bad pictures may have been skipped."""
    features, labels = blobs(12, 4, 2)
    evaluation = started(PLAIN.changed({"k": 12}), labels, 2)
    feed(evaluation, "train", features["train"], list(range(11)))
    feed(evaluation, "test", features["test"], list(range(4)))
    with pytest.raises(HarnessError, match="k 12 is more than its 11 train pictures"):
        evaluation.finish()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(12, 4, 2)
    features["train"][3, 2] = float("nan")
    evaluation = started(PLAIN.changed({"k": 5}), labels, 2)
    with pytest.raises(HarnessError, match="the feature of train/3 is not finite"):
        feed(evaluation, "train", features["train"], list(range(12)))


def test_a_class_that_train_lacks_is_never_right_and_counted() -> None:
    features, labels = blobs(20, 10, 2)
    labels["test"] = [2] * 3 + labels["test"][3:]
    outcome = scored(PLAIN.changed({"k": 5}), features, labels, 3)
    assert not np.asarray(outcome.columns["top1_k5"])[:3].any()
    assert outcome.counts == {"test_pictures_of_classes_not_in_train": 3}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"k": []}, "k: "),
        ({"k": 0}, "k.0: "),
        ({"k": 2001}, "k.0: "),
        ({"temperature": 0}, "temperature: "),
        ({"draws": 3}, "draws 3: nothing is drawn"),
        ({"ivf_lists": 3}, "ivf_lists: of the index ivf, not of flat"),
        ({"n_per_class": 0}, "n_per_class: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        PLAIN.changed(change)


def test_the_same_k_in_another_order_are_the_same_protocol() -> None:
    assert PLAIN.changed({"k": [200, 10, 20, 100, 10]}).hash() == PLAIN.hash()
    assert PLAIN.changed({"k": 20}).k == (20,)


def test_a_data_set_without_train_or_labels_is_not_applicable() -> None:
    train, test = Labelled("train", [0, 1], 2), Labelled("test", [None, None], 2)
    with pytest.raises(NotApplicable, match="no train split"):
        KNN.requests(ARCHITECTURE, {"test": test}, PLAIN)
    with pytest.raises(NotApplicable, match="no labels"):
        KNN.requests(ARCHITECTURE, {"train": train, "test": test}, PLAIN)


def test_from_pictures_to_a_record_whatever_the_batch(tiny_models: Path, tmp_path: Path) -> None:
    datasets = colours(tmp_path, train=6, val=3)
    tables, records = [], []
    for size in (1, 7, 64):
        (record,) = evaluate(
            "knn",
            "tiny-reg4",
            "colours",
            model_files=[tiny_models],
            dataset_files=[datasets],
            settings={"k": [1, 3], "crop": 56, "resize": 56},
            out=tmp_path / str(size),
            batch_size=size,
            workers=0,
            device="cpu",
        )
        tables.append(columns_of(tmp_path / str(size), "colours", "tiny-reg4", record))
        records.append(record)
    assert tables[0] == tables[1] == tables[2]
    assert records[0].metrics["top1_k3"].value > 50
    assert (records[0].cost.pictures, records[0].cost.forward_passes) == (18, 18)
    assert records[0].protocol.resolved["train_pictures"] == 12


def columns_of(out: Path, dataset: str, model: str, record: Record) -> dict[str, list[Any]]:
    path = record_path(out, dataset, "knn", model, "dinov2-knn", record.variant)
    return {name: column.tolist() for name, column in read_columns(path).items()}


def test_the_benchmark_compares_like_with_like() -> None:
    facts = knn("cpu", train=400, queries=300, classes=20, width=16)
    assert facts["top1_agreement"] == 1.0
    assert (facts["train"], facts["queries"], facts["k"]) == (400, 300, [10, 20, 100, 200])
    assert facts["plain_extra_mib"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_on_real_pictures_top_1_is_the_official_pipelines_within_one_picture(
    registers: int, shared_data: Path, shared_reference: Path, tiny_models: Path, tmp_path: Path
) -> None:
    expected = expected_scores(shared_reference, registers)
    datasets = imagenette(tmp_path, shared_data)
    (record,) = evaluate(
        "knn",
        "tiny-reg4" if registers else "tiny",
        "imagenette",
        model_files=[tiny_models],
        dataset_files=[datasets],
        out=tmp_path,
        device="cpu",
    )
    for k in PLAIN.k:
        found = record.metrics[f"top1_k{k}"].value
        assert found == pytest.approx(expected[f"knn_top1_k{k}"], abs=100 / 300 + 1e-4), k
