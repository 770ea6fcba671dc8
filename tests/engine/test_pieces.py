"""A run cut into pieces gives the bits of an uncut one, whoever runs them and in whatever order."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import passes, plan, records, run
from harness.engine import pieces, worker
from harness.engine.pieces import Piece, cut, units
from harness.errors import HarnessError
from harness.features import store
from harness.options import Options
from harness.plan import Cell

PICTURES = 12
FEW = {"k": [3, 5]}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD", 4)
    monkeypatch.setattr(passes, "PIECE", 5)
    monkeypatch.setattr(pieces, "PIECE", 5)


def options(models: Path, out: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {
        "tasks": ["lost"],
        "models": ["tiny-reg4"],
        "datasets": ["generated"],
        "model_files": [models],
        "out": out,
        "limit": PICTURES,
        "workers": 0,
        "batch_size": 3,
    }
    return Options(**{**given, **changes})


def in_pieces(cells: list[Cell], wanted: Options, workers: int = 2) -> list[Piece]:
    """As the driver does with one group, but here, with everything pickled on its way and the
    last piece run first."""
    group = [cell for cell in cells if cell.reason is None]
    parts = cut(group, wanted, workers)
    seen: dict[Any, list[Any]] = {}
    given = pickle.dumps((group, wanted))
    for part in reversed(parts):
        theirs, how = pickle.loads(given)
        found = pickle.loads(pickle.dumps(worker.piece(theirs, part, how)))
        for place, its in found.items():
            seen.setdefault((part.repeat, part.role, place), []).insert(0, its)
    for places in units(group, parts):
        theirs, how = pickle.loads(given)
        finished = worker.finish(theirs, places, seen, {}, how)
        assert finished.failed is None, finished.failed
        for place, name, files in finished.results:
            group[place].path = wanted.out / name
            group[place].done = records.adopt(group[place].path, files)
    return parts


def assert_same(ours: list[Cell], theirs: list[Cell]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.done is not None and other.done is not None
        assert one.done.metrics == other.done.metrics
        assert one.done.details == other.done.details and one.done.counts == other.done.counts
        assert one.done.protocol == other.done.protocol
        mine, its = (records.read_columns(each.path) for each in (one, other))
        assert mine.keys() == its.keys()
        for name, column in mine.items():
            np.testing.assert_array_equal(column, its[name], err_msg=name)


@pytest.mark.parametrize(
    ("task", "cuts", "changes"),
    [
        ("lost", "folded", {}),
        ("attention", "folded", {"datasets": ["scenes-few"], "limit": 11}),
        ("anatomy", "folded", {"datasets": ["scenes-few"], "limit": 11}),
        ("knn", "stored", {"datasets": ["scenes-demo"], "settings": FEW}),
        ("logistic", "stored", {"datasets": ["scenes-demo"], "settings": {"token": "normal"}}),
        ("linear", "stored", {"datasets": ["scenes-demo"], "settings": {"min_steps": 5}}),
    ],
)
def test_pieces_give_what_an_uncut_run_gives(
    task: str,
    cuts: str,
    changes: dict[str, Any],
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = options(tiny_models, tmp_path / "whole", tasks=[task], **changes)
    uncut = plan.plan(whole)
    list(run.run(uncut, whole))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "another"))
    apart = replace(whole, out=tmp_path / "apart")
    cells = plan.plan(apart)
    parts = in_pieces(cells, apart)
    assert len(parts) > 2
    assert all(bool(part.folding) == (cuts == "folded") for part in parts)
    assert_same(cells, uncut)
    for one, other in zip(cells, uncut, strict=True):
        assert one.done is not None and other.done is not None
        ours, theirs = one.done.cost, other.done.cost
        assert (ours.pictures, ours.forward_passes) == (theirs.pictures, theirs.forward_passes)


def test_what_folds_and_what_is_stored_share_a_pass_and_its_pieces(
    tiny_models: Path, tmp_path: Path
) -> None:
    wanted = options(
        tiny_models, tmp_path, tasks=["lost"], protocols=["lost", "lost-swept-on-test"]
    )
    cells = plan.plan(wanted)
    parts = in_pieces(cells, wanted)
    assert {part.cells for part in parts} == {(0, 1)}
    assert sum(len(part.places) for part in parts) == PICTURES
    assert cells[0].done is not None and cells[0].done.cost.forward_passes == PICTURES


def test_every_picture_is_in_one_piece_and_cuts_stand_at_whole_shards(
    tiny_models: Path, tmp_path: Path
) -> None:
    wanted = options(tiny_models, tmp_path, tasks=["knn"], datasets=["scenes-demo"], settings=FEW)
    (cell,) = plan.plan(wanted)
    for workers in (2, 3, 50):
        parts = cut([cell], wanted, workers)
        for role in ("train", "test"):
            places = [place for part in parts if part.role == role for place in part.places]
            assert places == list(range(PICTURES))
        assert all(part.places.start % 4 == 0 for part in parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ["linear"], "protocols": ["dinov2-linear"], "datasets": ["scenes-demo"]},
        {"tasks": ["knn"], "datasets": ["scenes-demo"], "store": False, "settings": FEW},
        {"tasks": ["segmentation"], "protocols": ["linear-seg"], "datasets": ["scenes-few"]},
        {"limit": 3},
    ],
    ids=["a stream in an order", "nothing is stored", "a fold that cannot merge", "a few pictures"],
)
def test_what_cannot_be_cut_stays_whole(
    changes: dict[str, Any], tiny_models: Path, tmp_path: Path
) -> None:
    wanted = options(tiny_models, tmp_path, **changes)
    group = plan.plan(wanted)
    parts = cut(group, wanted, 2)
    assert not any(part.folding for part in parts) and (not parts or wanted.store)
    if not parts:
        assert units(group, parts) == [[0]]


def test_one_worker_is_given_no_pieces(tiny_models: Path, tmp_path: Path) -> None:
    wanted = options(tiny_models, tmp_path)
    assert cut(plan.plan(wanted), wanted, 1) == []


def test_cells_that_share_an_uncut_pass_are_finished_together(
    tiny_models: Path, tmp_path: Path
) -> None:
    protocols = ["lost", "lost-swept-on-test", "dinov2-knn"]
    wanted = options(
        tiny_models,
        tmp_path,
        tasks=["lost", "knn"],
        datasets=["scenes-demo"],
        protocols=protocols,
        limit=300,
    )
    group = plan.plan(wanted)
    assert [cell.protocol.name for cell in group] == protocols
    assert sorted(units(group, [])) == [[0, 1], [2]]


def test_what_fails_is_told_and_what_was_done_before_is_kept(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(tiny_models, tmp_path, protocols=["lost", "lost-swept-on-test"])
    group = plan.plan(wanted)
    original = run.store_record

    def fails(backbone: Any, cell: Cell, *rest: Any) -> Any:
        if cell.protocol.name == "lost-swept-on-test":
            raise HarnessError("the disk is full")
        return original(backbone, cell, *rest)

    monkeypatch.setattr(run, "store_record", fails)
    finished = worker.finish(group, [0, 1], {}, {}, wanted)
    assert [place for place, _, _ in finished.results] == [0]
    assert finished.failed == "the disk is full"
    assert not list(tmp_path.glob("*/*/*/*.json")), "the driver alone writes"
