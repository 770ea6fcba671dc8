"""What a dense head is trained for, and what its outputs mean: classes or depth. Pure tensors.

Segmentation: cross-entropy of logits resized to the label's size. Depth: the scale-invariant loss
of Eigen et al. (2014) as AdaBins (Bhat et al., 2021) has it, of bins normalised linearly.
Source: DINOv2 (Oquab et al., 2023, section 7.4), dinov2/eval/{segmentation,depth}. Its gradient
loss is left out: it takes differences along batch and channel in place of rows and columns, which
is 0 for the two pictures a GPU that it was run with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from harness.probes.resizing import class_map, resized

_LOGITS = 2**25  # floats of resized logits in memory at a time
_SHARE = 0.15  # of the squared mean in the scale-invariant loss
_OFFSET = 1e-3  # metres, added before the logarithm
_LEAST = 0.1  # of a bin before normalisation


class Objective(Protocol):
    """``outputs`` logits a token -> ``maps`` of the size of the grid -> a prediction."""

    @property
    def outputs(self) -> int: ...

    def maps(self, logits: Tensor) -> Tensor:
        """``[B, outputs, H, W]`` -> what is resized: ``[B, C, H', W']``."""
        ...

    def prediction(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, *size]``, in bounded memory."""
        ...

    def slope(self, logits: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The loss of ``logits [B, outputs, H, W]`` at ``step`` against ``targets [B, h, w]``, and
        its gradient with respect to them; 0 and 0 where nothing is labelled."""
        ...


@dataclass(frozen=True)
class ClassMap:
    """A class for every pixel, of label ``ignore`` where it is not to be learned.

    The loss is averaged over the pixels that are ``labelled``, or over ``all`` of them: that is
    what mmseg does (its ``avg_non_ignore`` is False) and DINOv3 after it, so that a batch with
    few labels counts for less.
    """

    classes: int
    ignore: int = 255
    average: Literal["labelled", "all"] = "labelled"

    @property
    def outputs(self) -> int:
        return self.classes

    def maps(self, logits: Tensor) -> Tensor:
        return logits

    def prediction(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return class_map(maps, size)

    def slope(self, logits: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        # Pixels add up, so that a few pictures are resized at a time.
        targets = targets.long()
        counted = (targets != self.ignore).sum() if self.average == "labelled" else targets.numel()
        share = 1 / torch.as_tensor(counted, device=logits.device).clamp_min(1)
        most = max(1, _LOGITS // (self.classes * targets[0].numel()))
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for some, labels in zip(torch.split(logits, most), torch.split(targets, most), strict=True):
            with torch.enable_grad():
                # With classes in the last place torch's softmax would be half as fast on a CPU.
                leaf = some.detach().contiguous().requires_grad_()
                loss = share * cross_entropy(leaf, labels, self.ignore)
            gradients += torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
        return torch.stack(losses).sum(), torch.cat(gradients)


@dataclass(frozen=True)
class DepthBins:
    """A depth in metres for every pixel, from ``bins`` bins between ``low`` and ``high``.

    Logits are made ``enlarge`` times as large (bilinear) before the bins are normalised. DINOv2
    enlarges the tokens; a 1x1 head of them is the same but for rounding, because the weights of a
    bilinear resize sum to 1, and 16 times less work. In the first ``warm_up`` steps only the mean
    counts. A depth that is 0 or less, not finite, or above ``highest`` is no target.
    """

    bins: int = 256
    low: float = 1e-3
    high: float = 10.0
    enlarge: int = 1
    warm_up: int = 100
    highest: float | None = None

    @property
    def outputs(self) -> int:
        return self.bins

    def maps(self, logits: Tensor) -> Tensor:
        height, width = logits.shape[2:]
        # With bins in the last place a CPU resizes twice as fast, and the mean is a product.
        logits = logits.contiguous(memory_format=torch.channels_last)
        larger = resized(logits, (height * self.enlarge, width * self.enlarge))
        return depth_of_bins(larger, self.low, self.high)

    def prediction(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return resized(maps, size)[:, 0]

    def slope(self, logits: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        valid = (targets > 0) & targets.isfinite()
        if self.highest is not None:
            valid &= targets <= self.highest
        if int(valid.sum()) < 2:  # no variance
            return logits.new_zeros(()), torch.zeros_like(logits)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            height, width = targets.shape[1:]
            predicted = resized(self.maps(leaf), (height, width))[:, 0]
            loss = scale_invariant(predicted[valid], targets[valid], step < self.warm_up)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient


def cross_entropy(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """The sum over pixels of the cross-entropy of ``logits [B, C, H, W]``, resized to ``labels
    [B, h, w]`` int64, where the label is not ``ignore``; in nats."""
    height, width = labels.shape[1:]
    larger = resized(logits, (height, width))
    return functional.cross_entropy(larger, labels, ignore_index=ignore, reduction="sum")


def depth_of_bins(logits: Tensor, low: float, high: float) -> Tensor:
    """``[B, bins, H, W]`` -> ``[B, 1, H, W]`` metres: the mean of bin centres, from ``low`` to
    ``high`` evenly, weighed by ``relu(logit) + 0.1`` (AdaBins' linear normalisation)."""
    bins = logits.shape[1]
    centres = torch.linspace(low, high, bins, device=logits.device)
    columns = torch.stack([torch.ones_like(centres), centres], dim=1)
    total, weighed = (logits.relu().permute(0, 2, 3, 1) @ columns).unbind(-1)
    return ((weighed + _LEAST * centres.sum()) / (total + _LEAST * bins))[:, None]


def scale_invariant(predicted: Tensor, truth: Tensor, only_mean: bool = False) -> Tensor:
    """``sqrt(var(g) + 0.15 mean(g)^2)`` over all of ``[n]``, with ``g = log(predicted + 0.001) -
    log(truth + 0.001)`` and the variance with n - 1; without it if ``only_mean``."""
    ratio = (predicted + _OFFSET).log() - (truth + _OFFSET).log()
    if only_mean:
        return math.sqrt(_SHARE) * ratio.mean().abs()
    # Not below what has a slope: the root has none at 0.
    return (ratio.var() + _SHARE * ratio.mean() ** 2).clamp_min(1e-24).sqrt()
