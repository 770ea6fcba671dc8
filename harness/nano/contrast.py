"""The objective of CLIP: which of a batch's captions is of which of its pictures.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020, section 2.3 and figure 3): cross-entropy over the cosines of all pairs times a
learned scale, in both directions. The class token, normed, stands for the picture; registers are
tokens that the loss does not read. Pictures are cropped and nothing else: a mirrored one would make
"left" wrong, another tint the colours' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.layout import TokenLayout
from harness.data.dataset import Dataset
from harness.errors import HarnessError
from harness.language.nano_tower import TowerFacts, Towers, tower_bytes
from harness.language.nano_words import Words, vocabulary_of
from harness.nano.captioned import Pairs, pairs, read_captions
from harness.nano.export import export
from harness.nano.network import build_vit, mixed, normalised, seeded
from harness.nano.objective import Losses
from harness.nano.recipe import Recipe
from harness.nano.schedule import Schedule


class Contrast(nn.Module):
    """A picture tower and a text tower, trained together."""

    def __init__(self, recipe: Recipe, facts: TowerFacts) -> None:
        super().__init__()
        self.vit: Any = build_vit(recipe)
        with seeded(recipe.seed, 3):
            self.towers = Towers(facts)
        self._layout = TokenLayout(1, recipe.registers)
        self._patch = recipe.facts.patch

    def forward(
        self, pictures: Tensor, rows: Tensor, autocast: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pictures ``[B, 3, S, S]`` and the words of their captions ``[B, context]`` -> vectors of
        both, ``[B, E]`` float32 of unit length. Towers run under ``autocast``."""
        grid = (pictures.shape[-2] // self._patch, pictures.shape[-1] // self._patch)
        with mixed(pictures.device, autocast):
            tokens = self._layout.split(self.vit.forward_features(pictures), grid)
            assert tokens.cls is not None
            seen = self.towers.picture_projection(tokens.cls)
            said = self.towers.texts(rows)
        return F.normalize(seen.float(), dim=-1), F.normalize(said.float(), dim=-1)


def contrast(seen: Tensor, said: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss of unit vectors ``[B, E]`` of pictures and of their captions, and the share of
    pictures whose own caption is the likeliest."""
    logits = scale * seen @ said.T
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


class Clip:
    """Both towers, and the pairs that they see."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device) -> None:
        self._recipe, self._dataset, self._device = recipe, dataset, device
        self._captions = read_captions(recipe, dataset)
        said = (text for captions in self._captions for text in captions)
        vocabulary = vocabulary_of(said, recipe.vocabulary)
        if not vocabulary:
            raise HarnessError(f"{recipe.data}: its captions have no words to learn")
        self.facts = TowerFacts(
            width=recipe.text_width,
            depth=recipe.text_depth,
            heads=recipe.text_heads,
            context=recipe.context,
            shared=recipe.shared,
            picture=recipe.facts.width,
            vocabulary=vocabulary,
        )
        self.model = Contrast(recipe, self.facts).to(device)

    @property
    def trained(self) -> nn.Module:
        return self.model

    @property
    def scheduled(self) -> tuple[str, ...]:
        return "learning_rate", "weight_decay"

    def batches(self, steps: range) -> Iterator[Pairs]:
        words = Words(self.facts.vocabulary, self.facts.context)
        return pairs(self._recipe, self._dataset, self._captions, words, steps)

    def losses(self, batch: Pairs, now: Schedule, autocast: torch.dtype | None) -> Losses:
        pictures = normalised(batch.crops, self._device)
        seen, said = self.model(pictures, batch.rows.to(self._device), autocast)
        scale = self.model.towers.scale()
        total, right = contrast(seen, said, scale)
        return Losses(total, {"loss": total, "right": right, "scale": scale})

    def before_update(self, now: Schedule) -> None:
        pass

    def after_update(self, now: Schedule) -> None:
        pass

    def told(self, means: Mapping[str, float]) -> str:
        return f"own caption first {100 * means['right']:.1f} %, scale {means['scale']:.1f}"

    def export(self, recipe: Recipe) -> Path:
        tower = tower_bytes(self.facts, self.model.towers)
        return export(recipe, self.model.vit.state_dict(), tower)
