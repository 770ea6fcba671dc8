from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

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
    table,
)
from harness.tasks.logistic import LOGISTIC, LogisticEvaluation, LogisticProtocol
from sklearn.linear_model import LogisticRegression
from tiny import ARCHITECTURE

from harness import evaluate
from harness.backbone.layout import TokenLayout
from harness.bench.logistic import logistic as bench
from harness.data.dataset import Dataset, Role
from harness.data.views import CentreCrop
from harness.errors import HarnessError
from harness.features.select import Selected, Selector
from harness.records import read_columns, record_path
from harness.task import Context, NotApplicable, Outcome, TokenRequest

PLAIN = LOGISTIC.protocols["dinov2-logistic"]
SHORT = PLAIN.changed({"c_low": -3, "c_high": 2, "c_count": 6})


def blobs(classes: int = 3, seed: int = 0, **counts: int) -> tuple[Features, Labels]:
    return clusters(classes, 1.5, seed=seed, **counts)


def started(protocol: LogisticProtocol, labels: Labels, classes: int) -> LogisticEvaluation:
    datasets = labelled(labels, classes)
    LOGISTIC.requests(ARCHITECTURE, datasets, protocol)
    return LOGISTIC.start(Context(ARCHITECTURE, datasets, protocol, 0))


def scored(
    protocol: LogisticProtocol, features: Features, labels: Labels, classes: int = 3
) -> Outcome:
    return finished(started(protocol, labels, classes), features)


def drawn(
    protocol: LogisticProtocol, there: dict[Role, list[bool]], **counts: int
) -> tuple[LogisticEvaluation, Labels]:
    """An evaluation of outliers that some pictures lack, other ones in every draw."""
    labels = blobs(**counts)[1]
    evaluation = started(protocol, labels, 3)
    rule = evaluation._selectors[0].rule
    assert rule is not None
    evaluation._context = replace(evaluation._context, cutoffs={rule: 150.0})
    for role, of in labels.items():
        found = {
            selector: Selected(
                blobs(seed=draw, **counts)[0][role], torch.tensor(there.get(role, [True] * len(of)))
            )
            for draw, selector in enumerate(evaluation._selectors)
        }
        evaluation.update(role, batch(role, list(range(len(of))), found))
    return evaluation, labels


def test_the_protocol_is_the_official_codes() -> None:
    assert np.allclose(PLAIN.strengths, 10.0 ** np.linspace(-6, 5, 45))
    datasets: dict[Role, Dataset] = {
        "train": Labelled("train", [0, 1], 2),
        "test": Labelled("test", [0, 1], 2),
    }
    request = TokenRequest(
        CentreCrop(224, 224),
        select=(Selector("global", 3, True),),
        precision="fp16",
        bytes_per_picture=4 * 48,
        streamed_bytes=8,
    )
    # A chosen copy, float64 twice, and of two classes four float64 each.
    train = replace(request, bytes_per_picture=2 * 4 * 48 + 2 * 8 * 48 + 4 * 8 * 2)
    assert LOGISTIC.requests(ARCHITECTURE, datasets, PLAIN) == {"train": train, "test": request}
    assert request.storable


def test_c_is_chosen_on_the_tenth_with_the_smallest_hashes_and_all_of_train_is_fitted() -> None:
    features, labels = blobs(train=90, test=60)
    outcome = scored(SHORT.changed({"tolerance": 1e-12}), features, labels)
    ids = [f"train/{place}" for place in range(90)]
    held = sorted(ids, key=lambda each: hashlib.sha256(each.encode()).hexdigest())[:9]
    mask = np.array([each in held for each in ids])
    x, y = features["train"].double().numpy(), np.array(labels["train"])
    by_hand = [
        100
        * LogisticRegression(C=c, tol=1e-10, max_iter=5000)
        .fit(x[~mask], y[~mask])
        .score(x[mask], y[mask])
        for c in SHORT.strengths
    ]
    assert outcome.details["top1_on_selection"] == [pytest.approx(by_hand, abs=1e-3)]
    best = SHORT.strengths[by_hand.index(max(by_hand))]
    assert outcome.resolved["c"] == best and outcome.details["chosen"] == [best]
    assert len(set(by_hand)) > 2, "nothing is chosen where all are alike"
    refitted = LogisticRegression(C=best, tol=1e-10, max_iter=5000).fit(x, y)
    predicted = refitted.predict(features["test"].double().numpy())
    assert np.array_equal(outcome.columns["predicted"], predicted)
    assert np.array_equal(outcome.columns["top1"], predicted == np.array(labels["test"]))
    assert outcome.counts == {"train_pictures": 90, "selection_pictures": 9}
    assert outcome.selected_on == "held-out pictures"
    assert outcome.details["not_converged"] == 0


def test_of_equal_values_of_c_the_smallest_is_chosen() -> None:
    features, labels = blobs(train=60, test=10)
    outcome = scored(SHORT, features, labels)
    (scores,) = outcome.details["top1_on_selection"]
    assert scores.count(max(scores)) > 1, "the case has no tie: it shows nothing"
    assert outcome.resolved["c"] == SHORT.strengths[scores.index(max(scores))]


def test_a_split_for_selection_chooses_and_is_fitted_with_train_at_the_end() -> None:
    features, labels = blobs(train=40, select=30, test=60)
    outcome = scored(SHORT, features, labels)
    assert outcome.selected_on == "select"
    assert outcome.counts == {"train_pictures": 70, "selection_pictures": 30}
    both: Features = {
        "train": torch.cat([features["train"], features["select"]]),
        "test": features["test"],
    }
    joined: Labels = {"train": labels["train"] + labels["select"], "test": labels["test"]}
    log_c = float(np.log10(outcome.resolved["c"]))
    alone = SHORT.changed({"c_low": log_c, "c_high": log_c, "c_count": 1})
    assert table(scored(alone, both, joined)) == table(outcome)
    unlabelled: dict[Role, Dataset] = {
        "train": Labelled("train", [0, 1], 2),
        "select": Labelled("select", [None], 2),
        "test": Labelled("test", [0, 1], 2),
    }
    assert list(LOGISTIC.requests(ARCHITECTURE, unlabelled, SHORT)) == ["train", "test"]


def test_mean_per_class_counts_every_class_of_test_alike() -> None:
    features, labels = blobs(train=60, test=30)
    keep = [*range(0, 30, 3), 1, 4, 7, 2]  # 10, 3 and 1 pictures
    features["test"], labels["test"] = features["test"][keep], [i % 3 for i in keep]
    outcome = scored(SHORT, features, labels)
    right, own = np.asarray(outcome.columns["top1"]), np.array(labels["test"])
    by_class = [right[own == label].mean() for label in range(3)]
    assert len(set(by_class)) > 1
    assert np.mean(outcome.columns["mean_per_class"]) == pytest.approx(np.mean(by_class))
    assert right.mean() != pytest.approx(np.mean(by_class))
    # A class that test lacks is not counted as one that is never right.
    two = [place for place in range(len(keep)) if labels["test"][place] != 2]
    features["test"] = features["test"][two]
    labels["test"] = [labels["test"][place] for place in two]
    outcome = scored(SHORT, features, labels)
    assert np.mean(outcome.columns["mean_per_class"]) == pytest.approx(np.mean(by_class[:2]))


def test_c_can_be_chosen_by_the_mean_per_class() -> None:
    features, labels = blobs(train=200, test=10)
    keep = [place for place in range(200) if place % 3 == 0 or place % 5 == 0]
    features["train"] = features["train"][keep]
    labels["train"] = [labels["train"][place] for place in keep]
    share = {"selection_share": 0.4}
    by_top1 = scored(SHORT.changed(share), features, labels)
    protocol = SHORT.changed({**share, "selection_metric": "mean_per_class"})
    by_class = scored(protocol, features, labels)
    (scores,) = by_class.details["mean_per_class_on_selection"]
    assert scores != by_top1.details["top1_on_selection"][0]
    assert by_class.resolved["c"] == SHORT.strengths[scores.index(max(scores))]


def test_neither_the_batch_nor_the_order_of_arrival_shows() -> None:
    features, labels = blobs(train=60, test=30)
    whole = scored(SHORT, features, labels)
    for size, step in ((1, 1), (64, -1)):
        evaluation = started(SHORT, labels, 3)
        for role, values in features.items():
            feed(evaluation, role, values, list(range(len(values)))[::step], size)
        other = evaluation.finish()
        assert table(other) == table(whole)
        assert other.details == whole.details


def test_halves_merged_or_resumed_are_the_whole() -> None:
    features, labels = blobs(train=60, test=30)
    whole = table(scored(SHORT, features, labels))
    halves = [started(SHORT, labels, 3) for _ in range(2)]
    for role, values in features.items():
        for place, evaluation in enumerate(halves):
            feed(evaluation, role, values, list(range(place, len(values), 2)))
    resumed = started(SHORT, labels, 3)
    resumed.load(pickle.loads(pickle.dumps(halves[1].state())))
    resumed.merge(halves[0])
    assert table(resumed.finish()) == whole


def test_draws_are_fitted_apart_and_their_mean_and_spread_are_told() -> None:
    protocol = SHORT.changed({"token": "outlier", "outliers": 150, "draws": 3})
    outcome = drawn(protocol, {}, train=60, test=30)[0].finish()
    apart = []
    for draw in range(3):
        features, labels = blobs(seed=draw, train=60, test=30)
        apart.append(scored(SHORT, features, labels))
    hits = np.stack([each.columns["top1"] for each in apart])
    assert np.allclose(outcome.columns["top1"], hits.mean(axis=0))
    assert outcome.details["draws"]["top1"] == pytest.approx(100 * hits.mean(axis=1))
    assert outcome.metrics["top1"].sd == pytest.approx(100 * hits.mean(axis=1).std(ddof=1))
    assert (outcome.metrics["top1"].sd or 0) > 0
    assert outcome.details["chosen"] == [each.resolved["c"] for each in apart]
    assert outcome.resolved["draws"] == 3 and outcome.resolved["outlier_cutoff"] == 150.0


def test_only_tokens_of_which_there_are_several_are_drawn() -> None:
    counts = {
        token: len(
            started(SHORT.changed({"token": token}), blobs(train=4, test=2)[1], 3)._selectors
        )
        for token in ("global", "cls", "patch-mean", "register", "patch", "outlier", "normal")
    }
    assert counts == {
        **dict.fromkeys(("global", "cls", "patch-mean"), 1),
        **dict.fromkeys(("register", "patch", "outlier", "normal"), 5),
    }


def test_pictures_without_the_token_are_left_out_and_counted() -> None:
    protocol = SHORT.changed({"token": "outlier", "outliers": 150, "draws": 2})
    there: dict[Role, list[bool]] = {
        "train": [place % 6 != 0 for place in range(60)],
        "test": [place >= 4 for place in range(30)],
    }
    outcome = drawn(protocol, there, train=60, test=30)[0].finish()
    assert outcome.counts == {
        "train_pictures": 50,
        "selection_pictures": 5,
        "train_without_token": 10,
        "test_without_token": 4,
    }
    assert list(outcome.columns["image_id"]) == [f"test/{place}" for place in range(4, 30)]


def test_a_train_split_left_with_one_class_is_refused() -> None:
    protocol = SHORT.changed({"token": "outlier", "outliers": 150})
    there: dict[Role, list[bool]] = {"train": [place % 3 == 0 for place in range(60)]}
    evaluation, _ = drawn(protocol, there, train=60, test=30)
    with pytest.raises(HarnessError, match="18 pictures of 1 classes to fit on and 2 to choose"):
        evaluation.finish()


def test_no_picture_with_the_token_is_refused() -> None:
    protocol = SHORT.changed({"token": "outlier", "outliers": 150})
    evaluation, _ = drawn(protocol, {"test": [False] * 30}, train=60, test=30)
    with pytest.raises(HarnessError, match="no picture has a token of the kind outlier"):
        evaluation.finish()


def test_a_class_that_train_lacks_is_never_right_and_counted() -> None:
    features, labels = blobs(train=60, test=30)
    labels["test"] = [3] * 3 + labels["test"][3:]
    outcome = scored(SHORT, features, labels, classes=4)
    assert not np.asarray(outcome.columns["top1"])[:3].any()
    assert outcome.counts["test_pictures_of_classes_not_in_train"] == 3


def test_a_class_that_is_held_out_whole_is_not_fitted_until_the_end() -> None:
    features, labels = blobs(train=60, test=30)
    ids = [f"train/{place}" for place in range(60)]
    first = min(range(60), key=lambda place: hashlib.sha256(ids[place].encode()).digest())
    labels["train"][first] = 3
    features["train"][first] = features["test"][0] = torch.full((8,), 30.0)
    labels["test"][0] = 3
    outcome = scored(SHORT, features, labels, classes=4)
    assert outcome.counts["selection_pictures_of_classes_not_fitted"] == 1
    assert max(outcome.details["top1_on_selection"][0]) < 100
    assert outcome.columns["predicted"][0] == 3


def test_fewer_pictures_than_classes_are_scored_all_the_same() -> None:
    features, labels = blobs(classes=7, train=4, test=14)
    outcome = scored(SHORT, features, labels, classes=7)
    assert set(outcome.columns["predicted"]) <= {0, 1, 2, 3}
    assert outcome.counts["test_pictures_of_classes_not_in_train"] == 6


def test_two_pictures_are_too_few_to_fit_and_to_choose() -> None:
    features, labels = blobs(train=2, test=3)
    with pytest.raises(HarnessError, match="1 pictures of 1 classes to fit on"):
        scored(SHORT, features, labels)


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(train=12, test=4)
    features["train"][3, 2] = float("nan")
    with pytest.raises(HarnessError, match="the feature of train/3 is not finite"):
        scored(SHORT, features, labels)


def test_one_class_or_no_labels_is_not_applicable() -> None:
    one = Labelled("train", [0, 0], 2)
    test = Labelled("test", [0, 1], 2)
    with pytest.raises(NotApplicable, match="one class only"):
        LOGISTIC.requests(ARCHITECTURE, {"train": one, "test": test}, PLAIN)
    with pytest.raises(NotApplicable, match="no train split"):
        LOGISTIC.requests(ARCHITECTURE, {"test": test}, PLAIN)
    bare = replace(ARCHITECTURE, layout=TokenLayout(1, 0))
    both: dict[Role, Dataset] = {"train": test, "test": test}
    with pytest.raises(NotApplicable, match="no registers"):
        LOGISTIC.requests(bare, both, PLAIN.changed({"token": "register"}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"c_low": 6}, "c_low 6.0, c_high 5.0"),
        ({"c_count": 1}, "one value is c_count=1 and c_low=c_high"),
        ({"c_low": 5}, "c_count 45: a path rises"),
        ({"c_high": 400}, "c_high: "),
        ({"draws": 3}, "draws 3: nothing is drawn of the token global"),
        ({"draws": 0}, "draws: "),
        ({"tolerance": 0}, "tolerance: "),
        ({"selection_share": 1}, "selection_share: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        PLAIN.changed(change)


def test_from_pictures_to_a_record_whatever_the_batch(tiny_models: Path, tmp_path: Path) -> None:
    datasets = colours(tmp_path, train=10, val=3, size=(56, 56))
    tables = []
    for size in (1, 64):
        (record,) = evaluate(
            "logistic",
            "tiny-reg4",
            "colours",
            model_files=[tiny_models],
            dataset_files=[datasets],
            settings={"crop": 56, "resize": 56, "token": "register", "draws": 2},
            out=tmp_path / str(size),
            batch_size=size,
            workers=0,
            device="cpu",
            store=False,
        )
        names = "colours", "logistic", "tiny-reg4", "dinov2-logistic", record.variant
        columns = read_columns(record_path(tmp_path / str(size), *names))
        tables.append({name: column.tolist() for name, column in columns.items()})
        assert record.selected_on == "held-out pictures"
        assert record.cost.forward_passes == 26
        assert record.metrics["top1"].value > 60
        assert len(record.details["draws"]["top1"]) == 2
    assert tables[0] == tables[1]


def test_the_benchmark_compares_like_with_like() -> None:
    facts = bench("cpu", pictures=200, width=32, classes=3, strengths=4)
    assert facts["strengths"] == 4 and facts["all_converged"]
    assert facts["objective_above_at_most"] < 1e-4
    assert facts["top1_apart_at_most"] <= 0.5
    assert facts["scikit_learn_steps"] > facts["steps"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_on_real_pictures_top_1_is_scikit_learns_on_official_features_within_two_pictures(
    registers: int, shared_data: Path, shared_reference: Path, tiny_models: Path, tmp_path: Path
) -> None:
    expected = expected_scores(shared_reference, registers)["logistic_top1_by_C"]
    datasets = imagenette(tmp_path, shared_data)
    for log_c, known in ((-2, "0.01"), (0, "1.0")):
        (record,) = evaluate(
            "logistic",
            "tiny-reg4" if registers else "tiny",
            "imagenette",
            model_files=[tiny_models],
            dataset_files=[datasets],
            # The recorded features are of the view that kNN has.
            settings={"resize": 256, "c_low": log_c, "c_high": log_c, "c_count": 1},
            out=tmp_path / known,
            device="cpu",
        )
        assert record.metrics["top1"].value == pytest.approx(expected[known], abs=200 / 300 + 1e-4)
