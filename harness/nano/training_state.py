"""What a run leaves so that the same command goes on: ``training.pt`` and ``log.jsonl``."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import atomic
from harness.errors import HarnessError

CHECKPOINT, LOG = "training.pt", "log.jsonl"
_FORMAT = 1
_FIELDS = {"format", "step", "recipe", "data", "model", "optimizer"}


@dataclass
class State:
    """After ``step`` steps. ``recipe`` and ``data`` (a fingerprint) say what must not change."""

    step: int
    recipe: dict[str, Any]
    data: str
    model: dict[str, Any] = field(repr=False)
    optimizer: dict[str, Any] = field(repr=False)


def save(folder: Path, state: State) -> None:
    """Write ``folder/training.pt``, whole or not at all: a full disk leaves the last one.

    Raises ``HarnessError`` naming the file.
    """
    path = folder / CHECKPOINT
    buffer = io.BytesIO()
    plain = {
        "format": _FORMAT,
        "step": state.step,
        "recipe": json.dumps(state.recipe),
        "data": state.data,
        "model": state.model,
        "optimizer": state.optimizer,
    }
    torch.save(plain, buffer)
    write(path, buffer.getvalue())


def write(path: Path, data: bytes) -> None:
    """One file, whole or not at all, under its folder's lock. Raises ``HarnessError``."""
    with atomic.explained(path), atomic.locked(path.parent):
        atomic.sweep(path.parent)
        atomic.replace({path: data})


def load(folder: Path) -> State | None:
    """The state in ``folder``; None where there is none. No code in the file is run.

    Raises ``HarnessError`` for a file that is damaged or of another kind.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():  # torch wonders aloud about pickles it then refuses
            warnings.simplefilter("ignore")
            plain = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(plain, dict) or plain.keys() != _FIELDS or plain["format"] != _FORMAT:
            raise ValueError("not written by this version of harness pretrain")
        recipe = json.loads(plain["recipe"])
        return State(plain["step"], recipe, plain["data"], plain["model"], plain["optimizer"])
    except Exception as error:  # unpicklers and zip readers raise many kinds on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise HarnessError(
            f"{path}: cannot be gone on from: {reason}; --overwrite starts again"
        ) from None


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """``registers 0, now 4; steps 100, now 200``: empty where two recipes are one."""
    return "; ".join(
        f"{key} {before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def check_same(folder: Path, state: State, recipe: dict[str, Any], data: str) -> None:
    """Raises ``HarnessError`` where ``state`` is of another recipe, or of other pictures."""
    path = folder / CHECKPOINT
    if differing := differences(state.recipe, recipe):
        raise HarnessError(
            f"{path}: of another recipe ({differing}); choose another --out, or --overwrite it"
        )
    if state.data != data:
        raise HarnessError(
            f"{path}: was trained on other pictures than {recipe['data']} has now (their number, "
            "names or sizes differ); choose another --out, or --overwrite it"
        )


def start_over(folder: Path) -> None:
    """Remove the checkpoint and the log of an earlier run."""
    for name in (CHECKPOINT, LOG):
        with atomic.explained(folder / name):
            (folder / name).unlink(missing_ok=True)


class Log:
    """``log.jsonl``: one line every few steps, none of a step that a resumed run takes again."""

    def __init__(self, folder: Path, step: int) -> None:
        """Keeps the lines up to ``step``; drops what came later, or was cut off by a kill."""
        self._path = folder / LOG
        kept = [line for line in self._lines() if _step(line) <= step]
        write(self._path, "".join(f"{line}\n" for line in kept).encode())

    def add(self, facts: dict[str, int | float]) -> None:
        """Raises ``HarnessError`` where the file cannot be written."""
        with atomic.explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts, allow_nan=False) + "\n")

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with atomic.explained(self._path):
            text = self._path.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.split("\n") if _step(line) > 0]


def _step(line: str) -> int:
    """Of a line of the log; 0 for what is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
