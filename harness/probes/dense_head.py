"""Heads of 1x1 kind on patch tokens, trained together on one stream. Pure tensors.

The published linear heads are all of this form: tokens of one or more layers side by side, perhaps
a batch norm, perhaps a dropout of channels, and a 1x1 convolution, trained with AdamW (DINOv2,
Oquab et al., 2023, section 7.4; DINOv3, Simeoni et al., 2025, appendix D.1). They differ in
settings.

Heads differ in learning rate and weight decay, and see the same tokens. What a batch norm does to
those before its own gain and offset does not depend on the head, and these can be multiplied into
the weights: so all heads are one matrix product, ``[B * H * W, D] @ [D, heads * outputs]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from harness.probes.dense_losses import DepthBins, Objective
from harness.probes.draws import generator_of
from harness.probes.schedules import Schedule

_NORM_MOMENTUM, _NORM_EPS = 0.1, 1e-5  # torch's batch norm
_PARAMETERS = ("weights", "biases", "gains", "offsets")


class DenseHead(NamedTuple):
    """One head: a ``name`` of its own, which its initial weights are drawn by, the learning rate
    that the schedule multiplies, and AdamW's weight decay, which is for every parameter."""

    name: str
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Form:
    """What stands before the 1x1 convolution, and how that begins.

    ``dropout`` takes out whole channels of a picture (``Dropout2d``), the same ones for every
    head, behind the batch norm as in mmseg or before it as in DINOv3. Weights begin as N(0,
    ``init_std``) and biases as 0, or both uniformly within ``D ** -0.5`` as torch's ``Conv2d``
    where it is None (DINOv2's depth).
    """

    batch_norm: bool = True
    dropout: float = 0.0
    dropout_before_norm: bool = False
    init_std: float | None = 0.01


@dataclass(frozen=True)
class Training:
    """AdamW (Loshchilov and Hutter, 2019) as in torch, and how losses are put together.

    ``clip`` is the most that the norm of a head's gradient may be. Of every ``pictures_per_loss``
    pictures a loss is computed, and their mean is gone down: as on GPUs with so many each. None
    is a step's pictures together. The batch norm sees all of a step (``SyncBatchNorm``).
    """

    schedule: Schedule
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    pictures_per_loss: int | None = None


class DenseHeads:
    """``heads`` for tokens of ``width`` channels on ``device``, as they begin. The same ``seed``
    and names give the same ones, whatever other heads there are.

    With ``bf16`` the matrix product is in bfloat16 on a GPU; ``precision`` says what is in use, on
    a CPU always fp32. Losses, gradients' sums and parameters are float32.
    """

    def __init__(
        self,
        heads: Sequence[DenseHead],
        width: int,
        objective: Objective,
        form: Form,
        training: Training,
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if not heads or width < 1 or objective.outputs < 1:
            raise ValueError("a head, a channel and an output are needed, at least")
        if len({head.name for head in heads}) < len(heads):
            raise ValueError("two heads of one name")
        if not 0 <= form.dropout < 1:
            raise ValueError(f"dropout {form.dropout}: from 0 to below 1")
        if form.batch_norm and isinstance(objective, DepthBins) and objective.enlarge > 1:
            raise ValueError("a batch norm of enlarged tokens is none of the tokens: enlarge 1")
        self._heads, self._width, self._objective = tuple(heads), width, objective
        self._form, self._training, self._seed = form, training, seed
        self._device = torch.device(device)
        self.precision: Literal["fp32", "bf16"] = _runs_as(precision, self._device)
        self._done = 0
        self._rates = self._of_heads([head.learning_rate for head in heads])
        self._decays = self._of_heads([head.weight_decay for head in heads])
        self._tensors: dict[str, Tensor] = {}
        begun = [self._begun(head.name) for head in heads]
        for name, values in zip(("weights", "biases"), zip(*begun, strict=True), strict=True):
            self._tensors[name] = torch.stack(values).to(self._device)
        if form.batch_norm:
            shape = len(heads), width
            self._tensors["gains"] = torch.ones(shape, device=self._device)
            self._tensors["offsets"] = torch.zeros(shape, device=self._device)
            self._tensors["mean"] = torch.zeros(width, device=self._device)
            self._tensors["variance"] = torch.ones(width, device=self._device)
        self._trained = [name for name in _PARAMETERS if name in self._tensors]
        for name in self._trained:
            self._tensors[f"first moment of {name}"] = torch.zeros_like(self._tensors[name])
            self._tensors[f"second moment of {name}"] = torch.zeros_like(self._tensors[name])

    def _begun(self, name: str) -> tuple[Tensor, Tensor]:
        generator = generator_of(self._seed, name)
        weights = torch.empty(self._objective.outputs, self._width)
        biases = torch.zeros(self._objective.outputs)
        if self._form.init_std is not None:
            weights.normal_(0, self._form.init_std, generator=generator)
        else:
            bound = self._width**-0.5
            weights.uniform_(-bound, bound, generator=generator)
            biases.uniform_(-bound, bound, generator=generator)
        return weights, biases

    def _of_heads(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One step of every head on ``tokens [B, H, W, D]`` with ``targets [B, h, w]`` (labels, or
        depth in metres) at a size of their own, both on the heads' device. The losses before it,
        ``[heads]``."""
        parameters = [self._tensors[name].detach().requires_grad_() for name in self._trained]
        with torch.enable_grad():
            logits = self._logits(tokens, dict(zip(self._trained, parameters, strict=True)))
        group = self._training.pictures_per_loss or len(tokens)
        parts = torch.split(logits.detach(), group, dim=1)
        groups = list(zip(parts, torch.split(targets, group), strict=True))
        losses, gradient = [], torch.empty_like(logits)
        for place in range(len(self._heads)):
            found = [
                self._objective.slope(some[place], theirs, self._done) for some, theirs in groups
            ]
            losses.append(torch.stack([loss for loss, _ in found]).mean())
            gradient[place] = torch.cat([slope for _, slope in found])
        gradient /= len(groups)
        self._descend(torch.autograd.grad(logits, parameters, gradient))
        self._done += 1
        return torch.stack(losses)

    def _logits(self, tokens: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """``[heads, B, outputs, H, W]``, in training with ``parameters``, else as trained."""
        training = parameters is not None
        of = self._tensors if parameters is None else parameters
        count, height, width, channels = tokens.shape
        if channels != self._width:
            raise ValueError(f"tokens of {channels} channels for heads of {self._width}")
        kept = self._kept(count) if training and self._form.dropout else None
        features = tokens.float()
        if kept is not None and self._form.dropout_before_norm:
            features, kept = features * kept[:, None, None], None
        weights, biases = of["weights"], of["biases"]
        if self._form.batch_norm:
            features = functional.batch_norm(
                features.flatten(0, 2),
                self._tensors["mean"],
                self._tensors["variance"],
                training=training,
                momentum=_NORM_MOMENTUM,
                eps=_NORM_EPS,
            ).view_as(features)
            if kept is None:
                biases = biases + torch.einsum("hkd,hd->hk", weights, of["offsets"])
            else:
                left = kept[:, None] * of["offsets"]
                biases = biases + torch.einsum("hkd,bhd->bhk", weights, left)
            weights = weights * of["gains"][:, None]
        if kept is not None:
            features = features * kept[:, None, None]
        half = self.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half):
            product = features.flatten(0, 2) @ weights.flatten(0, 1).T
        product = product.float().view(count, height, width, *weights.shape[:2])
        if biases.ndim == 3:
            biases = biases[:, None, None]
        return (product + biases).permute(3, 0, 4, 1, 2)

    def _kept(self, pictures: int) -> Tensor:
        """``[B, D]``: 0 for a channel that a picture loses in this step, else what makes up for
        those. Drawn by seed and step alone, so that there is nothing to resume."""
        generator = generator_of(self._seed, f"dropout {self._done}")
        kept = torch.rand(pictures, self._width, generator=generator) >= self._form.dropout
        return kept.to(self._device).float() / (1 - self._form.dropout)

    def _descend(self, gradients: Sequence[Tensor]) -> None:
        """AdamW, in place, with torch's order of operations."""
        training, taken = self._training, self._done + 1
        beta1, beta2 = training.schedule.first_beta(self._done), training.beta2
        if training.clip is not None:
            squares = [each.flatten(1).square().sum(1) for each in gradients]
            norm = torch.stack(squares).sum(0).sqrt()
            less = (training.clip / (norm + 1e-6)).clamp_max(1)
            gradients = [each * _like(less, each) for each in gradients]
        rates = self._rates * training.schedule.share(self._done)
        for name, gradient in zip(self._trained, gradients, strict=True):
            parameter = self._tensors[name]
            first = self._tensors[f"first moment of {name}"]
            second = self._tensors[f"second moment of {name}"]
            parameter.mul_(_like(1 - rates * self._decays, parameter))
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = second.sqrt().div_((1 - beta2**taken) ** 0.5).add_(training.eps)
            parameter.sub_(_like(rates / (1 - beta1**taken), parameter) * first / root)

    @torch.no_grad()
    def maps(self, tokens: Tensor, places: Sequence[int] | None = None) -> Iterator[Tensor]:
        """What every head, or those at ``places``, makes of ``tokens [B, H, W, D]``, before it is
        resized: logits ``[B, classes, H, W]``, or depth ``[B, 1, H', W']``."""
        found = self._logits(tokens)
        for place in range(len(self._heads)) if places is None else places:
            yield self._objective.maps(found[place])

    def predict(
        self, tokens: Tensor, size: tuple[int, int], places: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """The same at the ``size`` of the picture, ``[B, *size]``: classes int64, or metres. One
        head's at a time is in memory, and of its resized logits a few classes."""
        for maps in self.maps(tokens, places):
            yield self._objective.prediction(maps, size)

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self._done

    def finite(self) -> tuple[bool, ...]:
        """Of each head whether its parameters are still numbers: too high a rate ends
        elsewhere."""
        fine = [self._tensors[name].isfinite().flatten(1).all(1) for name in self._trained]
        return tuple(torch.stack(fine).all(0).tolist())

    def head(self, place: int) -> dict[str, Tensor]:
        """One head's ``weights [outputs, D]``, ``biases [outputs]`` and, of its batch norm,
        ``gains``, ``offsets``, ``mean`` and ``variance [D]``."""
        own = {name: self._tensors[name][place] for name in self._trained}
        return own | {
            name: self._tensors[name] for name in ("mean", "variance") if name in self._tensors
        }

    def state(self) -> dict[str, Any]:
        """All that a step changes or draws from, on the CPU."""
        tensors = {name: each.cpu().clone() for name, each in self._tensors.items()}
        return {"steps": self._done, "seed": self._seed, "tensors": tensors}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a ``state`` of the same heads. Raises ``ValueError`` for one of others."""
        shapes = {name: each.shape for name, each in state["tensors"].items()}
        if shapes != {name: each.shape for name, each in self._tensors.items()}:
            raise ValueError("the state is of other heads")
        self._done, self._seed = state["steps"], state["seed"]
        for name, stored in state["tensors"].items():
            self._tensors[name].copy_(stored)


def side_by_side(layers: Sequence[Tensor], summaries: Sequence[Tensor] | None = None) -> Tensor:
    """Patch tokens ``[B, H, W, D]`` of several layers -> ``[B, H, W, sum of D]``; with
    ``summaries [B, D']``, a class token for each layer, behind those of each its own (DINOv2's
    depth heads)."""
    parts = list(layers)
    if summaries is not None:
        parts = []
        for patches, summary in zip(layers, summaries, strict=True):
            everywhere = summary[:, None, None].expand(*patches.shape[:3], -1)
            parts += [patches, everywhere]
    return torch.cat(parts, dim=3)


def _like(values: Tensor, other: Tensor) -> Tensor:
    """``[heads]``, to be multiplied with what every head has several of."""
    return values.view(-1, *[1] * (other.ndim - 1))


def _runs_as(precision: Literal["fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    return precision if device.type == "cuda" else "fp32"
