from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main


def test_extract_tells_both_rates_and_their_ratio(
    tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "extract", "--model", "tiny", "--dataset", "generated", "--limit", "4"]
    assert main([*command, "--models", str(tiny_models), "--workers", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pictures"] == 4
    pipeline, bare = (facts[f"{w}_images_per_second"] for w in ("pipeline", "bare_forward"))
    assert facts["pipeline_over_bare"] == pytest.approx(pipeline / bare, rel=0.01)


def test_lost_is_measured_against_its_gram_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "lost", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["patches"], facts["channels"], facts["repeats"]) == (1369, 1024, 20)
    ratio = facts["lost_ms"] / facts["gram_ms"]
    assert facts["lost_over_gram"] == pytest.approx(ratio, rel=0.01)


def test_tokencut_is_measured_against_the_whole_matrix_and_finds_the_same_box(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.bench.tokencut._REPEATS", 1)
    assert main(["bench", "tokencut", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["patches"], facts["channels"], facts["same_box"]) == (1369, 1024, True)
    ratio = facts["dense_ms"] / facts["tokencut_ms"]
    assert facts["times_faster"] == pytest.approx(ratio, rel=0.01)


def test_attention_is_measured_against_the_whole_softmax_and_equals_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.bench.attention._REPEATS", 1)
    monkeypatch.setattr("harness.bench.attention._BATCH", 2)
    assert main(["bench", "attention", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["patches"], facts["heads"], facts["repeats"]) == (1369, 6, 1)
    assert facts["rows_apart"] < 1e-5 and facts["received_apart"] < 1e-5
    for name in ("rows", "received"):
        share = facts[f"{name}_mib"] / facts["whole_mib"]
        assert facts[f"{name}_share_of_memory"] == pytest.approx(share, abs=1e-3)


def test_anatomy_is_measured_against_the_bare_forward(
    tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "anatomy", "--model", "tiny-reg4", "--models", str(tiny_models)]
    assert main([*command, "--device", "cpu", "--batch-size", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["patches"], facts["pairs"]) == ("tiny-reg4", 49, 20)
    low, high = facts["interval"]
    assert 0 < low <= facts["anatomy_over_bare"] <= high


def test_a_test_time_register_is_measured_in_pairs_beside_the_token_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_PAIRS": 2, "_SIDE": 56, "_BATCH": 1}.items():
        monkeypatch.setattr(f"harness.bench.registers.{name}", value)
    assert main(["bench", "registers", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["neurons"], facts["pairs"]) == ("vits", 12, 2)
    for name in ("zero_token_over_forward", "register_over_forward"):
        ratio = facts[name]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]


def test_the_painter_tells_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "paint", "--limit", "5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pictures"] == 5 and facts["pictures_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--limit", "0"], "--limit 0: at least 1"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--workers", "-1"], "--workers -1: at least 0"),
        (["--device", "tpu"], "--device tpu: one of"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_message(
    arguments: list[str],
    complaint: str,
    tiny_models: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "extract", "--model", "tiny", "--dataset", "generated"]
    assert main([*command, "--models", str(tiny_models), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_extract_needs_a_model_and_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "extract"]) == 2
    assert "name a --model and a --dataset" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["knn", "logistic"])
@pytest.mark.parametrize("limit", ["-1", "0", "999"])
def test_too_few_pictures_to_measure_are_told(
    what: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", what, "--limit", limit]) == 2
    assert f"harness bench {what} --limit {limit}: at least 1,000" in capsys.readouterr().err


def test_stored_features_are_measured_against_a_stream(
    tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "stored", "--model", "tiny", "--dataset", "scenes-demo", "--limit", "40"]
    assert main([*command, "--models", str(tiny_models), "--workers", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["pictures"], facts["passes"], facts["steps"]) == (40, 4, 5)
    ratio = facts["streamed_seconds"] / facts["stored_seconds"]
    assert facts["times_faster"] == pytest.approx(ratio, rel=0.01)
    assert facts["share_of_passes"] == pytest.approx(ratio / 4, rel=0.01)


def test_stored_needs_train_and_test(tiny_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "stored", "--model", "tiny", "--dataset", "generated"]
    assert main([*command, "--models", str(tiny_models)]) == 2
    assert "splits train and test are needed" in capsys.readouterr().err
