"""A student that learns what its own moving average says of other crops and of masked patches.

DINO's loss on class tokens (arXiv:2104.14294), iBOT's on masked patches (arXiv:2111.07832) and
KoLeo's spread of class tokens (arXiv:1806.03198), as DINOv2 adds them up (arXiv:2304.07193).
Losses, heads and masks are lightly's. Registers are learned tokens that no loss reads
(arXiv:2309.16588).
"""

from __future__ import annotations

import os
import random
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone.layout import TokenLayout
from harness.errors import HarnessError
from harness.nano.labels import Labels
from harness.nano.network import build_vit, mixed, seeded
from harness.nano.recipe import Recipe

# Releases before 1.6 ask a server for the newest version when imported, unless told not to.
os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
try:
    from lightly.loss.dino_loss import DINOLoss
    from lightly.loss.ibot_loss import IBOTPatchLoss
    from lightly.loss.koleo_loss import KoLeoLoss
    from lightly.loss.swav_loss import sinkhorn
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.utils import random_block_mask
except ImportError as error:
    raise HarnessError(
        f"pretraining needs lightly ({error}): pip install 'vit-harness[train]'"
    ) from None


_ITERATIONS = 3  # of Sinkhorn-Knopp: DINOv2's


@dataclass(frozen=True)
class Losses:
    """Of one step, each a scalar; ``logits`` are the teacher's of the class tokens, ``[2B, K]``."""

    total: Tensor
    of_classes: Tensor
    of_patches: Tensor
    of_labels: Tensor
    koleo: Tensor
    logits: Tensor


class Network(nn.Module):
    """A timm ViT, the token that stands for a masked patch, and the heads."""

    def __init__(self, recipe: Recipe, answers: int) -> None:
        super().__init__()
        width = recipe.facts.width
        self.vit: Any = build_vit(recipe)
        self.layout = TokenLayout(1, recipe.registers)
        self.mask_token = nn.Parameter(torch.zeros(width))
        with seeded(recipe.seed, 2), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lightly's head still uses torch's older weight_norm
            self.class_head = _head(recipe)
            self.patch_head = self.class_head if recipe.shared_head else _head(recipe)
            self.label_head = nn.Linear(width, answers) if answers else nn.Identity()

    def forward(self, pictures: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures ``[B, 3, S, S]`` -> class tokens ``[B, D]``, patches ``[B, H, W, D]``, normed.

        Where ``masks [B, H, W]`` is true, the mask token stands in the patch's place. It is put
        there before positions are added, so that the student knows where it has to guess.
        """
        vit = self.vit
        embedded = vit.patch_embed(pictures)
        if masks is not None:
            token = self.mask_token.to(embedded.dtype)
            embedded = torch.where(masks.unsqueeze(-1), token, embedded)
        rows, columns = embedded.shape[1:3]
        sequence = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(embedded))))
        tokens = self.layout.split(sequence, (rows, columns))
        assert tokens.cls is not None
        return tokens.cls, tokens.patches


def _head(recipe: Recipe) -> Any:
    return DINOProjectionHead(
        input_dim=recipe.facts.width,
        hidden_dim=recipe.head_hidden,
        bottleneck_dim=recipe.head_bottleneck,
        output_dim=recipe.head_outputs,
        batch_norm=recipe.head_batch_norm,
        freeze_last_layer=1,  # epochs; here an epoch is what cancel_last_layers is called for
    )


class Distillation(nn.Module):
    """Student, teacher and losses. A step changes its state dict and the optimiser's, no more."""

    def __init__(self, recipe: Recipe, labels: Labels | None = None) -> None:
        super().__init__()
        self._labels = labels
        answers = 0 if labels is None else labels.answers
        self.student, self.teacher = Network(recipe, answers), Network(recipe, answers)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        # Sinkhorn-Knopp does the centering before these losses: their own centers stay 0 then.
        momentum = recipe.center_momentum if recipe.centering == "mean" else 1.0
        self.class_loss = DINOLoss(
            output_dim=recipe.head_outputs,
            student_temp=recipe.student_temperature,
            center_momentum=momentum,
        )
        self.patch_loss = IBOTPatchLoss(
            output_dim=recipe.head_outputs,
            student_temp=recipe.student_temperature,
            center_momentum=momentum,
        )
        self.koleo = KoLeoLoss()
        self._centering = recipe.centering
        self._weights = (
            recipe.class_weight,
            recipe.patch_weight,
            recipe.label_weight,
            recipe.koleo_weight,
        )

    def forward(
        self,
        crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        pictures: Tensor,
        teacher_temperature: float,
        autocast: torch.dtype | None = None,
    ) -> Losses:
        """The losses of one step; moves the centers.

        ``crops [2B, 3, S, S]``: the first global crop of every picture, then the second;
        ``local_crops [L·B, 3, s, s]`` likewise; ``masks [2B, H, W]`` of ``crops``;
        ``pictures [B]`` are their places in the data set, for its labels. The ViTs run
        under ``autocast``; heads and losses in fp32, because a softmax at temperature 0.04 makes
        25 of a rounding of 1.
        """

        places = masks.flatten().nonzero().squeeze(1)
        with torch.no_grad():
            with mixed(crops.device, autocast):
                classes, patches = self.teacher(crops)
            teacher_classes = self.teacher.class_head(classes.float())
            teacher_patches = self.teacher.patch_head(patches.flatten(0, 2)[places].float())
        with mixed(crops.device, autocast):
            classes, patches = self.student(crops, masks)
            locals_ = self.student(local_crops)[0] if len(local_crops) else classes[:0]
        classes, locals_ = classes.float(), locals_.float()
        student_classes = self.student.class_head(torch.cat([classes, locals_]))
        student_patches = self.student.patch_head(patches.flatten(0, 2)[places].float())

        count = len(pictures)
        of_classes = self.class_loss(
            list(self._centered(teacher_classes, teacher_temperature).chunk(2)),
            list(student_classes.split(count)),
            teacher_temp=teacher_temperature,
        )
        of_patches = classes.sum() * 0  # where nothing was masked there is no mean to take
        if len(places):
            of_patches = self.patch_loss(
                self._centered(teacher_patches, teacher_temperature),
                student_patches,
                masks,
                teacher_temp=teacher_temperature,
            )
        koleo = sum((self.koleo(view) for view in classes.split(count)), classes.sum() * 0)
        of_labels = classes.sum() * 0
        if self._labels is not None:
            of_labels = self._labels.loss(self.student.label_head(classes), pictures)
        parts = (of_classes, of_patches, of_labels, koleo)
        total = sum(
            (weight * part for weight, part in zip(self._weights, parts, strict=True) if weight),
            classes.sum() * 0,
        )
        return Losses(total, of_classes, of_patches, of_labels, koleo, teacher_classes)

    def _centered(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits ``[N, K]`` whose softmax at ``temperature`` uses all ``K`` answers alike often."""
        if self._centering == "mean":
            return logits
        answers: Tensor = sinkhorn(logits, iterations=_ITERATIONS, epsilon=temperature)
        return temperature * answers.clamp_min(1e-30).log()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher's weights become ``momentum`` of themselves and the rest the student's."""
        teachers: list[Tensor] = list(self.teacher.parameters())
        students: list[Tensor] = list(self.student.parameters())
        # t + (1 - m) (s - t): what is equal stays so to the last bit.
        torch._foreach_lerp_(teachers, students, 1 - momentum)

    def cancel_last_layers(self) -> None:
        """Drop the last layers' gradients, which DINO does in the first epoch."""
        for head in (self.student.class_head, self.student.patch_head):
            head.cancel_last_layer_gradients(current_epoch=0)


def draw_masks(recipe: Recipe, step: int) -> Tensor:
    """Which patches of the ``2B`` global crops are masked at ``step``, boolean ``[2B, H, W]``.

    lightly draws blocks from Python's global generator: it is seeded by the seed and the step, and
    the caller's state is put back.
    """
    side = recipe.facts.crop // recipe.facts.patch
    low, high = recipe.masked_share
    low = max(low, 1.001 / side**2)  # lightly refuses to mask less than a patch
    before = random.getstate()
    random.seed(f"masks {recipe.seed} {step}")
    try:
        masks: Tensor = random_block_mask(
            (2 * recipe.batch_size, side, side),
            batch_mask_ratio=recipe.masked_pictures,
            min_image_mask_ratio=low,
            max_image_mask_ratio=max(low, high),
            min_num_masks_per_block=max(1, min(4, int(low * side**2))),
        )
    finally:
        random.setstate(before)
    return masks
