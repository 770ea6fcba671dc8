"""Every state that a gate knows, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gated import Folders, moved
from made_records import hits, made

from harness.gate.cells import Cell
from harness.gate.judge import Report


def only(report: Report) -> Cell:
    (cell,) = report.cells
    return cell


@pytest.mark.parametrize("discordant", [30, 60, 100, 150])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_points_lost_fail_whatever_else_moved(
    folders: Folders, discordant: int, seed: int
) -> None:
    gained = (discordant - 30) // 2
    folders.both(*moved(gained + 30, gained, seed=seed), fingerprint=f"{seed:08x}" + "ab" * 28)
    report = folders.judged()
    cell = only(report)
    assert (cell.state, cell.action, report.passed) == ("regressed", "fail", False)
    assert cell.difference == pytest.approx(-3.0) and cell.tolerance == 0.5
    assert cell.high is not None and cell.high < -0.5 and (cell.p_holm or 1) < 0.05
    assert report.verdict == "failed: 1 cell: 1 regressed"


def test_a_few_pictures_that_flip_on_another_machine_pass(folders: Folders) -> None:
    folders.both(*moved(4, 1))
    report = folders.judged()
    assert (only(report).state, report.passed) == ("within noise", True)


def test_what_is_within_the_tolerance_passes_however_sure_it_is(folders: Folders) -> None:
    error = np.random.default_rng(0).gamma(2, 1, 1000)
    folders.both({"rmse": error}, {"rmse": error * 1.009}, "rmse")
    cell = only(folders.judged())
    assert cell.state == "within noise" and cell.tolerance == pytest.approx(error.mean() / 100)
    assert cell.low is not None and cell.low > 0


def test_of_an_error_more_is_worse(folders: Folders) -> None:
    error = np.random.default_rng(0).gamma(2, 1, 1000)
    folders.both({"rmse": error}, {"rmse": error * 1.05}, "rmse")
    assert only(folders.judged()).state == "regressed"


def test_what_got_better_by_more_than_the_tolerance_is_told_and_passes(folders: Folders) -> None:
    folders.both(*moved(2, 40))
    report = folders.judged()
    assert (only(report).state, report.passed) == ("improved", True)


def test_the_same_values_are_unchanged(folders: Folders) -> None:
    folders.both(hits(0.5), hits(0.5))
    cell = only(folders.judged())
    assert (cell.state, cell.difference, cell.p, cell.p_holm) == ("unchanged", 0.0, None, None)


def test_frames_of_one_scene_are_one_observation(folders: Folders) -> None:
    scenes = np.repeat([f"scene {place}" for place in range(8)], 50)
    first = np.ones(400, bool)
    folders.both({"hit": first, "scene": scenes}, {"hit": scenes != "scene 3", "scene": scenes})
    cell = only(folders.judged())
    assert cell.scenes == 8 and cell.state == "within noise", "one scene of eight shows nothing"
    assert cell.difference == -12.5 and cell.p is not None and cell.p > 0.05


def test_a_metric_that_is_no_mean_has_the_error_of_its_bootstrap(folders: Folders) -> None:
    generator = np.random.default_rng(0)
    labelled = generator.integers(1, 50, (300, 4))
    right = (labelled * generator.random((300, 4))).astype(int)
    worse = (right * generator.uniform(0.85, 0.95, (300, 1))).astype(int)
    tables = [
        {"intersection": each, "predicted": each + 5, "labelled": labelled}
        for each in (right, worse)
    ]
    folders.both(*tables, "miou")
    cell = only(folders.judged())
    assert cell.state == "regressed" and cell.p is not None and cell.p < 1e-6
    folders.both(tables[0], {**tables[0], "predicted": right + 5 + (labelled > 48)}, "miou",
                 dataset="two")  # fmt: skip
    other = next(cell for cell in folders.judged().cells if cell.dataset == "two")
    assert other.state == "within noise"


def test_p_is_adjusted_for_the_cells_that_moved_and_not_for_others(folders: Folders) -> None:
    for dataset in ("one", "two"):
        folders.both(*moved(30, 6), dataset=dataset)
    for dataset in ("three", "four", "five"):
        folders.both(hits(0.5), hits(0.5), dataset=dataset)
    cells = [cell for cell in folders.judged().cells if cell.p is not None]
    assert len(cells) == 2
    assert all(cell.p_holm == pytest.approx(2 * cell.p) for cell in cells if cell.p)  # fmt: skip


def test_what_is_only_in_the_baseline_fails_and_what_is_new_does_not(folders: Folders) -> None:
    folders.both(hits(0.5), hits(0.5))
    made(folders.baseline, "vitb", hits(0.5))
    made(folders.candidate, "vitl", hits(0.5))
    report = folders.judged()
    found = {cell.model: (cell.state, cell.action) for cell in report.cells}
    assert found == {
        "vits": ("unchanged", "pass"), "vitb": ("missing", "fail"), "vitl": ("new", "ignore")
    }  # fmt: skip
    assert not report.passed
    text = "states: {missing: warn, new: fail}"
    found = {cell.model: (cell.state, cell.action) for cell in folders.judged(text).cells}
    assert found["vitb"] == ("missing", "warn") and found["vitl"] == ("new", "fail")


def test_runs_of_one_protocol_with_other_settings_are_cells_of_their_own(folders: Folders) -> None:
    folders.both(hits(0.5), hits(0.5))
    variant = {"variant": {"set": {"k": 50}}, "settings": {"k": 50}}
    made(folders.baseline, "vits", hits(0.4), **variant)
    states = {cell.protocol: cell.state for cell in folders.judged().cells}
    assert states == {"lost": "unchanged", "lost, k=50": "missing"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"settings": {"k": 50}}, "k 100 or 50"), ({"version": "2.0"}, "protocol lost 1.0 or lost"),
     ({"fingerprint": "ab" * 32}, "pictures (fingerprint)")],
)  # fmt: skip
def test_what_does_not_compare_names_the_fields_and_fails(
    folders: Folders, changes: dict[str, object], says: str
) -> None:
    made(folders.baseline, "vits", hits(0.5))
    made(folders.candidate, "vits", hits(0.5), **changes)  # type: ignore[arg-type]
    cell = only(folders.judged())
    assert (cell.state, cell.action) == ("incomparable", "fail") and says in (cell.reason or "")
    assert only(folders.judged("states: {incomparable: ignore}")).action == "ignore"


def test_pictures_that_lost_their_value_fail_and_are_counted(folders: Folders) -> None:
    error = np.random.default_rng(0).gamma(2, 1, 300)
    gone = error.copy()
    gone[:7] = np.nan
    folders.both({"rmse": error}, {"rmse": gone}, "rmse")
    cell = only(folders.judged())
    assert (cell.state, cell.action, cell.lost) == ("fewer pictures", "fail", 7)
    assert "7 pictures of the baseline" in (cell.reason or "")
    assert only(folders.judged("states: {fewer_pictures: ignore}")).state == "unchanged"
    folders.both({"rmse": gone}, {"rmse": error}, "rmse")
    assert only(folders.judged()).state == "unchanged", "more pictures are no loss"


def test_few_pictures_are_judged_with_a_warning_or_not_at_all(folders: Folders) -> None:
    folders.both(*moved(2, 1, 100))
    cell = only(folders.judged())
    assert (cell.state, cell.action, cell.few_pictures) == ("within noise", "warn", True)
    cell = only(folders.judged("states: {few_pictures: fail}"))
    assert (cell.state, cell.action) == ("few pictures", "fail")
    assert only(folders.judged("states: {few_pictures: ignore}")).action == "pass"
    folders.both(*moved(30, 1, 100))
    assert only(folders.judged()).state == "regressed", "few pictures can show a lot"


def without_column(path: Path, value: float) -> None:
    record = json.loads(path.read_text())
    record["metrics"]["corloc"] |= {"column": None, "value": value, "low": value, "high": value}
    path.write_text(json.dumps(record))


def test_another_score_without_a_value_for_each_picture_is_untested(folders: Folders) -> None:
    first, second = folders.both(hits(0.5), hits(0.5))
    without_column(first, 50.0)
    without_column(second, 20.0)
    cell = only(folders.judged())
    assert (cell.state, cell.action) == ("untested", "warn")
    without_column(second, 50.0)
    assert only(folders.judged()).state == "unchanged"


def test_ignored_cells_are_shown_with_the_reason_and_decide_nothing(folders: Folders) -> None:
    folders.both(*moved(60, 0))
    folders.both(*moved(31, 5), dataset="two")
    report = folders.judged("ignore: [{dataset: voc07, metric: [corloc], reason: moving}]")
    ignored, other = sorted(report.cells, key=lambda cell: cell.dataset, reverse=True)
    assert (ignored.state, ignored.action, ignored.ignored) == ("regressed", "ignore", "moving")
    assert other.action == "fail" and other.p_holm == other.p, "of one cell that counts"
    assert "1 regressed, 1 ignored" in report.verdict


def test_tolerances_are_the_last_that_fits(folders: Folders) -> None:
    folders.both(*moved(30, 0))
    for text, expected in (
        ("tolerance: [{absolute: 4}]", "within noise"),
        ("tolerance: [{absolute: 4}, {task: depth, absolute: 0}]", "within noise"),
        ("tolerance: [{absolute: 4}, {task: lost, absolute: 0}]", "regressed"),
        ("tolerance: [{absolute: 4}, {dataset: [voc12, voc07], metric: corloc, relative: 0.01}]",
         "regressed"),
    ):  # fmt: skip
        assert only(folders.judged(text)).state == expected, text


def test_a_rule_that_fits_nothing_is_told(folders: Folders) -> None:
    folders.both(hits(0.5), hits(0.5))
    text = "tolerance:\n  - {metric: corlok, absolute: 1}\nignore:\n  - {task: knn, reason: old}\n"
    notes = folders.judged(text).notes
    assert [note.partition("gate.yaml")[2] for note in notes] == [
        ":2: this rule fits none of the cells", ":4: this rule fits none of the cells"
    ]  # fmt: skip


def paced(path: Path, speed: float, **cost: object) -> None:
    record = json.loads(path.read_text())
    record["cost"] |= {"images_per_second": speed, **cost}
    path.write_text(json.dumps(record))


def test_speed_counts_only_where_asked_and_on_the_same_device(folders: Folders) -> None:
    first, second = folders.both(hits(0.5), hits(0.5))
    paced(first, 100.0)
    paced(second, 79.0)
    assert folders.judged().passed and not folders.judged().paces
    report = folders.judged(speed=0.8)
    assert not report.passed and "1 slower" in report.verdict
    assert not folders.judged("speed: {ratio: 0.8}").passed
    assert folders.judged("speed: {ratio: 0.7}").passed
    paced(second, 79.0, device="cuda")
    report = folders.judged(speed=0.8)
    assert report.passed and not report.paces and "1 of 1 results" in report.notes[0]


def test_a_model_of_random_weights_has_cells_too(folders: Folders) -> None:
    folders.both(*moved(50, 0), variant={"weights": "random"})
    assert only(folders.judged()).state == "regressed"


def test_a_metric_that_the_candidate_lacks_is_missing(folders: Folders) -> None:
    first, second = folders.both(hits(0.5), hits(0.5))
    record = json.loads(second.read_text())
    record["metrics"]["other"] = record["metrics"].pop("corloc")
    second.write_text(json.dumps(record))
    states = {cell.metric: cell.state for cell in folders.judged().cells}
    assert states == {"corloc": "missing", "other": "new"} and first != second


def test_a_metric_whose_unit_changed_does_not_compare(folders: Folders) -> None:
    _, second = folders.both(hits(0.5), hits(0.5))
    record = json.loads(second.read_text())
    record["metrics"]["corloc"]["unit"] = "share"
    second.write_text(json.dumps(record))
    cell = only(folders.judged())
    assert (cell.state, cell.reason) == ("incomparable", "unit of the metric")


def test_a_score_that_is_made_otherwise_of_the_same_values_is_damaged(folders: Folders) -> None:
    labelled = np.random.default_rng(0).integers(1, 50, (300, 4))
    right = labelled // 2
    columns = {"intersection": right, "predicted": right + 5, "labelled": labelled}
    _, path = folders.both(columns, columns, "miou")
    record = json.loads(path.read_text())
    record["metrics"]["miou"]["value"] += 0.1
    record["metrics"]["miou"]["high"] += 0.1
    path.write_text(json.dumps(record))
    cell = only(folders.judged())
    assert (cell.state, cell.action) == ("damaged", "fail")
    assert "the score is made otherwise now" in (cell.reason or "")
