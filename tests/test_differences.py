"""A model less its baseline, over the same pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import records
from harness.cli import main
from harness.differences import Difference, differences
from harness.options import Options
from harness.plan import Cell, plan
from harness.records import read, read_columns
from harness.run import run
from harness.stats import bootstrap_difference


@pytest.fixture(scope="module")
def cells(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """LOST under two protocols with the tiny DINOv2s: both done."""
    wanted = Options(
        ["lost"],
        ["tiny-reg4", "tiny"],
        ["generated"],
        out=tmp_path_factory.mktemp("out"),
        model_files=[tiny_models],
        device="cpu",
        workers=0,
    )
    grid = {"layers": [-1], "facets": ["key"], "normalised": [False], "biases": [0.0, -0.1]}
    swept = replace(wanted, protocols=["lost-swept"], settings=grid)
    planned = plan(wanted, swept)
    list(run(planned, wanted))
    return planned


def test_each_protocol_and_metric_is_compared_once_with_the_baseline(cells: list[Cell]) -> None:
    found = differences(cells)
    metrics = ["corloc", "tied_seed_fraction", "degenerate_fraction"]
    assert [(each.protocol.partition("~")[0], each.metric) for each in found] == [
        (protocol, metric) for protocol in ("lost", "lost-swept") for metric in metrics
    ]
    assert {(each.model, each.baseline) for each in found} == {("tiny-reg4", "tiny")}


def test_a_difference_is_that_of_the_scores_and_of_each_picture(cells: list[Cell]) -> None:
    ours, theirs = cells[0], cells[2]
    first = differences(cells)[0]
    assert ours.done is not None and theirs.done is not None
    between = ours.done.metrics["corloc"].value - theirs.done.metrics["corloc"].value
    assert first.value == pytest.approx(between)
    assert first.low <= first.value <= first.high and first.pictures == 12
    hits = [read_columns(cell.path)["hit"].astype(int) for cell in (ours, theirs)]
    assert first.value == pytest.approx(100 * np.mean(hits[0] - hits[1]))


def test_nothing_is_compared_where_the_baseline_did_not_run(cells: list[Cell]) -> None:
    assert differences(cells[:2]) == []
    assert differences([cells[0], cells[3]]) == [], "another protocol"
    assert differences([cells[0], replace(cells[2], done=None)]) == []


def test_other_pictures_or_a_changed_protocol_are_not_compared(cells: list[Cell]) -> None:
    dataset = replace(cells[2].dataset, fingerprints={"test": "ab" * 32})
    assert differences([cells[0], replace(cells[2], dataset=dataset)]) == []
    protocol = cells[2].protocol.changed({"k": 5})
    assert differences([cells[0], replace(cells[2], protocol=protocol)]) == []


def test_only_pictures_that_both_scored_are_compared(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_first(path: Path) -> dict[str, np.ndarray]:
        columns = records.read_columns(path)
        return {n: c[1:] if path == cells[2].path else c[::-1] for n, c in columns.items()}

    monkeypatch.setattr("harness.differences.read_columns", without_first)
    first = differences([cells[0], cells[2]])[0]
    hits = [read_columns(cell.path)["hit"].astype(int)[1:] for cell in (cells[0], cells[2])]
    assert first.pictures == 11
    assert first.value == pytest.approx(100 * np.mean(hits[0] - hits[1]))


def test_pictures_of_one_scene_are_drawn_together(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = differences([cells[0], cells[2]])[0]
    hits = [read_columns(cell.path)["hit"] * 100.0 for cell in (cells[0], cells[2])]
    # Within a scene all pictures went alike: frames say no more than one of them.
    names = np.array(["kitchen", "attic", "hall"])[np.sign(hits[0] - hits[1]).astype(int)]

    def with_scenes(path: Path) -> dict[str, np.ndarray]:
        return records.read_columns(path) | {"scene": names}

    monkeypatch.setattr("harness.differences.read_columns", with_scenes)
    found = differences([cells[0], cells[2]])[0]
    seed = int(read(cells[0].path).dataset.fingerprint[:8], 16)
    expected = bootstrap_difference(hits[0], hits[1], seed, clusters=names)
    assert (found.low, found.high) == expected
    assert found.value == alone.value
    assert found.high - found.low > alone.high - alone.low


def test_a_metric_without_a_column_is_left_out(cells: list[Cell]) -> None:
    done = cells[0].done
    assert done is not None
    metrics = {"corloc": done.metrics["corloc"].model_copy(update={"column": None})}
    older = replace(cells[0], done=done.model_copy(update={"metrics": metrics}))
    assert differences([older, cells[2]]) == []


def test_a_record_says_which_column_a_metric_is_the_mean_of(cells: list[Cell]) -> None:
    columns = read_columns(cells[0].path)
    for metric in read(cells[0].path).metrics.values():
        assert metric.column is not None
        assert metric.value == pytest.approx(metric.scale * columns[metric.column].mean())


def test_a_run_prints_the_differences_below_its_table(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--task", "lost", "--dataset", "generated", "--models", str(tiny_models)]
    command += ["--out", str(tmp_path), "--workers", "0", "--device", "cpu"]
    assert main([*command, "--model", "tiny-reg4,tiny"]) == 0
    shown = capsys.readouterr().out
    assert "tiny-reg4 − tiny" in shown and "paired over the same pictures (12)" in shown
    table, records_ = shown.index("model − baseline"), shown.index("record: ")
    assert shown.index("pictures", 0, table) < table < records_, "records come last"
    assert main([*command, "--model", "tiny-reg4,tiny", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert [each["metric"] for each in first["differences"]] == list(first["metrics"])
    assert Difference(**first["differences"][0]).baseline == "tiny"
    assert second["differences"] == []
    assert main([*command, "--model", "tiny-reg4"]) == 0
    assert "model − baseline" not in capsys.readouterr().out
