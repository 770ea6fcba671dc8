"""Texts as rows of word numbers: the whole tokenizer of our own small text towers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDING, START, UNKNOWN = range(3)
"""Numbers that stand for no word; those of words follow."""
SPECIAL = 3
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits of any script, in lower case: ``dining_room.`` is two words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def vocabulary_of(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The ``most`` words that occur most often, in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    return tuple(sorted(kept))


class Words:
    """The words that a tower knows, and rows of ``context`` numbers for texts."""

    def __init__(self, vocabulary: Sequence[str], context: int) -> None:
        self.vocabulary, self.context = tuple(vocabulary), context
        self._numbers = {word: place for place, word in enumerate(vocabulary, start=SPECIAL)}

    def rows(self, texts: Sequence[str]) -> Tensor:
        """``[n, context]`` int64: a start, the words (one number for all unknown ones), padding. A
        text of more words than fit is cut."""
        found = np.full((len(texts), self.context), PADDING, dtype=np.int64)
        for row, text in zip(found, texts, strict=True):
            words = words_of(text)[: self.context - 1]
            row[: len(words) + 1] = [START, *(self._numbers.get(word, UNKNOWN) for word in words)]
        return torch.from_numpy(found)

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """``[n]``: which texts have more words than fit."""
        return np.array([len(words_of(text)) >= self.context for text in texts], dtype=np.bool_)
