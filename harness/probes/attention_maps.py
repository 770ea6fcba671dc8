"""How well a map over a picture, such as a row of attention, tells objects from the rest."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NEAR = 1e-9
"""Of all mass: what is nearer to the wanted share than that has reached it."""


class Localisation(NamedTuple):
    """How well each of M maps finds the objects.

    ``pointing [M]`` bool: the highest value (the first of equals) lies on an object, the pointing
    game of Zhang et al. ("Top-Down Neural Attention by Excitation Backprop", 2018, section 4.1).
    ``inside [M]``: how much of the map's mass lies on objects. ``best_iou [M]``: the intersection
    over union of objects with what is at or above a threshold, the best of all thresholds.
    ``mass_iou [M]``: the same for the fewest highest values that hold a share of the mass, with all
    that equal the lowest of them. ``precision [M]``: the average precision of telling pixels of
    objects by the map, scaled to 0 … 1, and all others by 1 less that, both classes in one ranking.
    ``intersection`` and ``predicted [M, 2]`` int64 are pixels of the rest and of objects, where
    what is above the map's mean is taken for objects.
    """

    pointing: Tensor
    inside: Tensor
    best_iou: Tensor
    mass_iou: Tensor
    precision: Tensor
    intersection: Tensor
    predicted: Tensor


def localisation(maps: Tensor, objects: Tensor, mass: float) -> Localisation:
    """Of ``maps [M, P]``, none of whose values is negative, and ``objects [P]`` bool, pixel for
    pixel. ``mass`` is the share that ``mass_iou`` keeps (DINO's visualize_attention.py).

    The mean as a threshold and the average precision of two classes are those of Chefer et al.
    (CVPR 2021, section 4.1), as coded in yossigandelsman/clip_text_span, compute_segmentations.py,
    which "Vision Transformers Don't Need Trained Registers" names for its table 4.
    """
    values = maps.double()
    total = values.sum(1)
    inside = values[:, objects].sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny)
    ranked, hits, ends = _ranked(values, objects.expand(maps.shape))
    reached = torch.arange(1, maps.shape[1] + 1, device=maps.device)
    iou = hits / (reached + hits[:, -1:] - hits)
    enough = ranked.cumsum(1) >= (mass - _NEAR) * total[:, None]
    cut = (enough & ends).long().argmax(1, keepdim=True)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    scaled = (values - low) / (high - low).where(high > low, 1)
    # In float64 the mean of equal float32 values is exactly theirs: none of them is above it.
    above = values > values.mean(1, keepdim=True)
    right, wrong = (above & objects).sum(1), (above & ~objects).sum(1)
    return Localisation(
        pointing=objects[maps.argmax(1)],
        inside=inside,
        best_iou=iou.where(ends, 0).amax(1),
        mass_iou=iou.gather(1, cut)[:, 0],
        precision=_average_precision(
            torch.cat((scaled, 1 - scaled), 1), torch.cat((objects, ~objects))
        ),
        intersection=torch.stack(((~objects).sum() - wrong, right), 1),
        predicted=torch.stack(((~above).sum(1), right + wrong), 1),
    )


def entropy(rows: Tensor) -> Tensor:
    """How evenly attention is spread over the patches: the entropy of ``rows [..., H, W]``, each as
    shares of its sum, over that of equal shares. From 0 (one patch has all) to 1."""
    flat = rows.flatten(-2).double()
    shares = flat / flat.sum(-1, keepdim=True)
    found: Tensor = torch.special.entr(shares).sum(-1) / math.log(max(2, flat.shape[-1]))
    return found


def _ranked(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[M, P]`` each: the scores from the highest down, how many are ``positive`` up to there, and
    whether the next is another score, which is where a threshold can be."""
    ranked, order = scores.sort(dim=1, descending=True)
    hits = positive.gather(1, order).cumsum(1)
    ends = torch.ones_like(ranked, dtype=torch.bool)
    ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    return ranked, hits, ends


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """Of ``scores [M, P]`` and ``positive [P]``: the precision at each threshold, weighed by what
    that adds to the recall (scikit-learn's ``average_precision_score``)."""
    _, hits, ends = _ranked(scores, positive.expand(scores.shape))
    reached = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    at_ends = hits.where(ends, 0)
    before = torch.zeros_like(hits)
    before[:, 1:] = at_ends.cummax(1).values[:, :-1]
    gained = (hits - before).where(ends, 0)
    return (gained * (hits / reached)).sum(1) / hits[:, -1]
