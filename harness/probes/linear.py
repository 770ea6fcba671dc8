"""A grid of linear classifiers trained together: softmax regression by SGD with momentum.

Heads look at runs of columns of one matrix of features. Those that look at the same columns are one
matrix product, ``[B, D] @ [D, heads * classes]``, and so is their gradient. That is written out:
softmax minus one at the label, times the features, over B. The product adds it to the momentum
itself, so that no gradient of the weights is ever stored. Nothing of a data set is in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.probes.draws import generator_of

_FEW = 16  # classes; below that torch's softmax goes number by number on a CPU
_LOGITS = 2**24  # floats of a step that are in memory at a time; heads take turns beyond that


class Head(NamedTuple):
    """One classifier: a ``name`` of its own, which its initial weights are drawn by; the columns
    ``start`` to ``stop`` that it sees; and its learning rate at the first step."""

    name: str
    start: int
    stop: int
    learning_rate: float


@dataclass(frozen=True)
class Descent:
    """torch.optim.SGD (no dampening, no Nesterov), with CosineAnnealingLR to 0 over ``steps``.

    Weights begin as N(0, ``init_std``), biases as 0; weight decay is for both, as in torch.
    """

    steps: int
    momentum: float = 0.9
    weight_decay: float = 0.0
    init_std: float = 0.01

    def share(self, step: int) -> float:
        """What is left of a learning rate at ``step``, from 0."""
        return (1 + math.cos(math.pi * min(step, self.steps) / self.steps)) / 2


class Judged(NamedTuple):
    """Of B rows and H heads: ``predicted [B, H]`` classes, and ``rank [B, H]``, how many classes
    were put before the right one (of equal logits the lowest class is first). A head whose logits
    are not finite ranks the right class behind all others."""

    predicted: Tensor
    rank: Tensor


@dataclass(frozen=True)
class _Group:
    """Heads that see the same columns. ``weights [h, C, D]``, ``biases [h, C]`` and the momentum
    of both; ``places [h]`` of the heads in the grid, ``rates [h]`` in its order."""

    columns: slice
    places: tuple[int, ...]
    rates: Tensor
    weights: Tensor
    biases: Tensor
    weights_momentum: Tensor
    biases_momentum: Tensor


class LinearHeads:
    """``heads`` on ``device``, as they begin. The same ``seed`` and names give the same ones,
    whatever else is in the grid. Everything is float32."""

    def __init__(
        self,
        heads: Sequence[Head],
        classes: int,
        descent: Descent,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if classes < 1 or descent.steps < 1 or not heads:
            raise ValueError("a head, a class and a step are needed, at least")
        if len({head.name for head in heads}) < len(heads):
            raise ValueError("two heads of one name")
        self._heads, self._classes, self._descent = tuple(heads), classes, descent
        self._device = torch.device(device)
        self._done = 0
        by_columns: dict[tuple[int, int], list[int]] = {}
        for place, head in enumerate(heads):
            by_columns.setdefault((head.start, head.stop), []).append(place)
        self._groups = [self._group(slice(*at), of, seed) for at, of in by_columns.items()]
        self._space: tuple[Tensor, Tensor] | None = None

    def _group(self, columns: slice, places: Sequence[int], seed: int) -> _Group:
        width = columns.stop - columns.start
        weights = torch.empty(len(places), self._classes, width)
        for one, place in zip(weights, places, strict=True):
            generator = generator_of(seed, self._heads[place].name)
            one.normal_(0, self._descent.init_std, generator=generator)
        weights = weights.to(self._device)
        biases = torch.zeros(weights.shape[:2], device=self._device)
        rates = [self._heads[place].learning_rate for place in places]
        return _Group(
            columns,
            tuple(places),
            torch.tensor(rates, device=self._device),
            weights,
            biases,
            torch.zeros_like(weights),
            torch.zeros_like(biases),
        )

    def step(self, features: Tensor, labels: Tensor) -> None:
        """One step of every head on ``features [B, W]`` float32 with ``labels [B]`` int64, both on
        the heads' device. The loss is the mean cross-entropy over rows, summed over heads."""
        descent, rows = self._descent, len(labels)
        left = descent.share(self._done)
        one_less = torch.full((1, 1, 1), -1.0, device=self._device)
        for group, part, scores in self._logits(features):
            weights, biases = group.weights[part], group.biases[part]
            momentum, biases_momentum = group.weights_momentum[part], group.biases_momentum[part]
            heads = len(weights)
            _, space = self._spaces(rows, heads)
            _softmax(scores, space)
            at = labels[:, None, None].expand(rows, heads, 1)
            space.scatter_add_(2, at, one_less.expand(rows, heads, 1))
            flat = space.flatten(1)
            momentum.flatten(0, 1).addmm_(
                flat.T, features[:, group.columns], beta=descent.momentum, alpha=1 / rows
            )
            biases_momentum.mul_(descent.momentum).add_(flat.sum(0).view_as(biases), alpha=1 / rows)
            if descent.weight_decay:
                momentum.add_(weights, alpha=descent.weight_decay)
                biases_momentum.add_(biases, alpha=descent.weight_decay)
            rates = group.rates[part]
            weights.addcmul_(momentum, rates[:, None, None], value=-left)
            biases.addcmul_(biases_momentum, rates[:, None], value=-left)
        self._done += 1

    def judge(self, features: Tensor, labels: Tensor) -> Judged:
        """What every head says of ``features [B, W]``, and where it puts ``labels [B]``."""
        shape = len(labels), len(self._heads)
        predicted = torch.empty(shape, dtype=torch.int64, device=self._device)
        rank = torch.empty_like(predicted)
        classes = torch.arange(self._classes, device=self._device)
        at = labels[:, None, None]
        for group, part, scores in self._logits(features):
            places = list(group.places[part])
            right = scores.gather(2, at.expand(len(labels), len(places), 1))
            before = (scores > right).sum(-1) + ((scores == right) & (classes < at)).sum(-1)
            finite = scores.isfinite().all(-1)
            predicted[:, places] = scores.argmax(-1)
            rank[:, places] = before.where(finite, self._classes)
        return Judged(predicted, rank)

    def finite(self) -> tuple[bool, ...]:
        """Of each head whether its weights are still numbers: too high a rate ends elsewhere."""
        found = [True] * len(self._heads)
        for group in self._groups:
            fine = group.weights.isfinite().flatten(1).all(1) & group.biases.isfinite().all(1)
            for place, one in zip(group.places, fine.tolist(), strict=True):
                found[place] = one
        return tuple(found)

    def weights(self, place: int) -> tuple[Tensor, Tensor]:
        """``[C, D]`` and ``[C]`` of one head."""
        for group in self._groups:
            if place in group.places:
                row = group.places.index(place)
                return group.weights[row], group.biases[row]
        raise IndexError(place)

    def _logits(self, features: Tensor) -> Iterator[tuple[_Group, slice, Tensor]]:
        """``[B, h, C]`` of as many heads of a group at a time as memory is set aside for, in a
        place that the next ones are written to."""
        rows = len(features)
        most = max(1, _LOGITS // max(1, rows * self._classes))
        for group in self._groups:
            inputs = features[:, group.columns]
            for start in range(0, len(group.places), most):
                part = slice(start, min(start + most, len(group.places)))
                weights, biases = group.weights[part].flatten(0, 1), group.biases[part].flatten()
                scores, _ = self._spaces(rows, part.stop - part.start)
                torch.addmm(biases, inputs, weights.T, out=scores.flatten(1))
                yield group, part, scores

    def _spaces(self, rows: int, heads: int) -> tuple[Tensor, Tensor]:
        """Two places for ``[rows, heads, C]``, the same from step to step: making 64 MB anew each
        time costs a CPU more than the softmax."""
        needed = rows * heads * self._classes
        if self._space is None or len(self._space[0]) < needed:
            self._space = None  # let go of the smaller ones first
            first, second = (torch.empty(needed, device=self._device) for _ in range(2))
            self._space = first, second
        first, second = (each[:needed].view(rows, heads, self._classes) for each in self._space)
        return first, second

    def state(self) -> dict[str, Any]:
        """All that a step changes, on the CPU."""
        tensors = [[each.cpu().clone() for each in _changing(group)] for group in self._groups]
        return {"steps": self._done, "tensors": tensors}

    def load(self, state: dict[str, Any]) -> None:
        self._done = state["steps"]
        for group, stored in zip(self._groups, state["tensors"], strict=True):
            for ours, theirs in zip(_changing(group), stored, strict=True):
                ours.copy_(theirs)


def first_right(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``scores [B, C]``, each ``[B]``: the class that comes first, and how many classes stand
    before the first one that is ``right [B, C]`` (C where none is, or a score is not finite). Of
    equal scores the lowest class is first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    sorted_right = right.gather(1, order)
    told = sorted_right.any(1) & scores.isfinite().all(1)
    return order[:, 0], sorted_right.int().argmax(1).where(told, scores.shape[1])


def _softmax(scores: Tensor, out: Tensor) -> None:
    """Over the last dimension; the two may not overlap."""
    if scores.shape[-1] >= _FEW:
        torch.softmax(scores, -1, out=out)
        return
    torch.sub(scores, scores.amax(-1, keepdim=True), out=out).exp_()
    out.div_(out.sum(-1, keepdim=True))


def _changing(group: _Group) -> tuple[Tensor, ...]:
    return group.weights, group.biases, group.weights_momentum, group.biases_momentum
