from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import Features, Labelled, batch, feed, finished, table
from harness.tasks.knn import KNN
from harness.tasks.linear import LINEAR
from harness.tasks.logistic import LOGISTIC, MultilabelEvaluation
from numpy.typing import NDArray
from several import COLOURS, squares
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from tiny import ARCHITECTURE

from harness import evaluate
from harness.aggregates import score, values
from harness.data.catalog import Catalog
from harness.data.dataset import Dataset, Labels, Role, Sample, Target
from harness.differences import differences
from harness.errors import HarnessError
from harness.features.select import Selected
from harness.options import Options
from harness.plan import plan
from harness.records import read_columns, record_path
from harness.run import run
from harness.task import Context, NotApplicable, Outcome, Task

PLAIN = LOGISTIC.protocols["logistic-multilabel"]
SHORT = PLAIN.changed({"c_low": -3, "c_high": 2, "c_count": 6})
Present = dict[Role, NDArray[np.int64]]


class Several(Dataset):
    """Ids and labels only, of ``present [n, classes]``."""

    def __init__(self, split: str, present: NDArray[np.int64]) -> None:
        self.name, self.split = "several", split
        self.classes = tuple(f"class {place}" for place in range(present.shape[1]))
        self.samples = [
            Sample(f"{split}/{place}", (224, 224), Target(labels=_labels(row)))
            for place, row in enumerate(present)
        ]


def _labels(row: NDArray[np.int64]) -> Labels:
    present, unclear = (tuple(np.flatnonzero(row == kind).tolist()) for kind in (1, -1))
    return Labels(present, unclear)


def shown(
    classes: int = 4, unclear: float = 0.1, noise: float = 2.0, seed: int = 0, **counts: int
) -> tuple[Features, Present]:
    """Features that are the sum of the centres of the classes shown, and noise."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, 8))
    features: Features = {}
    present: Present = {}
    for role in ("train", "select", "test"):
        if count := counts.get(role):
            labels = (np.random.default_rng(count).random((count, classes)) < 0.35).astype(np.int64)
            values_ = labels @ centres + noise * generator.normal(size=(count, 8))
            labels[np.random.default_rng(count + 1).random(labels.shape) < unclear] = -1
            features[role] = torch.from_numpy(values_).float()  # type: ignore[index]
            present[role] = labels  # type: ignore[index]
    return features, present


def started(protocol: Any, present: Present) -> MultilabelEvaluation:
    datasets: dict[Role, Dataset] = {role: Several(role, of) for role, of in present.items()}
    LOGISTIC.requests(ARCHITECTURE, datasets, protocol)
    evaluation = LOGISTIC.start(Context(ARCHITECTURE, datasets, protocol, 0))
    assert isinstance(evaluation, MultilabelEvaluation)
    return evaluation


def scored(protocol: Any, features: Features, present: Present) -> Outcome:
    return finished(started(protocol, present), features)


def by_scikit_learn(
    features: torch.Tensor, present: NDArray[np.int64], c: float, asked: torch.Tensor
) -> NDArray[np.float64]:
    """``[asked, classes]``: a classifier a class, on the pictures that are clear."""
    columns = []
    for own in present.T:
        model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12)
        model.fit(features[own >= 0].double().numpy(), own[own >= 0])
        columns.append(model.decision_function(asked.double().numpy()))
    return np.stack(columns, axis=1)


def by_area(scores: NDArray[np.float64], present: NDArray[np.int64]) -> list[float]:
    pairs = zip(present.T, scores.T, strict=True)
    return [average_precision_score(own[own >= 0], of[own >= 0]) for own, of in pairs]


def test_the_protocol_is_the_published_grid_with_one_c_for_all_classes() -> None:
    assert np.allclose(PLAIN.strengths, 10.0 ** np.linspace(-6, 5, 45))
    assert (PLAIN.average_precision, PLAIN.one_c_for) == ("11-point", "all classes")
    dinov2 = LOGISTIC.protocols["dinov2-logistic"]
    ours = PLAIN.settings()
    assert {k: v for k, v in dinov2.settings().items() if k in ours and ours[k] != v} == {
        "name": "dinov2-logistic",
        "tie_break": "smallest C, lowest class",
    }


@pytest.mark.parametrize("one_c_for", ["all classes", "each class"])
def test_c_is_chosen_by_map_on_the_held_out_tenth_and_all_of_train_is_fitted(
    one_c_for: str,
) -> None:
    features, present = shown(train=300, test=80)
    change = {"tolerance": 1e-13, "average_precision": "area", "one_c_for": one_c_for}
    outcome = scored(SHORT.changed(change), features, present)
    ids = [f"train/{place}" for place in range(300)]
    held = sorted(ids, key=lambda each: hashlib.sha256(each.encode()).hexdigest())[:30]
    mask = np.array([each in held for each in ids])
    x, y = features["train"], present["train"]
    apart = 100 * np.array(
        [by_area(by_scikit_learn(x[~mask], y[~mask], c, x[mask]), y[mask]) for c in SHORT.strengths]
    )
    assert outcome.details["map_on_selection"] == [pytest.approx(apart.mean(axis=1), abs=1e-3)]
    if one_c_for == "each class":
        chosen = [SHORT.strengths[place] for place in apart.argmax(axis=0)]
        assert len(set(chosen)) > 1, "each class would choose alike: it shows nothing"
        assert outcome.details["chosen"] == [chosen] and "c" not in outcome.resolved
    else:
        chosen = [SHORT.strengths[int(apart.mean(axis=1).argmax())]] * 4
        assert outcome.details["chosen"] == [chosen[:1]] and outcome.resolved["c"] == chosen[0]
    expected = np.stack(
        [by_scikit_learn(x, y, c, features["test"])[:, place] for place, c in enumerate(chosen)],
        axis=1,
    )
    assert np.allclose(outcome.columns["scores"], expected, rtol=1e-3, atol=1e-3)
    assert np.array_equal(outcome.columns["present"], present["test"])
    told = outcome.details["average_precision"]
    assert list(told) == [f"class {place}" for place in range(4)]
    assert list(told.values()) == pytest.approx(
        [100 * each for each in by_area(expected, present["test"])], abs=1e-3
    )
    assert outcome.counts == {"train_pictures": 300, "selection_pictures": 30}
    assert outcome.selected_on == "held-out pictures"
    assert outcome.details["not_converged"] == 0


def test_of_equal_values_of_c_the_smallest_is_chosen() -> None:
    features, present = shown(train=100, test=10, noise=0.01)
    outcome = scored(SHORT, features, present)
    (scores,) = outcome.details["map_on_selection"]
    assert scores.count(max(scores)) > 1, "the case has no tie: it shows nothing"
    assert outcome.resolved["c"] == SHORT.strengths[scores.index(max(scores))]


def test_a_split_for_selection_chooses_and_is_fitted_with_train_at_the_end() -> None:
    features, present = shown(train=60, select=50, test=40)
    outcome = scored(SHORT, features, present)
    assert outcome.selected_on == "select"
    assert outcome.counts == {"train_pictures": 110, "selection_pictures": 50}
    both: Features = {
        "train": torch.cat([features["train"], features["select"]]),
        "test": features["test"],
    }
    joined: Present = {
        "train": np.concatenate([present["train"], present["select"]]),
        "test": present["test"],
    }
    log_c = float(np.log10(outcome.resolved["c"]))
    alone = SHORT.changed({"c_low": log_c, "c_high": log_c, "c_count": 1})
    assert table(scored(alone, both, joined)) == table(outcome)


def test_neither_the_batch_nor_the_order_of_arrival_shows() -> None:
    features, present = shown(train=60, test=30)
    whole = scored(SHORT, features, present)
    for size, step in ((1, 1), (7, -1), (64, -1)):
        evaluation = started(SHORT, present)
        for role, of in features.items():
            feed(evaluation, role, of, list(range(len(of)))[::step], size)
        other = evaluation.finish()
        assert table(other) == table(whole) and other.details == whole.details


def test_a_class_that_is_not_fitted_is_left_out_of_the_mean_and_counted() -> None:
    features, present = shown(train=80, test=30)
    without = {role: of.copy() for role, of in present.items()}
    without["train"][:, 1] = np.where(without["train"][:, 1] == 1, -1, 0)
    protocol = SHORT.changed({"tolerance": 1e-13})
    outcome = scored(protocol, features, without)
    assert outcome.counts["classes_not_fitted"] == 1
    assert outcome.counts["classes_without_say_in_selection"] == 1
    assert outcome.details["average_precision"]["class 1"] is None
    assert (np.asarray(outcome.columns["present"])[:, 1] == -1).all()
    kept = [0, 2, 3]
    three = scored(protocol, features, {role: of[:, kept] for role, of in present.items()})
    spec = outcome.metrics["map"]
    found, alone = (
        score(spec.aggregate, [np.asarray(each.columns[n]) for n in ("scores", "present")], 100, 0)
        for each in (outcome, three)
    )
    assert (found[0], *found[1]) == pytest.approx((alone[0], *alone[1]))


def test_a_class_that_test_lacks_is_left_out_of_the_mean_and_counted() -> None:
    features, present = shown(train=80, test=30)
    present["test"][:, 2] = 0
    outcome = scored(SHORT, features, present)
    assert outcome.counts["classes_not_in_test"] == 1
    assert outcome.details["average_precision"]["class 2"] is None


def test_a_class_that_no_picture_which_chooses_shows_has_no_say_and_is_judged_all_the_same() -> (
    None
):
    features, present = shown(train=60, select=30, test=40)
    present["select"][:, 3] = 0
    for one_c_for in ("all classes", "each class"):
        outcome = scored(SHORT.changed({"one_c_for": one_c_for}), features, present)
        assert outcome.counts["classes_without_say_in_selection"] == 1
        assert "classes_not_fitted" not in outcome.counts
        assert outcome.details["average_precision"]["class 3"] > 0
        best = int(np.argmax(outcome.details["map_on_selection"][0]))
        assert outcome.details["chosen"][0][-1] == SHORT.strengths[best]


def test_nothing_to_choose_by_and_nothing_to_judge_are_refused() -> None:
    features, present = shown(train=60, select=30, test=40)
    with pytest.raises(HarnessError, match="60 pictures to fit on and 30 to choose C on: no class"):
        scored(SHORT, features, {**present, "select": 0 * present["select"]})
    with pytest.raises(HarnessError, match="no class that was fitted is present in the 40 test"):
        scored(SHORT, features, {**present, "test": 0 * present["test"]})
    one_sided = np.tile([1, -1, 0, 1], (60, 1))
    with pytest.raises(NotApplicable, match="no class that some pictures show and others lack"):
        scored(SHORT, features, {**present, "train": one_sided})


def test_draws_are_fitted_apart_and_their_mean_and_spread_are_told() -> None:
    protocol = SHORT.changed({"token": "outlier", "outliers": 150, "draws": 3})
    counts = {"train": 80, "test": 40}
    present = shown(**counts)[1]
    evaluation = started(protocol, present)
    rule = evaluation._selectors[0].rule
    assert rule is not None
    evaluation._context = replace(evaluation._context, cutoffs={rule: 150.0})
    for role, of in present.items():
        found = {
            selector: Selected(
                shown(seed=draw, **counts)[0][role], torch.ones(len(of), dtype=torch.bool)
            )
            for draw, selector in enumerate(evaluation._selectors)
        }
        evaluation.update(role, batch(role, list(range(len(of))), found))
    outcome = evaluation.finish()
    apart = [scored(SHORT, shown(seed=draw, **counts)[0], present) for draw in range(3)]
    aggregate = outcome.metrics["map"].aggregate
    scores = [np.asarray(each.columns["scores"]) for each in apart]
    assert np.array_equal(outcome.columns["scores"], np.concatenate(scores, axis=1))
    by_draw = [100 * values(aggregate, [each, present["test"]]).mean() for each in scores]
    whole = score(
        aggregate, [np.asarray(outcome.columns[n]) for n in ("scores", "present")], 100, 0
    )
    assert whole[0] == pytest.approx(np.mean(by_draw))
    assert outcome.details["draws"]["map"] == pytest.approx(by_draw)
    assert outcome.metrics["map"].sd == pytest.approx(np.std(by_draw, ddof=1))
    assert len(set(by_draw)) == 3
    assert outcome.details["chosen"] == [[each.resolved["c"]] for each in apart]


@pytest.mark.parametrize("task", [KNN, LINEAR, LOGISTIC])
def test_several_classes_are_for_the_protocol_of_several_and_one_class_for_the_others(
    task: Task[Any],
) -> None:
    present = shown(train=10, test=10)[1]
    several: dict[Role, Dataset] = {role: Several(role, of) for role, of in present.items()}
    single: dict[Role, Dataset] = {role: Labelled(role, [0, 1] * 100, 2) for role in present}
    for protocol in task.protocols.values():
        if protocol is PLAIN:
            with pytest.raises(NotApplicable, match=r"one class .*dinov2-logistic"):
                task.requests(ARCHITECTURE, single, protocol)
            task.requests(ARCHITECTURE, several, protocol)
        else:
            with pytest.raises(NotApplicable, match=r"several classes .*logistic-multilabel"):
                task.requests(ARCHITECTURE, several, protocol)
            task.requests(ARCHITECTURE, single, protocol)


def test_labels_that_make_no_sense_are_told() -> None:
    present = shown(train=10, test=10)[1]
    datasets: dict[Role, Dataset] = {role: Several(role, of) for role, of in present.items()}

    def refused(test: Dataset, kind: type[Exception], told: str) -> None:
        with pytest.raises(kind, match=told):
            LOGISTIC.requests(ARCHITECTURE, {**datasets, "test": test}, PLAIN)

    def with_labels(labels: Labels | None) -> Dataset:
        test = Several("test", present["test"])
        test.samples = [*test.samples[:-1], Sample("odd", (1, 1), Target(labels=labels))]
        return test

    refused(with_labels(Labels((4,))), HarnessError, "a label of odd, 4, is none of the 4 classes")
    refused(with_labels(Labels((0,), (0,))), HarnessError, "0 of odd is both present and unclear")
    refused(with_labels(None), HarnessError, "odd has no labels")
    refused(Several("test", present["test"][:, :3]), HarnessError, r"train split \(class 3\)")
    refused(Labelled("test", [None], 4), NotApplicable, "its test split has no labels")
    with pytest.raises(NotApplicable, match="no train split"):
        LOGISTIC.requests(ARCHITECTURE, {"test": datasets["test"]}, PLAIN)


@pytest.mark.slow
def test_from_pictures_to_a_paired_difference_once_through_the_backbone(
    tiny_models: Path, tmp_path: Path
) -> None:
    dataset = squares(tmp_path)
    settings = {"crop": 56, "resize": 56}
    tables = []
    for size in (1, 7, 64):
        (record,) = evaluate(
            "logistic",
            "tiny-reg4",
            "squares",
            protocols=["logistic-multilabel"],
            settings=settings,
            model_files=[tiny_models],
            dataset_files=[dataset],
            out=tmp_path / str(size),
            batch_size=size,
            workers=0,
            device="cpu",
            store=False,
        )
        names = "squares", "logistic", "tiny-reg4", "logistic-multilabel", record.variant
        tables.append(read_columns(record_path(tmp_path / str(size), *names)))
        assert record.cost.forward_passes == 64 and record.selected_on == "held-out pictures"
        assert record.metrics["map"].aggregate == "mean_average_precision_11_point"
    for other in tables[1:]:
        assert np.array_equal(other["present"], tables[0]["present"])
        assert np.allclose(other["scores"], tables[0]["scores"], rtol=1e-3, atol=1e-3)
    assert tables[0]["scores"].shape == tables[0]["present"].shape == (24, 3)
    labels = [s.target.labels for s in Catalog.load([dataset]).open("squares")["test"].samples]
    assert any(each and each.unclear for each in labels), "nothing is unclear: it shows less"
    assert [set(np.flatnonzero(row == 1)) for row in tables[0]["present"]] == [
        set(each.present) for each in labels if each
    ]

    options = Options(
        ["logistic"],
        ["tiny-reg4", "tiny"],
        ["squares"],
        protocols=["logistic-multilabel"],
        settings=settings,
        out=tmp_path / "stored",
        model_files=[tiny_models],
        dataset_files=[dataset],
        device="cpu",
        workers=0,
    )
    cells = plan(options)
    ours, theirs = (record for _, record in run(cells, options))
    (found,) = differences(cells)
    between = ours.metrics["map"].value - theirs.metrics["map"].value
    assert (found.metric, found.pictures) == ("map", 24)
    assert found.value == pytest.approx(between) and found.low <= found.value <= found.high
    for _, record in zip(cells, (ours, theirs), strict=True):
        metric = record.metrics["map"]
        assert metric.low <= metric.value <= metric.high and metric.value > 100 / 3
        assert list(record.details["average_precision"]) == list(COLOURS)
    columns = read_columns(cells[0].path)
    metric = ours.metrics["map"]
    again = score(
        metric.aggregate,
        [columns[each] for each in (metric.column or "", *metric.others)],
        metric.scale,
        int(ours.dataset.fingerprint[:8], 16),
    )
    assert (again[0], *again[1]) == (metric.value, metric.low, metric.high)

    second = replace(options, out=tmp_path / "again")
    records = [record for _, record in run(plan(second), second)]
    assert [record.cost.forward_passes for record in records] == [0, 0]
    assert [record.metrics for record in records] == [ours.metrics, theirs.metrics]
