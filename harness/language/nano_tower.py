"""A small text tower of our own, trained by ``harness pretrain --objective clip``.

A transformer over words, read at the start token, and the two projections of CLIP
(arXiv:2103.00020, figure 3). One safetensors file holds the weights (fp16) and, in its metadata,
sizes and vocabulary; no other package is needed to use it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator
from torch import Tensor, nn

from harness.backbone.arithmetic import exact_float32
from harness.errors import HarnessError
from harness.language.nano_words import PADDING, SPECIAL, Words, words_of
from harness.registry import Weights

_KEY = "nano text tower"
"""Of the metadata; one key, because safetensors writes several in an order of the moment."""
_BATCH = 256
_TEMPERATURE = 0.07
"""CLIP's first value (section 2.5)."""
_LARGEST = 100.0
"""CLIP's bound of the scale: logits beyond it made training unstable."""

_Size = Annotated[StrictInt, Field(ge=1, le=4096)]


class TowerFacts(BaseModel):
    """Sizes and words of a tower, as its file's metadata has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    width: _Size
    depth: Annotated[StrictInt, Field(ge=1, le=64)]
    heads: _Size
    context: Annotated[StrictInt, Field(ge=2, le=1024)]
    """Words of a text, and one more for the start."""
    shared: _Size
    """Numbers of the space that texts and pictures share."""
    picture: _Size
    """Width of the picture tower."""
    vocabulary: Annotated[tuple[str, ...], Field(min_length=1, max_length=65_536)]

    @model_validator(mode="after")
    def _fits_together(self) -> TowerFacts:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width, {self.width}")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("vocabulary: a word stands in it twice")
        strange = [word for word in self.vocabulary if words_of(word) != [word]]
        if strange:
            raise ValueError(f"vocabulary: {strange[0][:40]!r} is not one word in lower case")
        return self


class Towers(nn.Module):
    """The text transformer, both projections and the learned scale."""

    def __init__(self, facts: TowerFacts) -> None:
        super().__init__()
        width = facts.width
        self.words = nn.Embedding(SPECIAL + len(facts.vocabulary), width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.empty(facts.context, width))
        layer = nn.TransformerEncoderLayer(
            width,
            facts.heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # Nested tensors would leave padding out: another kernel, and another rounding.
        self.blocks = nn.TransformerEncoder(layer, facts.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, facts.shared, bias=False)
        self.picture_projection = nn.Linear(facts.picture, facts.shared, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / _TEMPERATURE).log())
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places, std=0.01)
        for block in self.blocks.layers:  # PyTorch makes them copies of each other
            for weight in (each for each in block.parameters() if each.ndim > 1):
                nn.init.normal_(weight, std=width**-0.5 / 2)
        for projection in (self.text_projection, self.picture_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def texts(self, rows: Tensor) -> Tensor:
        """Word numbers ``[n, context]`` -> ``[n, E]``, not of unit length."""
        tokens = self.words(rows) + self.places
        read = self.blocks(tokens, src_key_padding_mask=rows == PADDING)[:, 0]
        projected: Tensor = self.text_projection(self.norm(read))
        return projected

    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.exp().clamp(max=_LARGEST)


class NanoTower:
    """A tower of ours as the harness uses it: frozen, in float32."""

    def __init__(self, name: str, digest: str, facts: TowerFacts, towers: Towers) -> None:
        self.name, self.digest, self.width = name, digest, facts.shared
        self._words = Words(facts.vocabulary, facts.context)
        self._towers = towers.eval().requires_grad_(False)
        self.scale, self.bias = float(towers.scale()), 0.0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[n, E]`` float32 of unit length, on the CPU. A text that is too long is cut."""
        device = self._towers.places.device
        found = []
        with exact_float32():
            for first in range(0, len(texts), _BATCH):
                rows = self._words.rows(texts[first : first + _BATCH])
                vectors = self._towers.texts(rows.to(device)).float().cpu()
                found.append(F.normalize(vectors, dim=-1))
        return torch.cat(found) if found else torch.zeros(0, self.width)

    @torch.no_grad()
    def project(self, tokens: Tensor) -> Tensor:
        """Normed tokens ``[..., D]`` -> ``[..., E]``, not of unit length. Raises ``HarnessError``
        for tokens of another width than the picture tower that this one was trained with."""
        weight = self._towers.picture_projection.weight.to(tokens.device)
        if tokens.shape[-1] != weight.shape[1]:
            raise HarnessError(
                f"{self.name}: projects tokens of width {weight.shape[1]}, not of "
                f"{tokens.shape[-1]}: it was trained with another picture tower"
            )
        return F.linear(tokens.float(), weight)

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """``[n]``: which are longer than the context."""
        return self._words.cut(texts)


def tower_bytes(facts: TowerFacts, towers: Towers) -> bytes:
    """The file of a tower: weights in fp16, the scale as it is."""
    import safetensors.torch

    state = {
        name: value.detach().cpu().half().contiguous() if value.ndim else value.detach().cpu()
        for name, value in towers.state_dict().items()
    }
    return safetensors.torch.save(state, {_KEY: facts.model_dump_json()})


def load_nano_tower(
    path: Path, digest: str, device: str = "cpu", weights: Weights = "released", seed: int = 0
) -> NanoTower:
    """The tower in ``path``, called ``digest``, on ``device``; ``random`` weights have its sizes
    and words and are drawn from the seed.

    Raises ``HarnessError`` for a file that is missing, damaged, of another kind or that
    contradicts itself.
    """
    facts, state = _read(path)
    _check(path, facts, state)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        towers = Towers(facts)
    finally:
        torch.set_rng_state(before)
    if weights == "released":
        towers.load_state_dict({name: value.float() for name, value in state.items()})
    return NanoTower(f"nano {path.name}", digest, facts, towers.to(device))


def _read(path: Path) -> tuple[TowerFacts, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise HarnessError(f"{path}: no such text tower")
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_KEY)
            if told is None:
                raise _broken(path, f"its metadata has no {_KEY!r}")
            facts = TowerFacts.model_validate(json.loads(told))
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _broken(path, f"{where}{': ' if where else ''}{first['msg']}") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _broken(path, reason) from None


def _check(path: Path, facts: TowerFacts, state: dict[str, Tensor]) -> None:
    """Before anything of the sizes that the file claims is allocated."""
    with torch.device("meta"):
        wanted = Towers(facts).state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state or name not in wanted:
            raise _broken(path, f"{name} is {'missing' if name in wanted else 'not known'}")
        if state[name].shape != wanted[name].shape:
            shapes = [list(each[name].shape) for each in (state, wanted)]
            raise _broken(path, f"{name} is {shapes[0]} where its sizes say {shapes[1]}")
        if not state[name].is_floating_point():
            raise _broken(path, f"{name} is of {state[name].dtype}, no floating-point numbers")
        if not torch.isfinite(state[name]).all():
            raise _broken(path, f"{name} holds what is not finite")


def _broken(path: Path, why: str) -> HarnessError:
    return HarnessError(
        f"{path}: not a text tower that harness pretrain --objective clip wrote: {why}"
    )
