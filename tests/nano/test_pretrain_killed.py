"""``harness pretrain`` under SIGKILL: a process killed at random moments and started again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from harness.data.generated import paint

pytest.importorskip("lightly", reason="needs lightly: pip install 'vit-harness[train]'")

STEPS = 300
# A ViT that takes milliseconds a step, in a process of its own.
_SCRIPT = f"""
import sys
from harness.nano.recipe import SIZES, Size
SIZES["mote"] = Size(width=32, depth=2, heads=2, patch=8, crop=32, local_crop=16)
from harness.cli import main
sys.exit(main([
    "pretrain", "--data", sys.argv[1], "--out", sys.argv[2], "--size", "mote", "--registers", "2",
    "--steps", "{STEPS}", "--batch-size", "8", "--local-crops", "0", "--workers", "0",
    "--threads", "1", "--set", "head_outputs=64", "--set", "head_hidden=32",
    "--set", "checkpoint_every=7",
]))
"""


def _start(pictures: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(pictures), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_in_the_weights_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(24):
        Image.fromarray(paint(index)).resize((48, 48)).save(pictures / f"{index:02d}.png")
    whole = _start(pictures, tmp_path / "whole")
    told, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, told

    chance = random.Random(20231)
    broken = tmp_path / "broken"
    checkpoint = broken / "training.pt"
    kills = 0
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = _start(pictures, broken)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is None:
            kills += 1
        process.kill()
        process.communicate()
    assert kills >= 2, "the run ended before it could be killed"
    last = _start(pictures, broken)
    told, _ = last.communicate(timeout=600)
    assert last.returncode == 0, told
    assert "goes on after step" in told or "done already" in told
    name = "mote-reg2.safetensors"
    assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(broken.glob(".*.tmp"))
