from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import classified
import numpy as np
import pytest
import torch
from classified import (
    Features,
    Labelled,
    Labels,
    clusters,
    colours,
    expected_scores,
    labelled,
    recorded,
    table,
)
from harness.tasks.linear import LINEAR, LinearEvaluation
from tiny import ARCHITECTURE as TINY

from harness import evaluate
from harness.backbone.layout import TokenLayout
from harness.bench.linear import linear as bench
from harness.data.dataset import Dataset, Role
from harness.data.views import CentreCrop, RandomResizedCropFlip
from harness.errors import HarnessError
from harness.features.order import indices, shuffled
from harness.features.outliers import OutlierRule
from harness.features.select import Selected, Selector
from harness.linear_grid import (
    RATES,
    LinearProtocol,
    Point,
    StoredLinearProtocol,
    StreamedLinearProtocol,
    selectors_of,
)
from harness.probes.linear import LinearHeads
from harness.records import read_columns, record_path
from harness.task import Batch, Context, NotApplicable, Outcome, TokenRequest

PLAIN, PUBLISHED = LINEAR.protocols["linear"], LINEAR.protocols["dinov2-linear"]
SMALL = {"batch_size": 16, "min_steps": 60, "learning_rates": [1e-3, 0.01, 0.1]}
SMALL_STREAM = {"batch_size": 16, "steps": 60, "learning_rates": [1e-3, 0.01, 0.1]}
ARCHITECTURE = replace(TINY, width=8, heads=2)
_PATCHES = 4


def blobs(classes: int = 4, seed: int = 0, **counts: int) -> tuple[Features, Labels]:
    """Features ``[n, 4 blocks and the mean of patches, D]``."""
    return clusters(classes, 2.5, (5, 8), seed, **counts)


def started(
    protocol: LinearProtocol,
    labels: Labels,
    classes: int,
    seed: int = 0,
    cutoffs: dict[OutlierRule, float] | None = None,
) -> LinearEvaluation:
    datasets = labelled(labels, classes)
    LINEAR.requests(ARCHITECTURE, datasets, protocol)
    return LINEAR.start(Context(ARCHITECTURE, datasets, protocol, seed, cutoffs or {}))


def batch(role: Role, rows: list[int], features: torch.Tensor, selectors: list[Selector]) -> Batch:
    there = torch.ones(len(rows), dtype=torch.bool)
    columns = {each: _PATCHES if each.token == "patch-mean" else each.layer for each in selectors}
    found = {each: Selected(features[rows, column], there) for each, column in columns.items()}
    return classified.batch(role, rows, found)


def feed(
    evaluation: LinearEvaluation, role: Role, features: torch.Tensor, order: list[int], size: int
) -> None:
    """The pictures of ``order`` in batches of ``size``."""
    selectors = list(evaluation._selectors)
    for start in range(0, len(order), size):
        evaluation.update(role, batch(role, order[start : start + size], features, selectors))


def scored(
    protocol: LinearProtocol,
    features: Features,
    labels: Labels,
    classes: int = 4,
    seed: int = 0,
    size: int = 7,
    backwards: bool = False,
) -> Outcome:
    evaluation = started(protocol, labels, classes, seed)
    for role, values in features.items():
        order = list(range(len(values)))[:: -1 if backwards else 1]
        if role == "train" and isinstance(protocol, StreamedLinearProtocol):
            count = protocol.steps * protocol.batch_size
            order, step = list(shuffled(len(values), count, seed)), protocol.batch_size
            feed(evaluation, role, values, order, step)
        else:
            feed(evaluation, role, values, order, size)
        evaluation.end(role)
    return evaluation.finish()


def top1(outcome: Outcome) -> float:
    return 100 * float(np.mean(outcome.columns["top1"]))


def test_the_published_protocol_is_the_official_codes() -> None:
    assert isinstance(PUBLISHED, StreamedLinearProtocol)
    points = PUBLISHED.points()
    assert len(points) == 52 and points[0] == Point(1, False, 1e-5)
    assert points[13] == Point(1, True, 1e-5) and points[-1] == Point(4, True, 0.1)
    datasets: dict[Role, Dataset] = {
        "train": Labelled("train", [0, 1], 2),
        "select": Labelled("select", [0, 1], 2),
        "test": Labelled("test", [0, 1], 2),
    }
    requests = LINEAR.requests(ARCHITECTURE, datasets, PUBLISHED)
    cls = tuple(Selector("cls", layer, True) for layer in range(4))
    chosen = (*cls, Selector("patch-mean", 3, True))
    common = {"select": chosen, "precision": "fp16"}
    assert requests == {
        "train": TokenRequest(
            RandomResizedCropFlip(224), order="shuffled", steps=12_500, step_size=1_024, **common
        ),
        "test": TokenRequest(CentreCrop(256, 224), bytes_per_picture=8 * 52, **common),
    }
    head = points[-1].head([0, 10, 20, 30, 40, 50], 4, 1024)
    assert head.learning_rate == pytest.approx(0.4)
    settings = PUBLISHED.settings()
    assert (settings["momentum"], settings["weight_decay"], settings["init_std"]) == (0.9, 0, 0.01)


def test_heads_see_the_last_blocks_and_the_last_ones_patches() -> None:
    ends = [0, 10, 20, 30, 40, 47]  # four blocks, and the mean of patches
    columns = {
        (point.n_last_blocks, point.avgpool): (head.start, head.stop)
        for point in replaced(n_last_blocks=[1, 2, 4]).points()
        for head in [point.head(ends, 4, 256)]
    }
    assert columns == {
        (1, False): (30, 40),
        (1, True): (30, 47),
        (2, False): (20, 40),
        (2, True): (20, 47),
        (4, False): (0, 40),
        (4, True): (0, 47),
    }


def replaced(**settings: object) -> LinearProtocol:
    return PLAIN.changed(settings)


def test_the_stored_form_asks_for_each_picture_once_and_can_be_served_from_the_store() -> None:
    datasets: dict[Role, Dataset] = {
        "train": Labelled("train", [0, 1], 2),
        "test": Labelled("test", [0, 1], 2),
    }
    requests = LINEAR.requests(ARCHITECTURE, datasets, PLAIN)
    assert list(requests) == ["train", "test"]
    assert all(request.storable for request in requests.values())
    assert requests["train"].bytes_per_picture == 4 * 5 * 8
    with_select = LINEAR.requests(
        ARCHITECTURE, {**datasets, "select": Labelled("select", [0], 2)}, PLAIN
    )
    assert list(with_select) == ["train", "select", "test"]
    unlabelled = {**datasets, "select": Labelled("select", [None], 2)}
    assert list(LINEAR.requests(ARCHITECTURE, unlabelled, PLAIN)) == ["train", "test"]


def test_the_head_is_chosen_on_the_tenth_with_the_smallest_hashes_and_then_trained_on_all() -> None:
    features, labels = blobs(train=80, test=40)
    outcome = scored(PLAIN.changed(SMALL), features, labels)
    assert outcome.counts == {"train_pictures": 80, "selection_pictures": 8, "steps": 60}
    assert outcome.selected_on == "held-out pictures"
    ids = [f"train/{place}" for place in range(80)]
    held = sorted(ids, key=lambda each: hashlib.sha256(each.encode()).hexdigest())[:8]
    # The same by hand: trained on the rest as train, chosen on those as select.
    rest = [place for place in range(80) if ids[place] not in held]
    chosen = [place for place in range(80) if ids[place] in held]
    split = {
        "train": features["train"][rest],
        "select": features["train"][chosen],
        "test": features["test"],
    }
    split_labels = {
        "train": [labels["train"][place] for place in rest],
        "select": [labels["train"][place] for place in chosen],
        "test": labels["test"],
    }
    by_hand = scored(PLAIN.changed({**SMALL, "refit": False}), split, split_labels)  # type: ignore[arg-type]
    assert by_hand.selected_on == "select"
    assert by_hand.details["grid"] == outcome.details["grid"]
    assert outcome.details["chosen"]["top1_on_selection"] == max(
        point["top1_on_selection"] for point in outcome.details["grid"]
    )
    assert by_hand.counts["train_pictures"] == 72


def test_it_learns_and_without_a_refit_too() -> None:
    features, labels = blobs(train=200, test=100)
    for refit in (True, False):
        outcome = scored(PLAIN.changed({**SMALL, "refit": refit}), features, labels)
        assert top1(outcome) > 60  # of 4 classes
        grid = outcome.details["grid"]
        assert len(grid) == 12 and len({point["top1_on_selection"] for point in grid}) > 3


def test_of_equal_heads_the_first_in_grid_order_is_chosen() -> None:
    features, labels = blobs(train=40, test=8)
    outcome = scored(PLAIN.changed(SMALL), features, labels)
    scores = [point["top1_on_selection"] for point in outcome.details["grid"]]
    assert scores.count(max(scores)) > 1, "the case has no tie: it shows nothing"
    assert outcome.details["chosen"] == outcome.details["grid"][scores.index(max(scores))]


def test_the_published_form_reports_the_head_that_is_best_on_test_and_says_so() -> None:
    features, labels = blobs(train=60, test=50)
    outcome = scored(PUBLISHED.changed(SMALL_STREAM), features, labels)
    assert outcome.selected_on == "test"
    assert outcome.counts == {"steps": 60}
    scores = [point["top1_on_selection"] for point in outcome.details["grid"]]
    assert len(scores) == 12 and top1(outcome) == pytest.approx(max(scores))
    assert len(set(scores)) > 2


def test_stored_and_streamed_are_one_training() -> None:
    """Without augmentation, and chosen on the same pictures, both give the same predictions."""
    features, labels = blobs(train=60, test=50)
    streamed = scored(PUBLISHED.changed(SMALL_STREAM), features, labels, seed=5)
    both = {**features, "select": features["test"]}
    both_labels = {**labels, "select": labels["test"]}
    order: list[Role] = ["train", "select", "test"]
    stored = scored(
        PLAIN.changed({**SMALL, "refit": False}),
        {role: both[role] for role in order},
        both_labels,
        seed=5,
    )
    assert stored.details == streamed.details
    assert table(stored) == table(streamed)


@pytest.mark.parametrize("protocol", [PLAIN.changed(SMALL), PUBLISHED.changed(SMALL_STREAM)])
def test_the_same_seed_gives_the_same_whatever_the_batches(protocol: LinearProtocol) -> None:
    features, labels = blobs(train=60, test=50)
    outcomes = [scored(protocol, features, labels, size=size) for size in (1, 13, 64)]
    outcomes.append(scored(protocol, features, labels, backwards=True))
    first = outcomes[0]
    for outcome in outcomes[1:]:
        assert table(outcome) == table(first)
        assert outcome.details == first.details
    other = scored(protocol, features, labels, seed=1)
    assert other.details != first.details


@pytest.mark.parametrize("protocol", [PLAIN.changed(SMALL), PUBLISHED.changed(SMALL_STREAM)])
@pytest.mark.parametrize("stop", [1, 3, -4, -1])
def test_taken_up_again_it_is_the_whole(protocol: LinearProtocol, stop: int) -> None:
    features, labels = blobs(train=60, test=50)
    whole = scored(protocol, features, labels, size=16)
    first = started(protocol, labels, 4)
    if isinstance(protocol, StreamedLinearProtocol):
        order = list(shuffled(60, 60 * 16, 0))
    else:
        order = list(range(60))
    runs: list[tuple[Role, list[int]]] = [
        *(("train", order[start : start + 16]) for start in range(0, len(order), 16)),
        *(("test", list(range(start, min(start + 16, 50)))) for start in range(0, 50, 16)),
    ]
    evaluation, last = first, "train"
    for number, (role, rows) in enumerate(runs):
        if role != last:
            evaluation.end("train")
            last = role
        if number == stop % len(runs):
            state = pickle.loads(pickle.dumps(evaluation.state()))
            evaluation = started(protocol, labels, 4)
            evaluation.load(state)
        feed(evaluation, role, features[role], rows, 16)
    evaluation.end("test")
    outcome = evaluation.finish()
    assert table(outcome) == table(whole) and outcome.details == whole.details
    assert outcome.counts == whole.counts


def test_passes_are_real_and_few_pictures_are_trained_for_the_least_number_of_steps() -> None:
    features, labels = blobs(train=200, test=8)
    fast = {"learning_rates": [0.01], "n_last_blocks": [1], "avgpool": [False], "refit": False}
    protocol = PLAIN.changed({**fast, "batch_size": 16, "min_steps": 1, "epochs": 2})
    assert scored(protocol, features, labels).counts["steps"] == 23  # 2 x 180 / 16, rounded up
    protocol = PLAIN.changed({**fast, "batch_size": 16, "min_steps": 40, "epochs": 2})
    assert scored(protocol, features, labels).counts["steps"] == 40
    assert isinstance(PLAIN, StoredLinearProtocol)
    assert (PLAIN.epochs, PLAIN.min_steps, PLAIN.batch_size) == (10, 1250, 1024)


def test_a_grid_narrowed_to_the_chosen_head_gives_its_predictions() -> None:
    features, labels = blobs(train=80, test=40)
    whole = scored(PLAIN.changed(SMALL), features, labels)
    chosen = whole.details["chosen"]
    narrow = {
        "n_last_blocks": chosen["n_last_blocks"],
        "avgpool": chosen["avgpool"],
        "learning_rates": chosen["learning_rate"],
    }
    alone = scored(PLAIN.changed({**SMALL, **narrow}), features, labels)
    assert len(alone.details["grid"]) == 1 and alone.details["chosen"] == chosen
    assert table(alone) == table(whole)


def test_top_5_counts_the_right_class_among_the_first_five() -> None:
    features, labels = blobs(classes=20, train=100, test=60)
    outcome = scored(PLAIN.changed({**SMALL, "min_steps": 5}), features, labels, classes=20)
    first, five = (np.asarray(outcome.columns[name]) for name in ("top1", "top5"))
    np.testing.assert_array_equal(
        first, np.asarray(outcome.columns["predicted"]) == outcome.columns["label"]
    )
    assert (five >= first).all() and first.sum() < five.sum() < 60


def test_a_class_that_train_lacks_is_never_right_and_counted() -> None:
    features, labels = blobs(train=60, test=20)
    labels["test"] = [4] * 3 + labels["test"][3:]
    outcome = scored(PLAIN.changed(SMALL), features, labels, classes=5)
    assert not np.asarray(outcome.columns["top1"])[:3].any()
    assert outcome.counts["test_pictures_of_classes_not_in_train"] == 3


def test_a_class_that_test_lacks_changes_nothing() -> None:
    features, labels = blobs(train=60, test=20)
    some = [place for place in range(20) if labels["test"][place] != 2]
    part = {**features, "test": features["test"][some]}
    outcome = scored(
        PLAIN.changed(SMALL), part, {**labels, "test": [labels["test"][place] for place in some]}
    )
    whole = scored(PLAIN.changed(SMALL), features, labels)
    for name in ("label", "predicted", "top1", "top5"):
        np.testing.assert_array_equal(
            np.asarray(whole.columns[name])[some], np.asarray(outcome.columns[name])
        )


@pytest.mark.parametrize("protocol", [PLAIN.changed(SMALL), PUBLISHED.changed(SMALL_STREAM)])
@pytest.mark.parametrize("role", ["train", "test"])
def test_features_that_are_not_finite_are_refused(protocol: LinearProtocol, role: Role) -> None:
    features, labels = blobs(train=60, test=20)
    features[role][3, 2, 1] = float("nan")
    with pytest.raises(HarnessError, match=f"the feature of {role}/3 is not finite"):
        scored(protocol, features, labels)


@pytest.mark.parametrize("protocol", [PLAIN.changed(SMALL), PUBLISHED.changed(SMALL_STREAM)])
def test_heads_that_diverge_are_marked_and_if_all_do_it_is_an_error(
    protocol: LinearProtocol,
) -> None:
    features, labels = blobs(train=60, test=20)
    too_high = 1e300  # more than a float32 holds
    outcome = scored(protocol.changed({"learning_rates": [0.01, too_high]}), features, labels)
    grid = outcome.details["grid"]
    assert [point["diverged"] for point in grid] == [False, True] * 4
    assert all(point["top1_on_selection"] == 0 for point in grid if point["diverged"])
    with pytest.raises(HarnessError, match=r"the best head diverged.*learning_rates"):
        scored(protocol.changed({"learning_rates": too_high}), features, labels)


def test_one_class_only_or_no_train_split_or_no_labels_is_not_applicable() -> None:
    train, test = Labelled("train", [0, 1], 2), Labelled("test", [0, 1], 2)
    for protocol in (PLAIN, PUBLISHED):
        with pytest.raises(NotApplicable, match="no train split"):
            LINEAR.requests(ARCHITECTURE, {"test": test}, protocol)
        with pytest.raises(NotApplicable, match="no labels"):
            LINEAR.requests(
                ARCHITECTURE, {"train": train, "test": Labelled("test", [None], 2)}, protocol
            )
        with pytest.raises(NotApplicable, match="one class only"):
            LINEAR.requests(
                ARCHITECTURE, {"train": Labelled("train", [1, 1], 2), "test": test}, protocol
            )


def test_too_few_pictures_to_choose_on_and_train_on_are_refused() -> None:
    features, labels = blobs(classes=2, train=2, test=2)
    with pytest.raises(HarnessError, match=r"1 pictures to choose a head and 1 to train"):
        scored(PLAIN.changed(SMALL), features, labels, classes=2)


def test_without_a_class_token_only_the_stored_form_makes_sense_and_of_the_last_block() -> None:
    pooled = replace(ARCHITECTURE, layout=TokenLayout(0, 0), global_feature="mean of patches")
    with pytest.raises(NotApplicable, match="no class token"):
        selectors_of(PUBLISHED, pooled)
    with pytest.raises(NotApplicable, match=r"mean of patches.*n_last_blocks=1"):
        selectors_of(PLAIN, pooled)
    assert selectors_of(PLAIN.changed({"n_last_blocks": 1, "avgpool": False}), pooled) == [
        Selector("global", 3, True)
    ]


def test_more_blocks_than_there_are_is_not_applicable() -> None:
    with pytest.raises(NotApplicable, match="the last 5 blocks, up to layer 3"):
        selectors_of(PLAIN.changed({"n_last_blocks": 5}), ARCHITECTURE)
    with pytest.raises(NotApplicable, match="the last 4 blocks, up to layer 2"):
        selectors_of(PLAIN.changed({"layer": -2}), ARCHITECTURE)


def test_another_token_can_stand_for_the_picture() -> None:
    asked = PLAIN.changed({"token": "register", "n_last_blocks": [1, 2], "layer": -2})
    assert [(each.token, each.layer) for each in selectors_of(asked, ARCHITECTURE)] == [
        ("register", 1),
        ("register", 2),
        ("patch-mean", 2),
    ]
    with pytest.raises(NotApplicable, match="no registers"):
        selectors_of(asked, replace(ARCHITECTURE, layout=TokenLayout(1, 0)))


def test_pictures_without_an_outlier_are_left_out_and_counted() -> None:
    protocol = PLAIN.changed(
        {**SMALL, "token": "outlier", "outliers": 5.0, "n_last_blocks": 1, "avgpool": False}
    )
    features, labels = blobs(train=60, test=20)
    (selector,) = selectors_of(protocol, ARCHITECTURE)
    assert selector.rule is not None
    evaluation = started(protocol, labels, 4, cutoffs={selector.rule: 5.0})
    for role, missing in (("train", {1, 2}), ("test", {0, 7, 9})):
        rows = list(range(len(features[role])))  # type: ignore[index]
        one = batch(role, rows, features[role], [selector])  # type: ignore[arg-type,index]
        there = torch.tensor([row not in missing for row in rows])
        found = one.selected[selector]
        evaluation.update(
            role,  # type: ignore[arg-type]
            replace(one, selected={selector: Selected(found.values * there[:, None], there)}),
        )
        evaluation.end(role)  # type: ignore[arg-type]
    outcome = evaluation.finish()
    assert outcome.counts["train_without_token"] == 2
    assert outcome.counts["test_without_token"] == 3
    assert list(outcome.columns["image_id"]) == [
        f"test/{row}" for row in range(20) if row not in {0, 7, 9}
    ]
    assert outcome.resolved["outlier_cutoff"] == 5.0


@pytest.mark.parametrize(
    ("protocol", "change", "complaint"),
    [
        (PLAIN, {"learning_rates": []}, "learning_rates: "),
        (PLAIN, {"learning_rates": 0}, "learning_rates.0: "),
        (PLAIN, {"n_last_blocks": 0}, "n_last_blocks.0: "),
        (PLAIN, {"selection_share": 1}, "selection_share: "),
        (PLAIN, {"token": "outlier"}, "of one block and by itself"),
        (PUBLISHED, {"token": "normal"}, "not every picture has one"),
        (PUBLISHED, {"steps": 0}, "steps: "),
        (PUBLISHED, {"augment": "colour"}, "augment: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    protocol: LinearProtocol, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(HarnessError, match=complaint):
        protocol.changed(change)


def test_a_grid_has_each_head_once() -> None:
    twice = PLAIN.changed({"n_last_blocks": [1, 1], "avgpool": False, "learning_rates": [0.1, 0.1]})
    assert twice.points() == [Point(1, False, 0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_on_recorded_features_it_is_as_good_as_the_best_logistic_regression(
    registers: int, shared_reference: Path
) -> None:
    """The same model of the same 1,000 features, fitted otherwise and chosen on held-out pictures:
    within 4 points of the best of the official 12 values of C on test."""
    expected = expected_scores(shared_reference, registers)
    flat, labels = recorded(shared_reference, registers)
    features = {role: values[:, None].expand(-1, 5, -1) for role, values in flat.items()}
    protocol = PLAIN.changed(
        {"n_last_blocks": 1, "avgpool": False, "learning_rates": list(RATES[-4:])}
    )
    outcome = scored(protocol, features, labels, classes=10, size=1000)
    best = max(expected["logistic_top1_by_C"].values())
    assert top1(outcome) == pytest.approx(best, abs=4)


@pytest.mark.parametrize("name", ["linear", "dinov2-linear"])
def test_from_pictures_to_a_record_whatever_the_batch_and_the_workers(
    name: str, tiny_models: Path, tmp_path: Path
) -> None:
    datasets = colours(tmp_path, train=10, val=4)
    training = {"min_steps": 60, "selection_share": 0.5} if name == "linear" else {"steps": 6}
    tables, records = [], []
    for size, workers, store in ((1, 0, False), (64, 2, True), (8, 0, True)):
        out = tmp_path / str(size)
        (record,) = evaluate(
            "linear",
            "tiny-reg4",
            "colours",
            protocols=[name],
            model_files=[tiny_models],
            dataset_files=[datasets],
            settings={"crop": 28, "resize": 32, "batch_size": 8, **training},
            out=out,
            batch_size=size,
            workers=workers,
            store=store,
            device="cpu",
        )
        path = record_path(out, "colours", "linear", "tiny-reg4", name, record.variant)
        tables.append({key: column.tolist() for key, column in read_columns(path).items()})
        records.append(record)
    assert tables[0] == tables[1] == tables[2]
    assert records[0].metrics["top1"].value > 90
    assert len(records[0].details["grid"]) == 52
    passes = [record.cost.forward_passes for record in records]
    assert passes == {"linear": [28, 28, 0], "dinov2-linear": [56, 56, 48]}[name]
    assert records[0].selected_on == {"linear": "held-out pictures", "dinov2-linear": "test"}[name]


def test_every_step_of_the_stream_sees_the_pictures_that_the_order_says(
    monkeypatch: pytest.MonkeyPatch, tiny_models: Path, tmp_path: Path
) -> None:
    datasets, steps = colours(tmp_path, train=10, val=4), []
    original = LinearHeads.step

    def spied(self: LinearHeads, features: torch.Tensor, labels: torch.Tensor) -> None:
        steps.append((features.clone(), labels.tolist()))
        original(self, features, labels)

    monkeypatch.setattr(LinearHeads, "step", spied)
    evaluate(
        "linear",
        "tiny",
        "colours",
        protocols=["dinov2-linear"],
        model_files=[tiny_models],
        dataset_files=[datasets],
        settings={"crop": 28, "resize": 32, "batch_size": 8, "steps": 7},
        out=tmp_path / "out",
        batch_size=3,
        workers=0,
        device="cpu",
    )
    request = TokenRequest(CentreCrop(32, 28), (0,), order="shuffled", steps=7, step_size=8)
    order = list(indices(request, 20, 0))
    expected = [int(index >= 10) for index in order]  # ten dark ones, then ten light ones
    assert [label for _, labels in steps for label in labels] == expected
    assert [len(labels) for _, labels in steps] == [8] * 7
    rows = torch.cat([features for features, _ in steps])
    again = [place for place, index in enumerate(order) if index == order[0]]
    assert len(again) > 1 and not torch.equal(rows[again[0]], rows[again[1]])


def test_the_benchmark_compares_like_with_like() -> None:
    facts = bench("cpu", width=6, classes=5, batch=32, repeats=2)
    assert facts["heads"] == 52
    assert facts["greatest_difference"] < 1e-6
    ratio = facts["one_by_one_ms"] / facts["together_ms"]
    assert facts["one_by_one_over_together"] == pytest.approx(ratio, rel=0.01)
