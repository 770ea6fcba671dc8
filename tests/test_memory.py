"""Cells whose vectors do not fit read them in blocks, with the records of those that keep them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from classified import colours

from harness import evaluate, memory
from harness.cli import main
from harness.errors import HarnessError
from harness.memory import Budget, asked_memory, budget, free, settle
from harness.options import Options
from harness.plan import Cell, plan
from harness.records import read_columns, record_path
from harness.schema import Record

SMALL = {"crop": 56, "resize": 56}


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    return colours(tmp_path, train=12, val=4)


def run(
    task: str, settings: dict[str, Any], out: Path, models: Path, datasets: Path, **options: Any
) -> tuple[Record, dict[str, list[Any]]]:
    (record,) = evaluate(
        task,
        "tiny-reg4",
        "colours",
        settings=SMALL | settings,
        out=out,
        model_files=[models],
        dataset_files=[datasets],
        workers=0,
        device="cpu",
        **options,
    )
    path = record_path(out, "colours", task, "tiny-reg4", record.protocol.name, record.variant)
    return record, {name: column.tolist() for name, column in read_columns(path).items()}


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("knn", {"k": [1, 5]}),
        ("knn", {"k": [3], "index": "ivf", "ivf_lists": 4, "ivf_probes": 2}),
        ("knn", {"k": [1], "n_per_class": 3, "draws": 2, "token": "register"}),
        ("logistic", {"c_count": 3}),
        ("linear", {"epochs": 1, "min_steps": 6, "batch_size": 7}),
    ],
)
def test_the_record_is_that_of_vectors_in_memory(
    task: str, settings: dict[str, Any], tmp_path: Path, tiny_models: Path, datasets: Path
) -> None:
    files = tiny_models, datasets
    plain, table = run(task, settings, tmp_path / "plain", *files, store=False)
    first, streamed = run(task, settings, tmp_path / "streamed", *files, memory=1)
    second, again = run(task, settings, tmp_path / "again", *files, memory=1)
    assert table == streamed == again
    for record in (first, second):
        assert record.metrics == plain.metrics
        assert record.protocol == plain.protocol
        assert record.counts == plain.counts
    assert (first.cost.forward_passes > 0, second.cost.forward_passes) == (True, 0)


def options(tmp_path: Path, models: Path, datasets: Path, **rest: Any) -> Options:
    given: dict[str, Any] = {
        "tasks": ["knn"],
        "models": ["tiny-reg4"],
        "datasets": ["colours"],
        "settings": {"k": 3, "crop": 56},
        "out": tmp_path / "out",
        "model_files": [models],
        "dataset_files": [datasets],
        "device": "cpu",
    }
    return Options(**given | rest)


def both_tasks(wanted: Options) -> list[Cell]:
    """The cells of kNN and of logistic regression, which run side by side."""
    return plan(wanted, replace(wanted, tasks=["logistic"], settings={"crop": 56}))


def command(models: Path, datasets: Path, *rest: str) -> list[str]:
    fixed = ["run", "--model", "tiny-reg4", "--dataset", "colours", "--set", "crop=56"]
    files = ["--models", str(models), "--datasets", str(datasets), "--workers", "0"]
    return [*fixed, *files, "--device", "cpu", *rest]


def test_cells_that_keep_most_are_streamed_first_and_no_more_than_is_needed(
    tmp_path: Path, tiny_models: Path, datasets: Path
) -> None:
    wanted = options(tmp_path, tiny_models, datasets)
    knn, logistic = both_tasks(wanted)
    both, less = knn.bytes + logistic.bytes, knn.bytes
    assert logistic.bytes > knn.bytes == 4 * 48 * 32
    for limit, streamed in (
        (both, (False, False)),
        (both - 1, (False, True)),
        (less + 8 * 32, (False, True)),
        (less + 8 * 32 - 1, (True, True)),
        (1, (True, True)),
    ):
        cells = both_tasks(wanted)
        settle(cells, replace(wanted, memory=limit))
        assert tuple(cell.block is not None for cell in cells) == streamed, limit
    assert cells[0].bytes == cells[1].bytes == 8 * 32


def test_without_a_store_a_run_that_does_not_fit_is_refused_before_it_begins(
    tmp_path: Path, tiny_models: Path, datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    typed = command(tiny_models, datasets, "--task", "knn", "--set", "k=3", "--out", str(out))
    assert main([*typed, "--no-store", "--memory", "2KB"]) == 2
    said = capsys.readouterr().err
    assert "6.0 KiB would be kept in memory, most of it by knn, and 2.0 KiB may be" in said
    assert "(--memory)" in said and "without --no-store" in said
    assert not out.exists()
    assert main([*typed, "--no-store", "--memory", "7KB"]) == 0


def test_a_store_that_cannot_be_written_ends_the_run_that_needs_it(
    tmp_path: Path,
    tiny_models: Path,
    datasets: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "features"))
    typed = command(tiny_models, datasets, "--task", "knn", "--set", "k=3")
    assert main([*typed, "--memory", "1KB", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said and "HARNESS_CACHE" in said and "--memory" in said


def test_a_disk_without_the_room_is_told_before_the_run(
    tmp_path: Path, tiny_models: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(tmp_path, tiny_models, datasets, memory=1)
    needed = (4 * 48 + 53) * 32
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    settle(plan(wanted), wanted)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(HarnessError, match=r"7\.7 KiB of vectors .* the disk has 7\.7 KiB"):
        settle(plan(wanted), wanted)
    settle(plan(wanted), wanted, begins=False)


def test_a_dry_run_tells_what_is_kept_when_vectors_are_streamed(
    tmp_path: Path, tiny_models: Path, datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = command(tiny_models, datasets, "--task", "knn", "--set", "k=3", "--dry-run")
    for limit, expected in (("1MiB", (6144, False)), ("1KiB", (256, True))):
        assert main([*typed, "--memory", limit, "--json"]) == 0
        (fact,) = json.loads(capsys.readouterr().out)
        assert (fact["bytes"], fact["streamed"]) == expected
    assert main([*typed, "--memory", "1KiB"]) == 0
    assert "256 B (streamed)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "much", "-1", "3 apples", "0", "0.2"])
def test_a_size_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match=f"^--memory {text}: "):
        asked_memory(text)
    if text:
        monkeypatch.setenv(memory.VARIABLE, text)
        with pytest.raises(HarnessError, match=f"^HARNESS_MEMORY {text}: "):
            budget(Options(tasks=["knn"], models=["tiny"]))


def test_the_budget_is_what_was_typed_else_the_variable_else_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    plain = Options(tasks=["knn"], models=["tiny"])
    monkeypatch.setattr(memory, "free", lambda: 1000)
    assert budget(plain).bytes == 500
    monkeypatch.setenv(memory.VARIABLE, "3KiB")
    assert budget(plain) == Budget(3072, "HARNESS_MEMORY")
    assert budget(Options(tasks=["knn"], models=["tiny"], memory=7)).bytes == 7


def test_free_memory_is_no_more_than_the_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free() > 2**20
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CGROUPS", [(limit, used)])
    for text, expected in (("5000", 2000), ("1000", 0)):
        limit.write_text(text)
        used.write_text("3000\n")
        assert free() == expected
    limit.write_text("max\n")
    assert free() > 2**20


def test_blocks_are_a_part_of_the_budget() -> None:
    assert Budget(1, "").block == 1
    assert Budget(2**20, "").block == 2**16
    assert np.log2(Budget(2**60, "").block) == 29
