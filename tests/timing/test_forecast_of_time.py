"""``harness run --dry-run --rate``: what a run will take, stated or measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.timing.command import duration
from harness.timing.measure import FitTime, PassTime, _fit_time, _Fitting


@pytest.fixture
def ask(
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """A dry run of lost on 12 painted pictures, as JSON."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    command = [
        "run", "--task", "lost", "--dataset", "generated", "--models", str(tiny_models),
        "--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0",
    ]  # fmt: skip
    whole = [*command, "--model", "tiny,tiny-reg4", "--protocol", "lost,lost-swept"]

    def run(
        *more: str,
        dry: bool = True,
        models: str = "tiny,tiny-reg4",
        protocols: str = "lost,lost-swept",
    ) -> Any:
        what = ["--model", models, "--protocol", protocols]
        assert main([*command, *what, *(["--dry-run"] if dry else []), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    run.command = whole  # type: ignore[attr-defined]
    return run


def test_stated_rates_give_exact_seconds(ask: Any) -> None:
    found = ask("--rate", "4")
    assert [
        (each["model"], each["protocols"], each["forward_passes"], each["seconds"])
        for each in found["passes"]
    ] == [("tiny", ["lost", "lost-swept"], 12, 3.0), ("tiny-reg4", ["lost", "lost-swept"], 12, 3.0)]
    totals = found["totals"]
    assert totals["wall_seconds"] == totals["device_seconds"] == totals["pass_seconds"] == 6.0
    assert totals["forward_passes"] == 24 and totals["devices"] == 1
    assert totals["fit_seconds"] == totals["loading_seconds"] == 0
    assert {each["how"] for each in found["fits"]} == {"not included"}
    assert totals["fits_left_out"] == 4
    assert len(found["cells"]) == 4


def test_a_file_states_a_rate_for_each_model_and_the_slowest_stands_first(
    ask: Any, tmp_path: Path
) -> None:
    (tmp_path / "rates.yaml").write_text("tiny: 6\ntiny-reg4: 2.5\nother: 1\n")
    found = ask("--rate", str(tmp_path / "rates.yaml"))
    assert [(each["model"], each["seconds"]) for each in found["passes"]] == [
        ("tiny-reg4", 12 / 2.5),
        ("tiny", 2.0),
    ]


def test_devices_share_what_can_be_cut_and_wait_for_what_cannot(ask: Any) -> None:
    # 12 pictures are one piece, so that two devices take a model each and a third has nothing.
    assert ask("--rate", "4", "--devices", "2")["totals"]["wall_seconds"] == 3.0
    totals = ask("--rate", "4", "--devices", "3")["totals"]
    assert totals["wall_seconds"] == totals["longest_uncut_seconds"] == 3.0
    assert totals["device_seconds"] == 6.0


def test_a_pass_in_pieces_is_shared_by_all_devices(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.engine.pieces.PIECE", 1)
    totals = ask("--rate", "4", "--devices", "3")["totals"]
    assert totals["wall_seconds"] == 2.0 and totals["longest_uncut_seconds"] == 1.0


def test_ray_on_this_machine_has_a_device_a_core(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    ray = "--rate", "1", "--engine", "ray"
    assert ask(*ray)["totals"]["devices"] == 6
    assert ask(*ray, "--cpus-per-task", "2")["totals"]["devices"] == 3


def test_finished_cells_count_nothing(ask: Any) -> None:
    ask(models="tiny", dry=False, protocols="lost")
    found = ask("--rate", "4", protocols="lost")
    assert {each["model"] for each in found["passes"]} == {"tiny-reg4"}
    assert {each["model"] for each in found["fits"]} == {"tiny-reg4"}
    ask(dry=False, protocols="lost")
    for rate in ("4", "measure"):
        found = ask("--rate", rate, protocols="lost")
        assert found["passes"] == found["fits"] == []
        assert found["totals"]["wall_seconds"] == 0


def test_what_is_measured_is_above_zero_bounded_and_writes_nothing(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.timing.measure.PASS_SECONDS", 60.0)
    began = time.perf_counter()
    found = ask("--rate", "measure", protocols="lost")
    spent = time.perf_counter() - began
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()
    totals = found["totals"]
    assert all(each["seconds"] > 0 for each in found["passes"])
    assert all(each["how"] == "measured" and each["seconds"] > 0 for each in found["fits"])
    # All of so few pictures are read: the forecast is what it has just taken.
    assert 0 < totals["loading_seconds"] < totals["wall_seconds"] < spent


def test_a_pass_is_stopped_and_its_fits_are_extrapolated(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.timing.measure.PASS_SECONDS", 0.0)
    monkeypatch.setattr("harness.timing.measure._SHORT", 0.0)
    read: list[PassTime] = []
    clock = "harness.timing.measure._pass"
    from harness.timing import measure

    real = measure._pass
    monkeypatch.setattr(clock, lambda *args: read.append(real(*args)) or read[-1])
    found = ask("--rate", "measure", "--batch-size", "2", protocols="lost")
    assert all(0 < each.read < 12 for each in read)
    assert {each["how"] for each in found["fits"]} <= {"extrapolated", "unknown"}
    assert all(each["forward_passes"] == 12 and each["seconds"] > 0 for each in found["passes"])


def test_a_fit_grows_with_its_pictures_and_not_with_its_fixed_steps() -> None:
    whole = _Fitting(0, seconds=3.0, pictures=200, wanted=1000)
    half = _Fitting(0, seconds=2.0, pictures=100)
    assert _fit_time(whole, half) == FitTime(3.0 + 0.01 * 800, "extrapolated")
    assert _fit_time(whole, _Fitting(0, seconds=3.0, pictures=100)).seconds == 3.0
    assert _fit_time(whole, None).how == "unknown"
    short = _Fitting(0, seconds=0.04, pictures=200, wanted=1000)
    assert _fit_time(short, None).seconds == pytest.approx(0.2)
    assert _fit_time(_Fitting(0, seconds=10, pictures=5, wanted=9, stopped=True), None) == FitTime(
        10, "at least"
    )
    assert _fit_time(_Fitting(0, failed="no outlier"), None).why == "no outlier"


def test_a_pass_of_no_picture_takes_no_time() -> None:
    assert PassTime(2.0, 0.5, 8).of(100) == 52.0
    assert PassTime(2.0, 0.5, 8).of(0) == 0.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rate", "4"], "--rate: only with --dry-run"),
        (["--devices", "4"], "--devices: only with --dry-run"),
        (["--dry-run", "--devices", "4"], "--devices: only with --rate"),
        (["--dry-run", "--rate", "4", "--devices", "0"], "--devices 0: from 1"),
        (["--dry-run", "--rate", "0"], "--rate 0: a finite number above 0"),
        (["--dry-run", "--rate", "-3"], "a finite number above 0"),
        (["--dry-run", "--rate", "nan"], "a finite number above 0"),
        (["--dry-run", "--rate", "inf"], "a finite number above 0"),
        (["--dry-run", "--rate", "quickly"], "neither `measure`"),
        (["--dry-run", "--rate", "4", "--engine", "ray", "--address", "auto"], "--devices N"),
    ],
)
def test_wrong_use_is_said(
    ask: Any, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ask.command, *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiny: 4\n", "states no rate of model 'tiny-reg4'"),
        ("tiny: fast\ntiny-reg4: 1\n", "rates.yaml:1: tiny: a finite number above 0"),
        ("tiny: 1\ntiny-reg4: .inf\n", "rates.yaml:2: tiny-reg4: a finite number above 0"),
        ("tiny: true\n", "rates.yaml:1: tiny: a finite number above 0"),
        ("- 1\n", "a mapping"),
    ],
)
def test_a_wrong_file_of_rates_is_said(
    ask: Any, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    assert main([*ask.command, "--dry-run", "--rate", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_the_table_has_the_largest_first_and_the_sums_below(
    ask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ask.command, "--dry-run", "--rate", "0.01", "--devices", "2"]) == 0
    shown = capsys.readouterr().out
    assert "pass over test: lost, lost-swept" in shown
    assert "about 20 min 00 s on 2 devices, 0.667 device-hours" in shown
    assert "fits of heads and loading models: not included" in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (7250, "2 h 01 min"),
        (3 * 86400, "3 d 0 h"),
    ],
)
def test_durations_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said
