"""``make faults`` itself: a fault comes where it is drawn, and what is planted is found."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from faults import s3
from faults.cases import KILLS, run_case
from faults.command import Ended, Started, at_work
from faults.place import Place, tree
from faults.targets import Target, make, promised
from faults.truth import files_differ, found, results_differ
from faults.urls import shared_differs
from faults.world import World
from result_examples import cell, columns
from result_examples import make as made

from harness import atomic, records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.fixture
def board(tmp_path: Path) -> Target:
    """``harness leaderboard --out`` of one result."""
    world = World(tmp_path, Place(tmp_path / "case"))
    path = cell(world.results)
    path.parent.mkdir(parents=True)
    records.write(path, made(), columns())
    target = make("leaderboard", world)
    target.measure()
    return target


def test_a_command_dies_where_the_fault_was_drawn(board: Target) -> None:
    place = board.world.place
    assert list(board.truth) == ["a/board.md"] and board.events == 3  # a folder, a file, its name
    for at in range(board.events):
        place.clean()
        number = signal.SIGKILL if at % 2 == 0 else signal.SIGINT

        def act(number: signal.Signals = number) -> bool:
            os.kill(os.getpid(), number)
            return True

        ended = Started(board.arguments(), place, at, act).end()
        assert ended.landed and ended.status == (-9 if number == signal.SIGKILL else 130)
        assert not (place.out / "a/board.md").exists()
        assert "Traceback" not in ended.told


@pytest.mark.parametrize("fault", KILLS)
def test_a_killed_command_leaves_the_old_file_or_the_new_one(board: Target, fault: str) -> None:
    case = run_case(board, 0, fault)
    assert case.landed and not case.wrong


def test_a_command_that_is_not_atomic_is_found(
    board: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for piece in (data[:10], data[10:]):
            with path.open("ab") as file:
                file.write(piece)

    monkeypatch.setattr(atomic, "publish", careless)
    monkeypatch.setattr("harness.tables.command.publish", careless)
    kinds = {one.kind for seed in range(4) for one in run_case(board, seed, "SIGKILL").wrong}
    assert "wrong" in kinds


def test_results_that_are_lost_or_have_other_numbers_are_found(tmp_path: Path) -> None:
    path = cell(tmp_path)
    path.parent.mkdir(parents=True)
    records.write(path, made(50.0), columns(50.0))
    truth = found(tmp_path)
    assert not results_differ(tmp_path, truth, complete=True)
    records.write(path, made(80.0), columns(80.0))
    assert [one.kind for one in results_differ(tmp_path, truth, complete=True)] == ["wrong"]
    path.with_suffix(".parquet").write_bytes(b"cut off")
    (one,) = results_differ(tmp_path, truth, complete=True)
    assert one.kind == "wrong" and "damaged" in one.what
    path.unlink()
    assert [one.kind for one in results_differ(tmp_path, truth, complete=True)] == ["lost"]
    assert not results_differ(tmp_path, truth, complete=False)


def test_a_file_that_is_half_there_is_found() -> None:
    old, new = {"page.html": b"old"}, {"page.html": b"new"}
    assert not files_differ(old, new, old, complete=False)
    assert not files_differ({**new, ".page.html.12.tmp": b"n"}, new, old, complete=False)
    assert [one.kind for one in files_differ({"page.html": b"ne"}, new, old, False)] == ["wrong"]
    assert [one.kind for one in files_differ({}, new, old, complete=False)] == ["lost"]
    assert [one.kind for one in files_differ(old, new, old, complete=True)] == ["wrong"]


def test_objects_that_are_damaged_or_another_are_found(tmp_path: Path) -> None:
    data = b"no shard at all"
    digest = hashlib.sha256(data).hexdigest()
    for name, content in ((f"00000-{digest}", data), (f"00001-{digest}", data[:5])):
        path = tmp_path / "key" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    whats = [one.what for one in shared_differs(tmp_path, {"key": {0: "a digest"}})]
    assert len(whats) == 2
    assert "other vectors" in whats[0] and "not what its name says" in whats[1]


def test_a_secret_that_is_shown_is_found() -> None:
    assert not promised(0, (0,), Ended(0, "all is well", 1.0))
    (one,) = promised(0, (0,), Ended(0, f"key={s3.SECRET}", 1.0))
    assert "secret" in one.what


def test_a_worker_that_another_cluster_has_begun_is_none_of_ours() -> None:
    assert not at_work("FAULTS_CLUSTER=/no/such/folder")


@pytest.mark.slow
def test_the_bucket_is_what_it_was_filled_with(tmp_path: Path) -> None:
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server,s3]'")
    (tmp_path / "in/below").mkdir(parents=True)
    (tmp_path / "in/below/a.json").write_bytes(b"{}")
    with s3.started() as server:
        server.tell("spoil drop 1")  # which those two go past
        server.tell(f"fill {tmp_path / 'in'}")
        server.tell(f"dump {tmp_path / 'out'}")
    assert tree(tmp_path / "out") == {"below/a.json": b"{}"}


def test_a_case_is_drawn_from_its_seed_alone(board: Target) -> None:
    drawn = [run_case(board, 3).fault for _ in range(2)]
    assert drawn[0] == drawn[1] == random.Random("leaderboard 3").choice(KILLS)
