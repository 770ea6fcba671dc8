"""``harness regress``: whether any score has got worse since a baseline was recorded."""

from __future__ import annotations

import argparse


def regress(options: argparse.Namespace) -> int:
    """Do what was typed; the exit status: 0 passed, 1 failed. Imports nothing before."""
    from harness.gate.command import run

    return run(options)
