"""A text tower: what every one offers, and the loading of an entry's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import HarnessError
from harness.registry import Weights

if TYPE_CHECKING:
    from harness.registry import ModelEntry


class TextTower(Protocol):
    """Texts, and a picture tower's normed tokens, -> the space that both share (E numbers)."""

    @property
    def name(self) -> str:
        """``open_clip ViT-B-16 laion2b_s34b_b88k``."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of what decides its vectors: ``TextSource.digest`` of the entry's ``text:``."""
        ...

    @property
    def width(self) -> int:
        """E."""
        ...

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to be logits."""
        ...

    @property
    def bias(self) -> float:
        """What is then added: 0 but for towers trained with a sigmoid."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[n, E]`` float32 of unit length, on the CPU. A text that is too long is cut."""
        ...

    def project(self, tokens: Tensor) -> Tensor:
        """The picture tower's normed tokens ``[..., D]`` -> ``[..., E]``, not of unit length: an
        affine map, or the identity where the model has no projection."""
        ...

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """``[n]``: which are longer than its context."""
        ...


def load_tower(
    entry: ModelEntry, device: str = "cpu", weights: Weights = "released", seed: int = 0
) -> TextTower:
    """The text tower of an entry on ``device``; ``random`` weights are drawn from the seed.

    Raises ``HarnessError`` for an entry that has none, for weights or a tokenizer that are not
    there, and for a package that is not installed.
    """
    source = entry.text
    if source is None:
        raise HarnessError(f"model {entry.name!r} has no text tower (`text:` in its entry)")
    if source.nano is not None:
        from harness.language.nano_tower import load_nano_tower

        digest = source.digest(weights, seed)
        return load_nano_tower(source.nano, digest, device, weights, seed)
    from harness.language.openclip_tower import load_openclip_tower

    return load_openclip_tower(entry.name, source, device, weights, seed)
