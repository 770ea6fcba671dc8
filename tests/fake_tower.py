"""A text tower whose vectors are drawn from the texts themselves, for tests that need any."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import entry
from torch import Tensor
from torch.nn.functional import normalize

from harness.language import texts
from harness.registry import ModelEntry

CONTEXT = 60
"""Characters of a text that are read."""


class FakeTower:
    """Unit vectors of ``width`` numbers, each text's its own; tokens are projected by a matrix that
    is drawn once. ``planted`` are the vectors of texts that hold a word."""

    name, digest, scale, bias = "fake", "fake", 100.0, 0.0

    def __init__(self, width: int = 16, planted: Mapping[str, Tensor] | None = None) -> None:
        self.width, self.planted = width, planted or {}
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.encoded += texts
        return normalize(torch.stack([self._vector(text[:CONTEXT]) for text in texts]), dim=1)

    def _vector(self, text: str) -> Tensor:
        for word, vector in self.planted.items():
            if word in text:
                return vector
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def project(self, tokens: Tensor) -> Tensor:
        matrix = torch.randn(
            tokens.shape[-1], self.width, generator=torch.Generator().manual_seed(0)
        )
        return tokens.float() @ matrix / tokens.shape[-1] ** 0.5

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([len(text) > CONTEXT for text in texts])


def install(monkeypatch: pytest.MonkeyPatch, tower: FakeTower) -> list[str]:
    """Every entry's text tower is this one; the list grows by the name of each that is loaded."""
    loaded: list[str] = []

    def load(entry: ModelEntry, *_: object) -> FakeTower:
        loaded.append(entry.name)
        return tower

    monkeypatch.setattr(texts, "load_tower", load)
    monkeypatch.setattr(texts, "_loaded", None)
    return loaded


def models(folder: Path, **more: str) -> Path:
    """A registry file with ``tiny`` and ``tiny-reg4``, each with a text tower, and ``tiny-mute``,
    which has none. ``more`` are further entries by name."""
    (folder / "words.safetensors").write_bytes(b"words")
    text = "  text: {nano: words.safetensors}\n"
    file = folder / "language.yaml"
    file.write_text(
        entry("tiny", 0)
        + text
        + entry("tiny-reg4", 4)
        + text
        + "  baseline: tiny\n"
        + entry("tiny-mute", 0)
        + "".join(f"{name}:\n{facts}{text}" for name, facts in more.items())
    )
    return file
