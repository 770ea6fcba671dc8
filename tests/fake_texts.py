"""A text tower without weights: the same vectors on every machine, and no file is read.

A text's vector is drawn from its sha256; the projection of picture tokens from their width. Entries
that name one (``entries``) are read by the plan as any, and ``FakeTexts`` stands for
``harness.language.texts.Texts``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WIDTH = 24
LONGEST = 300
"""Characters: of a longer text the rest is cut."""
TEXT = "  text: {openclip: ViT-B-16, weights: laion2b_s34b_b88k}\n"


class FakeTexts:
    """What a task asks of ``Texts``."""

    name, digest = "fake", "0" * 64
    scale, bias = 100.0, 0.0

    def __init__(self, *_: object, **__: object) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        self.encoded += texts
        return torch.stack([_vector(text[:LONGEST]) for text in texts])

    def means(self, groups: Sequence[Sequence[str]]) -> torch.Tensor:
        means = [self.encode(group).mean(0) for group in groups]
        return torch.nn.functional.normalize(torch.stack(means))

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        matrix = torch.stack([_vector(f"row {row}") for row in range(tokens.shape[-1])])
        return tokens.float() @ matrix

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([len(text) > LONGEST for text in texts])


class KnownTexts(FakeTexts):
    """Vectors that a test chose; pictures' features are theirs already."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        super().__init__()
        self._vectors = {text: torch.as_tensor(each).float() for text, each in vectors.items()}

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        found = torch.stack([self._vectors[text] for text in texts])
        return torch.nn.functional.normalize(found)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def _vector(text: str) -> torch.Tensor:
    """``[WIDTH]`` of unit length."""
    data = b"".join(hashlib.sha256(f"{text} {n}".encode()).digest() for n in range(WIDTH // 16))
    numbers = np.frombuffer(data, np.uint16).astype(np.float64)[:WIDTH]
    values = torch.from_numpy(numbers / 2**15 - 1)
    return torch.nn.functional.normalize(values, dim=0).float()


def with_text(models: Path, folder: Path) -> Path:
    """The registry file ``models`` with a text tower in every entry."""
    lines = models.read_text().splitlines(keepends=True)
    path = folder / "with-text.yaml"
    path.write_text("".join(line + TEXT if line.startswith("  timm:") else line for line in lines))
    return path
