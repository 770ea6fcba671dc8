"""Classes of pixels that are told by texts: what each is called, and how a picture is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.coverage import BACKGROUND
from harness.data.dataset import IGNORED, Dense
from harness.data.views import Geometry
from harness.dense.classes import ClassJudge
from harness.errors import HarnessError
from harness.features.windows import bands
from harness.language.class_texts import PLAIN, SLOT, PromptSet, class_names, shipped
from harness.probes.dense_losses import ClassMap
from harness.probes.text_maps import nearest_class, sure_class

Background = Literal["words", "threshold", "left out"]
Templates = Literal["imagenet", "prompts"]
# Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild"
# (CVPR 2014): of the 59 most frequent classes that PASCAL-Context labels VOC's pictures with, those
# that are none of VOC's 20 and lie in its background.
_IN_THE_BACKGROUND = (
    "bag", "bed", "bedclothes", "bench", "book", "building", "cabinet", "ceiling", "cloth",
    "computer", "cup", "curtain", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "keyboard", "light", "mountain", "mouse", "plate", "platform", "road", "rock", "shelves",
    "sidewalk", "sign", "sky", "snow", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip


@dataclass(frozen=True)
class TextClasses:
    """The classes that are scored, and the names that stand for them.

    ``stored`` are the data set's classes, ``kept`` the places in them of those that are scored.
    ``names`` are what texts are made of, ``owners`` the class of each, a place in ``kept``.
    ``background`` is its place in ``kept`` where a threshold tells it.
    """

    stored: tuple[str, ...]
    kept: tuple[int, ...]
    names: tuple[str, ...]
    owners: tuple[int, ...]
    background: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.stored[place] for place in self.kept)


def text_classes(
    dataset: str,
    classes: Sequence[str],
    prompts: Literal["own", "plain"] | PromptSet,
    background: Background,
) -> TextClasses:
    """What the pixel classes of a data set are called.

    The class ``background`` is what its ``words`` name (those of ``prompts``, or 39 of what lies in
    VOC's, without those that are names of other classes), or what no name is sure of
    (``threshold``), or its pixels count for nothing (``left out``).

    Raises ``HarnessError`` as ``class_names`` does, and where no class is left.
    """
    found = dict(zip(classes, class_names(dataset, classes, prompts), strict=True))
    words = found.pop(BACKGROUND, ())
    if not found:
        raise HarnessError(f"data set {dataset!r}: {BACKGROUND} is the only class of its pixels")
    if words == (BACKGROUND,):
        taken = {name.casefold() for names in found.values() for name in names}
        words = tuple(word for word in _IN_THE_BACKGROUND if word not in taken)
    if words and background == "words":
        found[BACKGROUND] = words
    kept = tuple(
        place
        for place, name in enumerate(classes)
        if name != BACKGROUND or background != "left out"
    )
    pairs = [
        (name, owner) for owner, place in enumerate(kept) for name in found.get(classes[place], ())
    ]
    unsure = kept.index(classes.index(BACKGROUND)) if words and background == "threshold" else None
    names, owners = zip(*pairs, strict=True)
    return TextClasses(tuple(classes), kept, names, owners, unsure)


def name_texts(
    dataset: str,
    names: Sequence[str],
    prompts: Literal["own", "plain"] | PromptSet,
    templates: Templates,
) -> list[list[str]]:
    """For each name the texts whose vectors' mean stands for it: in ImageNet's 80 templates, or in
    those of ``prompts``."""
    if templates == "imagenet":
        chosen = shipped()["imagenet"].templates
    elif isinstance(prompts, PromptSet):
        chosen = prompts.templates
    else:
        own = shipped().get(dataset)
        chosen = PLAIN if own is None or prompts == "plain" else own.templates
    return [[template.replace(SLOT, name) for template in chosen] for name in names]


class TextJudge(ClassJudge):
    """Pixels by class, of maps that have a channel a name."""

    def __init__(
        self, classes: TextClasses, patch: int, scale: float = 1.0, threshold: float = 0.0
    ) -> None:
        """``scale`` and ``threshold`` are for a background that a threshold tells."""
        count = len(classes.kept)
        super().__init__(classes.classes, ClassMap(count), None, patch)
        self._texts, self._scale, self._threshold = classes, scale, threshold
        self._owners = torch.tensor(classes.owners)
        self._scored = np.full(IGNORED + 1, IGNORED, np.uint8)
        self._scored[list(classes.kept)] = np.arange(count)
        self._stored = np.full(IGNORED + 1, IGNORED, np.uint8)
        self._stored[:count] = classes.kept

    def prediction(self, maps: Sequence[Tensor], geometry: Sequence[Geometry]) -> Tensor:
        """Cosines are resized and averaged, and only then compared."""
        return torch.cat([self._told(band) for band in bands(maps, geometry)])

    def _told(self, band: Tensor) -> Tensor:
        background = self._texts.background
        if background is None:
            return nearest_class(band, self._owners)
        return sure_class(band, self._owners, self._scale, self._threshold, background)

    def truth(self, dense: Dense) -> Tensor:
        assert dense.semantic is not None
        return torch.from_numpy(self._scored[dense.semantic])

    def drawn(self, prediction: Tensor, truth: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """As places in the data set's classes again."""
        return self._stored[prediction.cpu().numpy()], self._stored[truth.numpy()]
