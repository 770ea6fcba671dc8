"""``make faults`` itself: a fault comes where it is drawn, and what is planted is found."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from faults.cases import KILLS, run_case
from faults.command import Started
from faults.place import Place
from faults.targets import Target, make
from faults.truth import files_differ, found, results_differ
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


def test_a_case_is_drawn_from_its_seed_alone(board: Target) -> None:
    drawn = [run_case(board, 3).fault for _ in range(2)]
    assert drawn[0] == drawn[1] == random.Random("leaderboard 3").choice(KILLS)
