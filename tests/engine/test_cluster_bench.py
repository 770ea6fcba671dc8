"""What ``harness bench cluster`` says of wrong use; the figures are measured, not tested."""

from __future__ import annotations

import os

import pytest

from harness.cli import main


def test_too_few_pictures_to_be_cut_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cluster", "--limit", "100"]) == 2
    assert "harness bench cluster --limit 100: at least 2,048" in capsys.readouterr().err


def test_one_core_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert main(["bench", "cluster"]) == 2
    assert "two cores are needed" in capsys.readouterr().err
