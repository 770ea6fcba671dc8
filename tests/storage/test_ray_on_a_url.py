"""The engine ``ray`` with results and features on a URL: workers are given the URL of the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from harness.storage import remote

pytest.importorskip("ray", reason="needs the extra `cluster`")
pytestmark = pytest.mark.slow

MAIN = [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())"]


def run(out: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(*MAIN, "run", "--task", "knn", "--model", "pixels", "--dataset", "scenes-demo"),
            *("--set", "k=3", "--limit", "12", "--engine", "ray", "--device", "cpu"),
            *("--out", out, "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ},
    )
    if "cannot be started" in done.stderr or "no Ray there" in done.stderr:
        pytest.skip(f"Ray cannot be started here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    found: dict[str, Any] = record
    return found


def test_workers_fill_and_read_the_store_and_the_driver_uploads(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", f"{s3}/features")
    first = run(f"{s3}/one")
    names = remote.at(s3).listing()
    assert [name for name in names if name.startswith("one/") and name.endswith(".json")]
    assert [name for name in names if name.startswith("features/") and "-" in name]
    again = run(f"{s3}/two")
    assert first["cost"]["forward_passes"] > 0
    assert again["cost"]["forward_passes"] == 0
    assert again["metrics"] == first["metrics"]
    assert again["per_picture"] == first["per_picture"]
