"""The engine ``ray`` on this machine: the records of the local engine, through whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from further_sets import World, paint, paint_all

from harness import records
from harness.cli import main
from harness.engine import driver
from harness.engine.driver import Engine
from harness.engine.pieces import cut
from harness.errors import HarnessError, SomeFailed
from harness.further import plan_further
from harness.options import Options
from harness.plan import plan
from harness.progress import Progress, Silent

ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
pytestmark = pytest.mark.slow

# Enough pictures that passes are cut: 400 to fold, 1,500 and 400 for the feature store.
TASKS = {"tasks": ["lost", "knn"], "models": ["pixels"], "datasets": ["scenes-demo"]}
KEPT = ("metrics", "details", "counts", "dataset", "protocol")


@pytest.fixture(scope="module", autouse=True)
def _own_engine() -> Iterator[None]:
    """One engine for the module, so that not each test waits for it to start."""
    try:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # no shared memory or no loopback in a sandbox, say
        pytest.skip(f"Ray cannot be started here: {error}")
    yield
    ray.shutdown()


def options(out: Path, **changes: Any) -> Options:
    return Options(**{**TASKS, "out": out, "workers": 0, **changes})


class Counting(Silent):
    """Pictures that are to be seen, and that were."""

    def start(self, what: str, pictures: int) -> None:
        super().start(what, pictures)
        self.promised, self.seen = pictures, 0

    def advance(self, pictures: int) -> None:
        super().advance(pictures)
        self.seen += pictures


def on_ray(
    wanted: Options, progress: Progress | None = None, **how: Any
) -> list[tuple[Path, records.Record]]:
    return list(driver.run(plan(wanted), wanted, Engine(**how), progress))


def tables(out: Path) -> dict[str, dict[str, Any]]:
    """Of every record in a folder what it found: metrics, details, and each picture's values."""
    found = {}
    for path, record in records.find(out):
        facts = record.model_dump(mode="json")
        found[str(path.relative_to(out))] = {
            **{
                name: facts[name]
                for name in ("metrics", "details", "counts", "dataset", "protocol")
            },
            "columns": records.read_columns(path, record),
        }
    return found


def assert_same(ours: Path, theirs: Path) -> None:
    mine, its = tables(ours), tables(theirs)
    assert mine.keys() == its.keys() and mine
    for name, facts in mine.items():
        columns, others = facts.pop("columns"), its[name].pop("columns")
        assert facts == its[name], name
        for column, values in columns.items():
            np.testing.assert_array_equal(values, others[column], err_msg=f"{name} {column}")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine finds, on as many threads as a task on Ray has."""
    out = tmp_path_factory.mktemp("local")
    arguments = [f"--{name[:-1]}={','.join(values)}" for name, values in TASKS.items()]
    subprocess.run(
        [sys.executable, "-m", "harness.cli", "run", *arguments, f"--out={out}",
         "--no-store", "--workers=0"],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return out


def test_the_records_are_those_of_the_local_engine(local: Path, tmp_path: Path) -> None:
    wanted = options(tmp_path)
    parts = cut(plan(wanted), wanted, 2)
    assert sorted(len(part.places) for part in parts) == [144, 256, 476, 1024]
    progress = Counting()
    assert len(on_ray(wanted, progress)) == 2
    assert progress.promised == progress.seen == 400 + 1500 + 400
    assert_same(tmp_path, local)
    assert on_ray(wanted) == [], "what is finished is not run again"


def test_without_a_store_they_are_the_same(local: Path, tmp_path: Path) -> None:
    progress = Counting()
    on_ray(options(tmp_path, store=False), progress)
    assert progress.promised == progress.seen == 400 + 1500 + 400
    assert_same(tmp_path, local)


def test_workers_that_are_killed_cost_time_and_nothing_else(local: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(2.0) and len(killed) < 3:
            for process in _workers():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        on_ray(options(tmp_path))
    finally:
        stop.set()
        thread.join()
    assert killed
    assert_same(tmp_path, local)


def _workers() -> list[int]:
    """Processes of ours that run a piece or finish a cell at this moment: whoever else uses the
    machine may have a Ray too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
        except (OSError, ValueError):
            continue
        if words.startswith((b"ray::_piece", b"ray::_finish")) and _is_ours(int(entry.name)):
            found.append(int(entry.name))
    return found


def _is_ours(process: int) -> bool:
    """Whether this process started it, or one that it started did."""
    while process not in (0, 1, os.getpid()):
        try:
            # 4th field; the 2nd, a name in brackets, may have spaces
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        process = int(fields[1])
    return process == os.getpid()


def test_a_cell_that_fails_is_told_at_the_end_and_the_rest_is_done(tmp_path: Path) -> None:
    bad = tmp_path / "models.yaml"
    bad.write_text("broken:\n  timm: vit_tiny_patch16_224\n  checkpoint: none.safetensors\n")
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    wanted = options(
        tmp_path / "out",
        models=["broken", "pixels"],
        tasks=["lost"],
        datasets=["scenes-few"],
        limit=8,
        model_files=[bad],
    )
    with pytest.raises(SomeFailed) as failed:
        on_ray(wanted)
    (why,) = failed.value.failures
    assert why.startswith("broken · scenes-few · lost: ") and "none.safetensors" in why
    assert [record.model.name for _, record in records.find(tmp_path / "out")] == ["pixels"]


def test_a_pass_that_fails_takes_along_the_cells_that_read_it_and_no_others(
    tiny_models: Path, tmp_path: Path
) -> None:
    paint(tmp_path / "halves/train", "ab", 520, 0)
    paint(tmp_path / "halves/val", "ab", 4, 1)
    (tmp_path / "halves/train/b/519.png").write_bytes(b"no picture")
    (tmp_path / "sets.yaml").write_text("halves: {format: folder, root: halves}\n")
    wanted = options(
        tmp_path / "out",
        tasks=["knn", "anatomy"],
        models=["tiny"],
        datasets=["halves"],
        protocols=["dinov2-knn", "anatomy"],
        model_files=[tiny_models],
        dataset_files=[tmp_path / "sets.yaml"],
    )
    cells = plan(wanted)
    assert len(cut(cells, wanted, 2)) == 2, "the train pictures, in two shards"
    with pytest.raises(SomeFailed) as failed:
        list(driver.run(cells, wanted, Engine()))
    (why,) = failed.value.failures
    assert why.startswith("tiny · halves · dinov2-knn: ") and "519" in why
    assert [record.task for _, record in records.find(tmp_path / "out")] == ["anatomy"]


def test_the_command_tells_it_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "models.yaml"
    bad.write_text("broken:\n  timm: vit_tiny_patch16_224\n  checkpoint: none.safetensors\n")
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    status = main(
        ["run", "--engine", "ray", "--task", "lost", "--model", "broken,pixels", "--dataset",
         "scenes-few", "--limit", "8", "--models", str(bad), "--out", str(tmp_path / "out")]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert status == 1
    assert "1 failed, the rest is done" in shown.err and "none.safetensors" in shown.err
    assert "pixels" in shown.out and "Traceback" not in shown.err


def test_heads_are_judged_on_further_sets_by_other_processes(
    tiny_models: Path, tmp_path: Path
) -> None:
    paint_all(tmp_path / "world")
    world = World(tmp_path / "world", tiny_models)
    assert len(world.run("more")) == 2
    given = world.options(out=tmp_path / "ray")
    wanted = Options(tasks=["linear"], models=["tiny"], datasets=["base"], **given)
    assert len(list(driver.run(plan_further(["more"], wanted), wanted, Engine()))) == 2
    assert_same(tmp_path / "ray", world.out)


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    wanted = options(tmp_path)
    with pytest.raises(HarnessError, match="--cpus-per-task 1000: the cluster has 2 cores"):
        on_ray(wanted, cpus=1000)


def test_an_address_without_ray_is_told_at_once(tmp_path: Path) -> None:
    address = "127.0.0.1:1"
    run = subprocess.run(
        [sys.executable, "-m", "harness.cli", "run", "--task=lost", "--model=pixels",
         "--dataset=scenes-few", "--limit=4", f"--out={tmp_path}", "--engine=ray",
         f"--address={address}"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "RAY_ADDRESS": ""},
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith(f"harness: --address {address}: no Ray there"), run.stderr
    assert "Traceback" not in run.stderr and not list(tmp_path.glob("*/*"))


def test_one_of_several_gpus_is_not_for_the_user_to_choose(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="--device cuda:1: the engine ray chooses"):
        on_ray(options(tmp_path, device="cuda:1"))


class _Interrupted(Silent):
    def advance(self, pictures: int) -> None:
        if time.monotonic() > self.until:
            raise KeyboardInterrupt

    def __init__(self) -> None:
        self.until = time.monotonic() + 3.0


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(local: Path, tmp_path: Path) -> None:
    wanted = options(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(driver.run(plan(wanted), wanted, Engine(), _Interrupted()))
    on_ray(wanted)
    assert_same(tmp_path, local)


def test_two_nodes_give_the_same_and_one_of_them_may_stop(local: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()  # the engine that the other tests share
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    stopped: list[bool] = []

    class Stops(Silent):
        def advance(self, pictures: int) -> None:
            if pictures and not stopped:
                stopped.append(True)
                cluster.remove_node(second, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        on_ray(options(tmp_path / "both"))
        assert len({each["NodeID"] for each in ray.nodes() if each["Alive"]}) == 2
        wanted = options(tmp_path / "one")
        list(driver.run(plan(wanted), replace(wanted, store=False), Engine(), Stops()))
        assert stopped and len([each for each in ray.nodes() if each["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same(tmp_path / "both", local)
    assert_same(tmp_path / "one", local)
