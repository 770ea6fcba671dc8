"""A group of cells that fails, on the local engine: it is told, and the others are run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from further_sets import World, paint_all
from harness.tasks.lost import LostEvaluation

from harness import recording, records
from harness.cli import main
from harness.data.dataset import Role
from harness.errors import HarnessError, SomeFailed, Unwritable
from harness.further import plan_further
from harness.options import Options
from harness.plan import plan
from harness.run import run
from harness.task import Batch


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A registry file with ``broken``, whose checkpoint holds no weights."""
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    path = tmp_path / "models.yaml"
    path.write_text("broken:\n  timm: vit_tiny_patch16_224\n  checkpoint: none.safetensors\n")
    return path


def wanted(broken: Path, models: list[str]) -> Options:
    return Options(
        tasks=["lost"],
        models=models,
        datasets=["generated"],
        limit=2,
        out=broken.parent / "out",
        workers=0,
        model_files=[broken],
    )


def test_the_groups_after_one_that_fails_are_run(broken: Path) -> None:
    options = wanted(broken, ["broken", "pixels"])
    for _ in ("at first", "when the rest was done already"):
        with pytest.raises(SomeFailed) as failed:
            list(run(plan(options), options))
        (why,) = failed.value.failures
        assert why.startswith("broken · generated · lost: ") and "none.safetensors" in why
        assert [record.model.name for _, record in records.find(options.out)] == ["pixels"]


def test_where_nothing_is_done_the_error_itself_is_raised(broken: Path) -> None:
    options = wanted(broken, ["broken"])
    with pytest.raises(HarnessError, match=r"none\.safetensors") as failed:
        list(run(plan(options), options))
    assert not isinstance(failed.value, SomeFailed) and "generated" not in str(failed.value)


def test_the_command_tells_it_with_status_1(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        ["run", "--task=lost", "--model=broken,pixels", "--dataset=generated", "--limit=2",
         "--workers=0", f"--models={broken}", f"--out={broken.parent / 'out'}"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert status == 1
    assert "failed: broken · generated · lost: " in shown.err.split("1 failed, the rest is done")[0]
    assert "pixels" in shown.out and "Traceback" not in shown.err


def test_a_run_with_nothing_to_do_removes_what_a_killed_one_left(broken: Path) -> None:
    options = wanted(broken, ["chance"])
    ((path, _),) = run(plan(options), options)
    for litter in (path.with_name(".lost.parquet.1.tmp"), options.out / ".probe.1.tmp"):
        litter.write_bytes(b"half of it")
        assert not list(run(plan(options), options))
        assert path.exists() and not litter.exists()


def test_of_cells_that_share_a_pass_the_one_that_failed_is_named(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(record: Path) -> None:
        if record.parts[-3] == "lost":
            raise HarnessError("s3://bucket: does not answer")

    monkeypatch.setattr("harness.run.push", push)
    options = dataclasses.replace(wanted(broken, ["nano"]), tasks=["lost", "attention"])
    with pytest.raises(SomeFailed) as failed:
        list(run(plan(options), options))
    assert failed.value.failures == ["nano · generated · lost: s3://bucket: does not answer"]
    assert len(list(records.find(options.out))) == 2


def test_a_folder_that_cannot_be_written_stops_the_run(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def write(path: Path, *_: object) -> None:
        tried.append(path)
        raise Unwritable(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(recording.records, "write", write)
    options = wanted(broken, ["chance", "pixels"])
    with pytest.raises(Unwritable, match="No space left on device"):
        list(run(plan(options), options))
    assert len(tried) == 1


def test_a_head_that_was_not_trained_is_not_judged(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint_all(tmp_path / "world")
    world = World(tmp_path / "world", tiny_models)
    options = Options(tasks=["linear"], models=["tiny"], datasets=["base"], **world.options())
    cells = plan_further(["more"], options)

    def fails(*_: object) -> None:
        raise HarnessError("no head")

    monkeypatch.setattr(type(cells[0].task), "start", fails)
    with pytest.raises(HarnessError) as failed:
        list(run(cells, options))
    assert "no head" in str(failed.value)
    assert "the head to be judged was not trained" in str(failed.value)


def test_a_decoding_process_that_dies_while_a_fold_works_is_told_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch would tell it from a signal's handler, in the middle of the fold (make faults
    TARGET=run SEED=1028)."""
    folded = []
    original = LostEvaluation.update

    def update(self: LostEvaluation, role: Role, batch: Batch) -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.2)
        original(self, role, batch)
        folded.append(len(batch.ids))

    monkeypatch.setattr(LostEvaluation, "update", update)
    command = ["run", "--task", "lost", "--model", "pixels", "--dataset", "scenes-demo"]
    command += ["--limit", "80", "--batch-size", "8", "--out", str(tmp_path)]
    assert main([*command, "--workers", "2"]) == 2
    said = capsys.readouterr().err
    assert folded and all(count == 8 for count in folded)
    assert "a worker process died (DataLoader worker (pid" in said
    assert "--workers 1" in said and "Traceback" not in said and "ignored" not in said
    assert not multiprocessing.active_children()
