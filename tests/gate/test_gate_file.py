"""Gate files: what they may say, and what is said of what they may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.gate.gate_file import Gate, States


def load(tmp_path: Path, text: str) -> Gate:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    return Gate.load(path)


def test_the_shipped_gate_rules_every_state(tmp_path: Path) -> None:
    gate = Gate.load()
    assert gate.level == 0.05 and gate.speed is None and not gate.ignore
    assert all(getattr(gate.states, name) is not None for name in States.model_fields)
    assert gate.idle([]) == [], "the shipped rules need not fit"


def test_a_file_is_laid_over_the_shipped_one(tmp_path: Path) -> None:
    gate = load(tmp_path, "level: 0.01\nstates: {new: warn}\nspeed: {ratio: 0.5}\n")
    assert (gate.level, gate.speed) == (0.01, 0.5)
    assert (gate.action("new"), gate.action("missing")) == ("warn", "fail")
    assert len(gate.tolerance) == len(Gate.load().tolerance)
    assert load(tmp_path, "").states == Gate.load().states


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("levle: 0.1", ":1: levle", "did you mean level?"),
        ("level: 1.5", ":1: level", "less than 1"),
        ("level: high", ":1: level", "number"),
        ("level: .nan", ":1: level", "less than 1|greater than 0|finite"),
        ("states: {missing: maybe}", ":1: states.missing", "'fail', 'warn' or 'ignore'"),
        ("states:\n  vanished: fail", ":2: states.vanished", "unknown key"),
        ("tolerance: 0.5", ":1: tolerance", "tuple|list"),
        ("tolerance:\n  - {metric: miou}", ":2: tolerance.0", "either absolute"),
        ("tolerance:\n  - {absolute: 1, relative: 1}", ":2: tolerance.0", "either absolute"),
        ("tolerance:\n  - {absolute: -1}", ":2: tolerance.0.absolute", "greater than or equal"),
        ("tolerance:\n  - {absolute: .inf}", ":2: tolerance.0.absolute", "finite"),
        ("tolerance:\n  - {absolute: 1, metrics: miou}", ":2: tolerance.0.metrics", "metric?"),
        ("tolerance:\n  - {absolute: 1, metric: []}", ":2: tolerance.0.metric", "list of names"),
        ("tolerance:\n  - {absolute: 1, metric: 7}", ":2: tolerance.0.metric", "list of names"),
        ("ignore:\n  - {task: lost}", ":2: ignore.0.reason", "required"),
        ("ignore:\n  - {reason: all}", ":2: ignore.0", "name what to ignore"),
        ("ignore:\n  - {task: lost, reason: ' '}", ":2: ignore.0.reason", "must not be empty"),
        ("speed: 0.8", ":1: speed", "dictionary"),
        ("speed: {ratio: 0}", ":1: speed.ratio", "greater than 0"),
        ("level: 0.1\nlevel: 0.2", ":2:", "stands twice"),
        ("- level", ":1:", "a mapping"),
        ("level: &a 0.1", ":1:", "anchors"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, where: str, says: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        load(tmp_path, text)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'gate.yaml'}{where}"), told
    assert re.search(says, told.replace("\\", "")), told


def test_a_gate_file_that_is_missing_or_no_text_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such file"):
        Gate.load(tmp_path / "none.yaml")
    (tmp_path / "gate.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HarnessError, match="cannot be read"):
        Gate.load(tmp_path / "gate.yaml")
    with pytest.raises(HarnessError, match="cannot be read"):
        Gate.load(tmp_path)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_no_share_is_refused(speed: float) -> None:
    with pytest.raises(HarnessError, match="--speed"):
        Gate.load(speed=speed)
