"""Seeds: one record of several repeats is their mean, and nothing else than they would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import colours

from harness import evaluate
from harness.aggregates import values
from harness.cli import main
from harness.errors import HarnessError
from harness.options import Options
from harness.plan import plan
from harness.records import read_columns
from harness.repeats import over_seeds
from harness.run import run
from harness.schema import Record, record_path
from harness.task import MetricSpec, Outcome

CUT = {"crop": 28, "resize": 32}
ONE = {**CUT, "n_last_blocks": 1, "avgpool": False, "learning_rates": [1e-6], "min_steps": 1}


def outcome(hits: list[float], predicted: list[int], **more: Any) -> Outcome:
    columns = {"image_id": ["a", "b"], "label": np.array([0, 1]), "predicted": np.array(predicted)}
    columns["top1"] = np.array(hits)
    counts = {"train_pictures": 7, "odd": predicted[0]}
    metrics = {"top1": MetricSpec("top1", "%", True, 100, **more)}
    return Outcome(columns, metrics, counts, {"layer": 3, "c": predicted[1]})


def test_a_picture_is_worth_its_mean_over_seeds() -> None:
    joined = over_seeds([outcome([1, 0], [0, 0]), outcome([1, 1], [0, 1])], [4, 5])
    assert joined.columns["top1"].tolist() == [1, 0.5]
    assert joined.metrics["top1"].sd == pytest.approx(np.std([50, 100], ddof=1))
    assert joined.details["scores"] == {"top1": [50, 100]}
    assert joined.details["seeds"] == [4, 5]
    assert [each["resolved"]["c"] for each in joined.details["by_seed"]] == [0, 1]


def test_what_seeds_do_not_agree_on_is_left_out() -> None:
    joined = over_seeds([outcome([1, 0], [0, 0]), outcome([1, 1], [1, 1])], [0, 1])
    assert list(joined.columns) == ["image_id", "label", "top1"]
    assert joined.counts == {"train_pictures": 7}
    assert joined.resolved == {"layer": 3}


def test_one_seed_is_left_as_it_is() -> None:
    alone = outcome([1, 0], [0, 0])
    assert over_seeds([alone], [0]) is alone


def test_a_picture_without_a_value_with_one_seed_has_none() -> None:
    parts = [outcome([np.nan, 1], [0, 0], partial=True), outcome([1, 0], [0, 0], partial=True)]
    joined = over_seeds(parts, [0, 1])
    np.testing.assert_array_equal(joined.columns["top1"], [np.nan, 0.5])
    assert joined.details["scores"] == {"top1": [100, 50]}


def test_seeds_that_scored_other_pictures_are_refused() -> None:
    other = outcome([1, 0], [0, 0])
    other = Outcome({**other.columns, "image_id": ["a", "c"]}, other.metrics)
    with pytest.raises(HarnessError, match="differ from seed to seed"):
        over_seeds([outcome([1, 0], [0, 0]), other], [0, 1])


@pytest.mark.parametrize("moved", [False, True])
def test_counts_of_pixels_stand_side_by_side_where_seeds_predict_otherwise(moved: bool) -> None:
    names = ("intersection", "predicted", "labelled")
    aggregate = "mean_intersection_over_union"
    spec = MetricSpec(names[0], "%", True, 100, aggregate=aggregate, others=names[1:])
    labelled = np.array([[30, 20], [0, 50]])

    def of(both: list[list[int]], said: list[list[int]]) -> Outcome:
        columns = dict(zip(names, (np.array(both), np.array(said), labelled), strict=True))
        return Outcome({"image_id": ["a", "b"], **columns}, {"miou": spec})

    parts = [of([[20, 10], [0, 40]], [[30, 20], [10, 40]])]
    parts.append(of([[15, 5], [0, 20]], [[20, 30], [30, 20]] if moved else [[30, 20], [10, 40]]))
    joined = over_seeds(parts, [0, 1])
    assert joined.columns["predicted"].shape == ((2, 4) if moved else (2, 2))  # type: ignore[union-attr]
    assert joined.columns["labelled"].shape == (2, 2)  # type: ignore[union-attr]
    apart = [
        float(100 * np.mean(values(aggregate, [part.columns[name] for name in names])))
        for part in parts
    ]
    found = values(aggregate, [np.asarray(joined.columns[name]) for name in names])
    assert joined.details["scores"] == {"miou": pytest.approx(apart)}
    assert 100 * found.mean() == pytest.approx(np.mean(apart))


@pytest.fixture
def go(tiny_models: Path, tmp_path: Path) -> Any:
    datasets = colours(tmp_path, train=10, val=4, apart=0)  # where every draw is a guess

    def run(task: str, settings: dict[str, Any], **options: Any) -> tuple[Record, dict[str, Any]]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        (record,) = evaluate(
            task,
            "tiny-reg4",
            "colours",
            settings=settings,
            model_files=[tiny_models],
            dataset_files=[datasets],
            out=out,
            workers=0,
            device="cpu",
            **options,
        )
        names = "colours", task, "tiny-reg4", record.protocol.name
        return record, read_columns(record_path(out, *names, record.variant))

    return run


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("linear", ONE),
        ("knn", {**CUT, "token": "patch", "k": [1]}),
        ("knn", {**CUT, "n_per_class": 1, "k": [1]}),
        ("logistic", {**CUT, "token": "register", "c_count": 3, "draws": 2}),
    ],
)
def test_seeds_give_the_mean_of_what_each_gives_alone(
    go: Any, task: str, settings: dict[str, Any]
) -> None:
    together, columns = go(task, settings, seed=3, seeds=3)
    alone = [go(task, settings, seed=seed) for seed in (3, 4, 5)]
    assert together.variant["seeds"] == 3 and together.variant["seed"] == 3
    assert together.details["seeds"] == [3, 4, 5]
    moved = False
    for name, metric in together.metrics.items():
        scores = [record.metrics[name].value for record, _ in alone]
        assert together.details["scores"][name] == pytest.approx(scores)
        assert metric.value == pytest.approx(np.mean(scores))
        assert metric.sd == pytest.approx(np.std(scores, ddof=1))
        values = np.stack([theirs[name] for _, theirs in alone])
        np.testing.assert_allclose(columns[name], values.mean(axis=0))
        moved |= bool((values != values[0]).any())
    assert moved, "the case shows nothing: seeds agree on every picture"


def test_what_a_seed_does_not_move_is_read_once(go: Any) -> None:
    record, _ = go("linear", ONE, seeds=3)
    assert record.cost.forward_passes == 28
    assert record.cost.pictures == 3 * 28
    record, _ = go("linear", ONE, seeds=3, store=False)
    assert record.cost.forward_passes == 3 * 28
    record, _ = go("knn", {**CUT, "token": "patch", "k": [1]}, seeds=2)
    assert record.cost.forward_passes == 2 * 28  # other patches


def test_a_plan_counts_the_passes_that_are_run_where_one_cell_draws_and_another_does_not(
    tiny_models: Path, tmp_path: Path, passes: list[int]
) -> None:
    shared: dict[str, Any] = {
        "tasks": ["knn"],
        "models": ["tiny-reg4"],
        "datasets": ["colours"],
        "model_files": [tiny_models],
        "dataset_files": [colours(tmp_path, train=10, val=4)],
        "out": tmp_path / "out",
        "workers": 0,
        "device": "cpu",
    }
    settings: dict[str, Any] = {**CUT, "k": [1]}
    runs = [
        Options(**shared, settings=settings),
        Options(**shared, settings={**settings, "token": "patch"}, seeds=2),
    ]
    cells = [cell for options in runs for cell in plan(options)]
    planned = {key: count for cell in cells for key, count in cell.passes.items()}
    assert len(list(run(cells, runs[0]))) == 2
    assert sum(planned.values()) == sum(passes) == 28 + 28  # the first of two draws rides along


def test_what_no_seed_moves_is_run_once_under_its_own_name(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = colours(tmp_path, train=10, val=4)
    command = ["run", "--task", "knn,linear", "--model", "tiny", "--dataset", "colours"]
    command += ["--models", str(tiny_models), "--datasets", str(datasets), "--seeds", "2"]
    command += ["--out", str(tmp_path / "out"), "--workers", "0", "--device", "cpu"]
    for each in ("crop=28", "resize=32"):
        command += ["--set", each]
    knn = [*command[:2], "knn", *command[3:], "--set", "k=[1]"]
    assert main([*knn, "--dry-run", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["forward_passes"] == 28 and "seeds" not in cell["path"]
    assert main(knn) == 0
    assert "no seed moves it; run once" in capsys.readouterr().err
    linear = [*command[:2], "linear", *command[3:], "--set", "min_steps=2"]
    assert main([*linear, "--dry-run", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["forward_passes"] == 28
    assert main([*linear, "--dry-run", "--json", "--no-store"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["forward_passes"] == 56
    assert main(linear) == 0
    shown = capsys.readouterr().out
    assert "seeds 2" in shown and "standard deviation over seeds" in shown
    assert main(linear) == 0
    assert "done already" in capsys.readouterr().err


def test_fewer_than_one_seed_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--task", "knn", "--model", "nano", "--seeds", "0"]) == 2
    assert "--seeds 0: at least 1" in capsys.readouterr().err


def test_of_another_aggregate_seeds_stand_side_by_side_as_draws_do() -> None:
    generator = np.random.default_rng(0)
    present = generator.integers(0, 2, (20, 3)).astype(np.int8)
    name = "mean_average_precision_area"
    spec = MetricSpec("scores", "%", True, 100, aggregate=name, others=("present",))

    def seeded() -> Outcome:
        scores = generator.normal(size=(20, 3)).astype(np.float32)
        ids = [str(place) for place in range(20)]
        columns = {"image_id": ids, "scores": scores, "present": present}
        return Outcome(columns, {"map": spec})

    outcomes = [seeded(), seeded()]
    joined = over_seeds(outcomes, [0, 1])
    alone = [100 * values(name, [o.columns["scores"], present]).mean() for o in outcomes]
    assert joined.details["scores"]["map"] == pytest.approx(alone)
    together = 100 * values(name, [joined.columns["scores"], present]).mean()
    assert together == pytest.approx(np.mean(alone))
    assert joined.metrics["map"].sd == pytest.approx(np.std(alone, ddof=1))
