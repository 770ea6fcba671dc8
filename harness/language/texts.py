"""Text vectors, computed once and kept in the feature store beside those of pictures.

The tower is loaded for what the store has not got, and for nothing else: a second run of the same
prompts loads none. Vectors are stored under the tower's digest and the texts', a key a call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.features.keys import Key, software
from harness.features.shared import user_store
from harness.features.store import SHARD, Rows
from harness.language.tower import TextTower, load_tower
from harness.registry import ModelEntry, Weights

_PIECE = 64
"""Groups of texts that are encoded together: 80 templates of as many classes are a few MB."""


@dataclass
class Texts:
    """What a task may ask of the text tower of a model. It can be pickled: what was loaded stays
    where it was loaded."""

    entry: ModelEntry
    device: str = "cpu"
    weights: Weights = "released"
    seed: int = 0
    stored: bool = True
    _head: _Head | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.entry.text is None:
            raise HarnessError(
                f"model {self.entry.name!r} has no text tower (`text:` in its entry)"
            )

    @property
    def name(self) -> str:
        """``open_clip ViT-B-16 laion2b_s34b_b88k``."""
        assert self.entry.text is not None
        own = self.entry.text.name
        return own if self.weights == "released" else f"{own}, random weights"

    @property
    def digest(self) -> str:
        """sha256 of what decides the vectors, known without the tower."""
        assert self.entry.text is not None
        return self.entry.text.digest(self.weights, self.seed)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to be logits."""
        return self._of_the_head(None).scale

    @property
    def bias(self) -> float:
        """What is then added."""
        return self._of_the_head(None).bias

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[n, E]`` float32 of unit length, on the CPU. Raises ``HarnessError`` for a text that
        is no text."""
        check_texts(texts)
        return self._kept("each", list(texts), lambda: self._tower().encode(texts))

    def means(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """``[groups, E]``: of each group the mean of its texts' unit vectors, of unit length again
        (CLIP, section 3.1.4: prompt ensembling in the space of vectors). Only the means are kept.
        """
        for group in groups:
            check_texts(group)
            if not group:
                raise ValueError("a group without a text")

        def compute() -> Tensor:
            tower, parts = self._tower(), []
            for first in range(0, len(groups), _PIECE):
                some = groups[first : first + _PIECE]
                # A text that stands in several groups (one word of two classes) is encoded once.
                place = {
                    text: n for n, text in enumerate(dict.fromkeys(t for g in some for t in g))
                }
                vectors = tower.encode(list(place))
                for group in some:
                    mean = vectors[[place[text] for text in group]].mean(0)
                    parts.append(torch.nn.functional.normalize(mean, dim=0))
            return torch.stack(parts)

        return self._kept("means", [list(group) for group in groups], compute)

    def project(self, tokens: Tensor) -> Tensor:
        """The picture tower's normed tokens ``[..., D]`` -> ``[..., E]`` float32, not of unit
        length, on their device."""
        return self._of_the_head(tokens.shape[-1]).project(tokens)

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """``[n]``: which texts are longer than the tower's context, which cuts them."""
        check_texts(texts)

        def compute() -> Tensor:
            return torch.from_numpy(self._tower().cut(texts))[:, None]

        found = self._kept("cut", list(texts), compute)
        cut: NDArray[np.bool_] = found[:, 0].numpy() > 0
        return cut

    def _kept(self, what: str, asked: list[Any], compute: Callable[[], Tensor]) -> Tensor:
        """What ``compute`` gives for the texts ``asked``, from the store where it is there."""
        if not asked:
            return torch.zeros(0, self._tower().width)
        texts = hashlib.sha256(canonical_json([what, asked])).hexdigest()
        told = f"{what} of {len(asked):,} texts"
        return self._through_store({"texts": texts}, told, len(asked), compute)

    def _through_store(
        self, facts: dict[str, Any], told: str, rows: int, compute: Callable[[], Tensor]
    ) -> Tensor:
        """``[rows, E]`` float32."""
        if not self.stored:
            return self._values(compute())
        store = user_store()
        whole = {"tower": self.digest, "software": software(), "device": self._kind, **facts}
        about = {
            "model": self.entry.name,
            "entry_digest": self.entry.digest(),
            "weights_from": "released" if self.weights == "released" else f"random {self.seed}",
            "dataset": "(texts)",
            "split": None,
            "token": f"{told} by {self.name}",
        }
        feature = store.feature(Key({**whole, "shard": SHARD}, about), rows)
        starts = range(0, rows, SHARD)
        found = [feature.read(shard) for shard in range(len(starts))]
        if all(part is not None for part in found):
            return torch.cat([part.values.clone() for part in found if part is not None])
        values = self._values(compute())
        if len(values) != rows:
            raise ValueError(f"{rows} rows were to come, {len(values)} came")
        for shard, start in enumerate(starts):
            part = values[start : start + SHARD].contiguous().clone()
            there, geometry = torch.ones(len(part), dtype=torch.bool), torch.zeros(len(part), 13)
            feature.write(shard, Rows(part, there, geometry.to(torch.int32), {}))
        return values

    @property
    def _kind(self) -> str:
        return self.device.partition(":")[0]

    @staticmethod
    def _values(values: Tensor) -> Tensor:
        return values.detach().float().cpu()

    def _of_the_head(self, width: int | None) -> _Head:
        """Projection, scale and bias. A projection is affine: it is kept as what it makes of the
        ``width`` unit vectors and of zero. Without a width the scale and the bias alone are asked
        for."""
        known = self._head
        if known is not None and (width is None or known.width in (None, width)):
            return known

        def scalars() -> Tensor:
            tower = self._tower()
            return torch.tensor([[tower.scale, tower.bias]], dtype=torch.float64).float()

        def matrix() -> Tensor:
            tower, units = self._tower(), torch.eye(width or 1)
            zero = tower.project(torch.zeros(1, width or 1))
            return torch.cat([tower.project(units) - zero, zero])

        scale, bias = self._through_store({"head": "scale, bias"}, "scale and bias", 1, scalars)[0]
        head = _Head(float(scale), float(bias))
        if width is not None:
            facts = {"head": "projection", "width": width}
            rows = self._through_store(facts, "the projection", width + 1, matrix)
            same = torch.equal(rows, torch.cat([torch.eye(width), torch.zeros(1, width)]))
            head = _Head(float(scale), float(bias), width, None if same else rows)
        self._head = head
        return head

    def _tower(self) -> TextTower:
        global _loaded
        key = f"{self.digest} {self.device}"
        if _loaded is None or _loaded[0] != key:
            _loaded = None  # let go of the last tower before the next is loaded
            _loaded = key, load_tower(self.entry, self.device, self.weights, self.seed)
        return _loaded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_head": None}


_loaded: tuple[str, TextTower] | None = None
"""The last tower that was loaded: several cells of a model ask for it one after the other."""


@dataclass(frozen=True)
class _Head:
    """``rows [D + 1, E]`` are the projection's matrix and, last, what is added; None: nothing is
    projected."""

    scale: float
    bias: float
    width: int | None = None
    rows: Tensor | None = None

    def project(self, tokens: Tensor) -> Tensor:
        values = tokens.float()
        if self.rows is None:
            return values
        rows = self.rows.to(values.device)
        return values @ rows[:-1] + rows[-1]


def check_texts(texts: Sequence[str]) -> None:
    """Raises ``HarnessError`` for what no tokenizer can read: what is no text, and halves of
    surrogate pairs, which JSON can write."""
    for text in texts:
        if not isinstance(text, str):
            raise HarnessError(f"{text!r} is no text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise HarnessError(f"the text {text[:60]!r} holds what is no character") from None
