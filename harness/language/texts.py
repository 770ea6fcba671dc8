"""Text vectors, computed once and kept in the feature store beside those of pictures.

The tower is loaded for what the store has not got, and for nothing else: a second run of the same
prompts loads none. Vectors are stored under the tower's digest and the texts', a key a call, in
shards that are written as they come: a killed run goes on with the one that it was in.
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
"""Groups of texts that are encoded and stored together: 80 templates of so many are a few MB."""


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
        return self._kept("each", list(texts), lambda part: self._tower().encode(part))

    def means(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """``[groups, E]``: of each group the mean of its texts' unit vectors, of unit length again
        (CLIP, section 3.1.4: prompt ensembling in the space of vectors). Only the means are kept.
        """
        for group in groups:
            check_texts(group)
            if not group:
                raise ValueError("a group without a text")

        def compute(some: Sequence[Sequence[str]]) -> Tensor:
            # A text that stands in several groups (one word of two classes) is encoded once.
            every = list(dict.fromkeys(text for group in some for text in group))
            place, vectors = {text: n for n, text in enumerate(every)}, self._tower().encode(every)
            means = [vectors[[place[text] for text in group]].mean(0) for group in some]
            return torch.nn.functional.normalize(torch.stack(means), dim=1)

        return self._kept("means", [list(group) for group in groups], compute, _PIECE)

    def project(self, tokens: Tensor) -> Tensor:
        """The picture tower's normed tokens ``[..., D]`` -> ``[..., E]`` float32, not of unit
        length, on their device."""
        return self._of_the_head(tokens.shape[-1]).project(tokens)

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """``[n]``: which texts are longer than the tower's context, which cuts them."""
        check_texts(texts)

        def compute(part: Sequence[str]) -> Tensor:
            return torch.from_numpy(self._tower().cut(part))[:, None]

        found = self._kept("cut", list(texts), compute)
        cut: NDArray[np.bool_] = found[:, 0].numpy() > 0
        return cut

    def _kept(
        self, what: str, asked: list[Any], compute: Callable[[Any], Tensor], shard: int = SHARD
    ) -> Tensor:
        """What ``compute`` gives for the texts ``asked``, from the store as far as it is there."""
        if not asked:
            return torch.zeros(0, self._tower().width)
        texts = hashlib.sha256(canonical_json([what, asked])).hexdigest()
        told = f"{what} of {len(asked):,} texts"

        def rows(first: int, last: int) -> Tensor:
            return compute(asked[first:last])

        return self._through_store({"texts": texts}, told, len(asked), rows, shard)

    def _through_store(
        self,
        facts: dict[str, Any],
        told: str,
        count: int,
        compute: Callable[[int, int], Tensor],
        shard: int,
    ) -> Tensor:
        """``[count, E]`` float32, of which ``compute(first, last)`` gives some rows."""
        starts = range(0, count, shard)
        ends = [min(first + shard, count) for first in starts]
        if not self.stored:
            parts = [_values(compute(*each)) for each in zip(starts, ends, strict=True)]
            return torch.cat(parts)
        whole = {"tower": self.digest, "software": software(), "device": self._kind, **facts}
        about = {
            "model": self.entry.name,
            "entry_digest": self.entry.digest(),
            "weights_from": "released" if self.weights == "released" else f"random {self.seed}",
            "dataset": "(texts)",
            "split": None,
            "token": f"{told} by {self.name}",
        }
        feature = user_store().feature(Key({**whole, "shard": shard}, about), count)
        parts = []
        for number, (first, last) in enumerate(zip(starts, ends, strict=True)):
            found = feature.read(number)
            if found is None:
                values = _values(compute(first, last)).contiguous()
                there = torch.ones(len(values), dtype=torch.bool)
                geometry = torch.zeros(len(values), 13, dtype=torch.int32)
                found = Rows(values, there, geometry, {})
                feature.write(number, found)
            parts.append(found.values.clone())
        return torch.cat(parts)

    @property
    def _kind(self) -> str:
        return self.device.partition(":")[0]

    def _of_the_head(self, width: int | None) -> _Head:
        """Projection, scale and bias. A projection is affine: it is kept as what it makes of the
        ``width`` unit vectors and of zero. Without a width the scale and the bias alone are asked
        for."""
        known = self._head
        if known is not None and (width is None or known.width in (None, width)):
            return known

        def scalars(first: int, last: int) -> Tensor:
            tower = self._tower()
            return torch.tensor([[tower.scale, tower.bias]], dtype=torch.float64).float()

        def matrix(first: int, last: int) -> Tensor:
            tower, units = self._tower(), torch.eye(width or 1)
            zero = tower.project(torch.zeros(1, width or 1))
            return torch.cat([tower.project(units) - zero, zero])

        facts = {"head": "scale, bias"}
        scale, bias = self._through_store(facts, "scale and bias", 1, scalars, 1)[0]
        head = _Head(float(scale), float(bias))
        if width is not None:
            about = {"head": "projection", "width": width}
            rows = self._through_store(about, "the projection", width + 1, matrix, width + 1)
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


def _values(values: Tensor) -> Tensor:
    return values.detach().float().cpu()


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
