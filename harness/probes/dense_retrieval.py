"""Segmentation by retrieval: a patch is what the most similar patches of other pictures are.

Balazevic et al., "Towards In-Context Scene Understanding" (Hummingbird, 2023, section 3), as coded
in vpariza/open-hummingbird-eval, hbird/hbird_eval.py. Nothing is trained. Nothing of a data set is
in here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.probes.draws import generator_of
from harness.probes.neighbours import NeighbourIndex
from harness.probes.resizing import class_map

_QUERIES = 2**24  # floats of gathered labels in memory at a time


class Patches(NamedTuple):
    """Of one picture: ``tokens [m, D]`` of unit length (or 0) and ``shares [m, classes]``, how
    much of the labelled part of a patch is of each class; float32."""

    tokens: Tensor
    shares: Tensor


def patch_shares(labels: Tensor, grid: tuple[int, int], classes: int, ignore: int = 255) -> Tensor:
    """How much of the labelled part of every patch is of each class: ``[*grid, classes]`` float32,
    0 throughout where nothing of it is labelled.

    ``labels [H, W]`` are of what the grid covers, at any size: a pixel on the border of patches
    belongs to each by its part, so that labels are not resized. Raises ``ValueError`` for a label
    that is no class.
    """
    numbers = labels.long()
    present = [each for each in torch.unique(numbers).tolist() if each != ignore]
    if present and not 0 <= present[0] <= present[-1] < classes:
        wrong = present[0] if present[0] < 0 else present[-1]
        raise ValueError(f"label {wrong} is none of {classes} classes, nor {ignore}")
    down = _overlaps(labels.shape[0], grid[0]).to(labels.device)
    across = _overlaps(labels.shape[1], grid[1]).to(labels.device)
    shares = torch.zeros(*grid, classes, dtype=torch.float64, device=labels.device)
    for each in present:
        shares[..., each] = down @ (numbers == each).double() @ across.T
    total = shares.sum(-1, keepdim=True)
    return (shares / torch.where(total > 0, total, 1.0)).float()


def _overlaps(pixels: int, patches: int) -> Tensor:
    """``[patches, pixels]`` float64: how much of a pixel is in a patch, of a line of pixels that
    is cut into patches of equal length. In whole numbers of 1 / patches until the last step."""
    pixel, patch = torch.arange(pixels), torch.arange(patches)[:, None]
    ends = torch.minimum((pixel + 1) * patches, (patch + 1) * pixels)
    begins = torch.maximum(pixel * patches, patch * pixels)
    return (ends - begins).clamp_min(0).double() / patches


def chosen_patches(shares: Tensor, most: int | None, seed: int, name: str) -> Tensor:
    """Which patches of a picture to keep, rising places ``[m]`` in ``shares [patches, classes]``:
    all that are labelled, or ``most`` of those, rare classes first.

    A patch has the sum, over the classes in it, of how many of the picture's patches each is in;
    times a number drawn evenly below 1. The lowest are kept (``get_patch_scores``). Draws are by
    ``seed`` and the ``name`` of the picture.
    """
    inside = shares > 0
    labelled = inside.any(1).nonzero()[:, 0]
    if most is None or len(labelled) <= most:
        return labelled
    commonness = (inside * inside.sum(0)).sum(1)[labelled]
    drawn = torch.rand(len(shares), generator=generator_of(seed, name), dtype=torch.float64)
    scores = commonness * drawn.to(shares.device)[labelled]
    return labelled[scores.argsort(stable=True)[:most]].sort().values


class PatchMemory:
    """Patches of pictures that are remembered, ``most`` of each at the most (None: all of them).

    The order that pictures come in does not matter: they stand by name.
    """

    def __init__(self, classes: int, most: int | None = None, seed: int = 0) -> None:
        if classes < 1 or (most is not None and most < 1):
            raise ValueError("a class and a patch a picture are needed, at least")
        self._classes, self._most, self._seed = classes, most, seed
        self._pictures: dict[str, Patches] = {}

    def add(self, name: str, tokens: Tensor, shares: Tensor) -> None:
        """Remember patches of a picture that was not there: ``tokens [h, w, D]`` of any length,
        with their ``patch_shares [h, w, classes]``. They are kept on the CPU."""
        if name in self._pictures:
            raise ValueError(f"picture {name} is remembered already")
        if tokens.shape[:2] != shares.shape[:2] or shares.shape[2] != self._classes:
            raise ValueError(f"tokens {list(tokens.shape)} with shares {list(shares.shape)}")
        flat = shares.flatten(0, 1)
        places = chosen_patches(flat, self._most, self._seed, name)
        kept = _unit(tokens.flatten(0, 1)[places.to(tokens.device)])
        self._pictures[name] = Patches(kept.cpu(), flat[places].cpu())

    def __len__(self) -> int:
        """How many patches are remembered."""
        return sum(len(each.tokens) for each in self._pictures.values())

    def retrieval(self, device: str = "cpu") -> PatchRetrieval:
        """The search among what is remembered, once all of it is. Raises ``ValueError`` where
        nothing is."""
        if not len(self):
            raise ValueError("no labelled patch is remembered")
        parts = [self._pictures[name] for name in sorted(self._pictures)]
        tokens, shares = (torch.cat(each) for each in zip(*parts, strict=True))
        return PatchRetrieval(Patches(tokens, shares), device)

    def state(self) -> dict[str, Any]:
        return dict(self._pictures)

    def load(self, state: dict[str, Any]) -> None:
        self._pictures = {name: Patches(*each) for name, each in state.items()}


class PatchRetrieval:
    """The nearest of remembered ``patches`` by cosine, exactly (``NeighbourIndex``)."""

    def __init__(self, patches: Patches, device: str = "cpu") -> None:
        self._index = NeighbourIndex(patches.tokens, device)
        self._shares = patches.shares
        self.patches = patches

    def label_shares(self, tokens: Tensor, k: int = 30, temperature: float = 0.02) -> Tensor:
        """How much every patch of ``tokens [h, w, D]`` is of each class, ``[h, w, classes]``
        float32, on the CPU: the mean of its ``k`` nearest patches' shares, weighed by the softmax
        of cosine / ``temperature`` over these. Of fewer patches than ``k`` all are taken."""
        k = min(k, len(self._shares))
        found = self._index.search(_unit(tokens.flatten(0, 1)), k)
        weights = (found.similarities.double() / temperature).softmax(1).float()
        most = max(1, _QUERIES // (k * self._shares.shape[1]))
        mixed = [
            torch.bmm(some[:, None], self._shares[places])[:, 0]
            for some, places in zip(
                torch.split(weights, most), torch.split(found.places, most), strict=True
            )
        ]
        return torch.cat(mixed).view(*tokens.shape[:2], -1)

    def predict(
        self, tokens: Tensor, size: tuple[int, int], k: int = 30, temperature: float = 0.02
    ) -> Tensor:
        """The class of every pixel of a picture of ``size``: ``label_shares`` made as large
        (bilinear), and then the largest; ``[*size]`` int64, of equal shares the lowest class."""
        shares = self.label_shares(tokens, k, temperature)
        return class_map(shares.permute(2, 0, 1)[None], size)[0]


def _unit(tokens: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tokens.float(), dim=1)
