"""What a killed worker leaves, and Ray's ways with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.engine import connection, worker


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folders_of_killed_workers_go_and_all_others_stay(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    mine = worker._mine()
    dead = temporary / f"{mine}{process.pid}-abc"
    stay = [f"{mine}{os.getpid()}-abc", f"harness-elsewhere-{process.pid}-abc", "harness-abc"]
    for name in (dead.name, *stay, f"{mine}x-abc"):
        (temporary / name / "below").mkdir(parents=True)
    worker.sweep()
    assert not dead.exists()
    assert {each.name for each in temporary.iterdir()} == {*stay, f"{mine}x-abc"}


def test_ray_does_not_keep_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with connection._own_signals():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) == before
