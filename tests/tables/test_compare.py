"""Two models on the same pictures: what is compared with what, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import hits, made
from numpy.typing import NDArray

from harness.aggregates import difference
from harness.significance import mcnemar
from harness.stats import bootstrap_difference
from harness.tables.compare import Comparison, compare
from harness.tables.rows import Chosen, match, read_results


def compared(out: Path, *folders: Path, told: list[str] | None = None) -> list[Comparison]:
    notices: list[str] = [] if told is None else told
    results = read_results([out, *folders], Chosen(), notices.append)
    pairs, _ = match(results, "vits", "vits-reg4")
    return compare(pairs, lambda result: result.record.protocol.name, (), notices.append)


def seed_of(row: Comparison) -> int:
    return int(row.first.record.dataset.fingerprint[:8], 16)


def test_hits_are_compared_by_mcnemar_and_their_paired_interval(tmp_path: Path) -> None:
    first, second = hits(0.3)["hit"], hits(0.34)["hit"]
    made(tmp_path, "vits", {"hit": first})
    made(tmp_path, "vits-reg4", {"hit": second})
    (row,) = compared(tmp_path)
    assert row.test == "mcnemar" and row.discordant == int((first != second).sum())
    expected = mcnemar((first & ~second).sum(), (second & ~first).sum())
    assert (row.p, row.p_exact) == (float(expected.mid), float(expected.exact))
    assert row.p_holm == row.p and row.verdict == "better"
    ends = bootstrap_difference(100.0 * second, 100.0 * first, seed_of(row))
    assert (row.low, row.high) == pytest.approx(ends)
    assert row.difference == pytest.approx(100 * (second.mean() - first.mean()))
    assert row.second_value == pytest.approx(row.second.record.metrics["corloc"].value)
    assert not row.few_pictures


def test_fewer_than_six_discordant_pictures_are_too_few(tmp_path: Path) -> None:
    hit = hits(0.5)["hit"]
    other = hit.copy()
    other[np.flatnonzero(~hit)[:5]] = True
    made(tmp_path, "vits", {"hit": hit})
    made(tmp_path, "vits-reg4", {"hit": other})
    (row,) = compared(tmp_path)
    assert (row.verdict, row.discordant, row.p, row.p_exact) == ("too few", 5, None, 0.0625)


def test_of_an_error_less_is_better_and_few_pictures_are_flagged(tmp_path: Path) -> None:
    error = np.random.default_rng(0).gamma(2, 1, 150)
    made(tmp_path, "vits", {"rmse": error}, "rmse")
    made(tmp_path, "vits-reg4", {"rmse": error * 0.9}, "rmse")
    (row,) = compared(tmp_path)
    assert row.test == "permutation" and row.verdict == "better" and row.few_pictures
    assert row.p == pytest.approx(1 / 10_000) and row.p_exact is None
    (turned,) = compare(match([row.second, row.first], "vits-reg4", "vits")[0], str)
    assert turned.verdict == "worse" and turned.difference == pytest.approx(-row.difference)  # type: ignore[operator]


def test_frames_of_a_scene_are_one_draw_and_no_mcnemar(tmp_path: Path) -> None:
    scenes = np.repeat(["attic", "hall", "kitchen", "yard"], 100)
    first = np.zeros(400, bool)
    made(tmp_path, "vits", {"hit": first, "scene": scenes})
    made(tmp_path, "vits-reg4", {"hit": scenes == "hall", "scene": scenes})
    (row,) = compared(tmp_path)
    ends = bootstrap_difference(100.0 * (scenes == "hall"), first, seed_of(row), clusters=scenes)
    assert (row.low, row.high) == pytest.approx(ends)
    assert row.test == "permutation" and row.scenes == 4
    assert row.p == 1.0, "100 pictures won are one scene won, which is a coin's toss"


def segmented(better: float, draws: int = 1) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    labelled = generator.integers(1, 50, (60, 4))
    right = np.concatenate(
        [(labelled * np.minimum(1, generator.random((60, 4)) + better)).astype(int)
         for _ in range(draws)], axis=1)  # fmt: skip
    return {"intersection": right, "predicted": right + 5, "labelled": labelled}


@pytest.mark.parametrize("draws", [1, 3])
def test_miou_has_its_own_interval_and_a_test_by_swapping_rows(tmp_path: Path, draws: int) -> None:
    first, second = segmented(0.0), segmented(0.3, draws)
    made(tmp_path, "vits", first, "miou")
    made(tmp_path, "vits-reg4", second, "miou")
    (row,) = compared(tmp_path)
    names = "intersection", "predicted", "labelled"
    wide = [np.tile(first[name], (1, 1 if name == "labelled" else draws)) for name in names]
    value, ends = difference(
        "mean_intersection_over_union", [second[name] for name in names], wide, 100, seed_of(row)
    )
    assert row.difference == pytest.approx(value)
    assert (row.low, row.high) == pytest.approx(ends)
    assert row.p == pytest.approx(1 / 2000) and row.verdict == "better"
    assert row.second_value == pytest.approx(row.second.record.metrics["miou"].value)


def test_rows_swapped_without_a_difference_show_none(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    scores = generator.random((2, 80, 3))
    present = (generator.random((80, 3)) < 0.4).astype(np.int8)
    made(tmp_path, "vits", {"scores": scores[0], "present": present}, "map")
    made(tmp_path, "vits-reg4", {"scores": scores[1], "present": present}, "map")
    (row,) = compared(tmp_path)
    assert row.p is not None and row.p > 0.1 and row.verdict == "no difference shown"


def test_only_pictures_with_a_value_of_both_count(tmp_path: Path) -> None:
    error = np.random.default_rng(0).gamma(2, 1, 300)
    first, second = error.copy(), error * 0.9
    first[:10], second[290:] = np.nan, np.nan
    made(tmp_path, "vits", {"rmse": first}, "rmse")
    made(tmp_path, "vits-reg4", {"rmse": second}, "rmse")
    (row,) = compared(tmp_path)
    assert row.pictures == 280
    assert row.difference == pytest.approx(np.mean(second[10:290] - first[10:290]))


def test_results_of_several_folders_meet_and_a_copy_is_one(tmp_path: Path) -> None:
    made(tmp_path / "a", "vits", hits(0.3))
    made(tmp_path / "a", "vits-reg4", hits(0.4))
    made(tmp_path / "b", "vits-reg4", hits(0.4))
    assert len(compared(tmp_path / "a", tmp_path / "b")) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": {"facet": "value"}}, "facet none or value"),
        ({"version": "2.0"}, "protocol lost 1.0 or lost 2.0"),
        ({"fingerprint": "ab" * 32}, "pictures (fingerprint)"),
        ({"limit": 400, "variant": {"limit": 400}, "fingerprint": "ab" * 32},
         "pictures: all or the first 400"),
    ],
)  # fmt: skip
def test_what_differs_in_protocol_or_pictures_is_named_and_not_compared(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    made(tmp_path, "vits", hits(0.3))
    made(tmp_path, "vits-reg4", hits(0.5), **changes)
    (row,) = compared(tmp_path)
    assert row.verdict == "not comparable" and row.difference is None
    assert row.reason is not None and says in row.reason


def test_runs_with_several_seeds_go_together_first(tmp_path: Path) -> None:
    for model, share in (("vits", 0.3), ("vits-reg4", 0.4)):
        made(tmp_path, model, hits(share))
        made(tmp_path, model, hits(share + 0.1), variant={"seeds": 3})
    rows = compared(tmp_path)
    assert len(rows) == 2
    assert all(row.first.record.variant == row.second.record.variant for row in rows)


def test_holm_counts_all_tests_of_the_table(tmp_path: Path) -> None:
    for dataset in ("one", "two", "three"):
        made(tmp_path, "vits", hits(0.3), dataset=dataset)
        made(tmp_path, "vits-reg4", hits(0.32), dataset=dataset)
    rows = compared(tmp_path)
    assert [row.p_holm for row in rows] == pytest.approx([3 * (rows[0].p or 0)] * 3)


def test_a_table_that_does_not_give_the_records_score_is_left_out(tmp_path: Path) -> None:
    made(tmp_path, "vits", hits(0.3))
    path = made(tmp_path, "vits-reg4", hits(0.4))
    record = json.loads(path.read_text())
    record["metrics"]["corloc"]["value"] += 0.5
    path.write_text(json.dumps(record))
    told: list[str] = []
    assert compared(tmp_path, told=told) == []
    assert len(told) == 1 and "the record says" in told[0]


def test_tables_without_a_picture_in_common_are_left_out(tmp_path: Path) -> None:
    made(tmp_path, "vits", hits(0.3))
    others = np.array([f"other-{place}" for place in range(400)])
    made(tmp_path, "vits-reg4", {**hits(0.4), "image_id": others})
    told: list[str] = []
    assert compared(tmp_path, told=told) == []
    assert "no picture in common" in told[0]
