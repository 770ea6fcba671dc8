"""All that decides how a ViT is trained, in one frozen object, and what may stand in it.

The recipe is DINO's self-distillation with several crops (arXiv:2104.14294) and iBOT's masked
patches (arXiv:2111.07832), put together as in DINOv2 (arXiv:2304.07193), which is what the
registers paper trained (arXiv:2309.16588); with ``objective="clip"`` it is CLIP's
(arXiv:2103.00020, ``contrast.py``). The defaults are for short runs on a processor: some
1,250 steps of 32 pictures. Where the papers' own value is another, it stands beside the field.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from harness.documents import check_name, unknown
from harness.errors import HarnessError

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16")
ObjectiveName = Literal["distillation", "clip"]
OBJECTIVES: tuple[ObjectiveName, ...] = ("distillation", "clip")
BATCH_SIZES: Mapping[ObjectiveName, int] = {"distillation": 32, "clip": 128}
"""Where none is asked for. A picture of CLIP is told from the others of its batch: the larger, the
more there is to tell."""
Centering = Literal["sinkhorn", "mean"]
STEPS = 1250
MAX_REGISTERS = 64

ARCHITECTURE = "vit_tiny_patch16_224"
"""timm's name; every size is this class with other arguments."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's. The entry says so too: timm's own for ``ARCHITECTURE`` are 0.5 and 0.5."""


@dataclass(frozen=True)
class Size:
    """Width in channels, patch and crops in pixels."""

    width: int
    depth: int
    heads: int
    patch: int
    crop: int
    local_crop: int


SIZES: Mapping[str, Size] = {
    "nano": Size(width=128, depth=12, heads=4, patch=8, crop=96, local_crop=48),
    "tiny": Size(width=192, depth=12, heads=3, patch=16, crop=224, local_crop=96),
    "small": Size(width=384, depth=12, heads=6, patch=16, crop=224, local_crop=96),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``harness pretrain``. Two recipes that differ in ``registers`` alone train a pair."""

    data: str
    """A data set of the catalog, or a folder of pictures."""
    out: Path
    objective: ObjectiveName = "distillation"
    size: str = "nano"
    registers: int = 0
    name: str | None = None
    """Of the entry and the weights' file; None is ``<size>`` or ``<size>-reg<n>``, of clip
    ``<size>-clip`` and ``<size>-clip-reg<n>``."""

    steps: int | None = None
    epochs: int | None = None
    """At most one of the two; neither is ``STEPS`` steps."""
    batch_size: int = 32
    seed: int = 0
    precision: Precision = "auto"
    """Of the forward pass: auto is bf16 on a GPU, fp32 on a CPU. Losses are fp32 always."""

    # Crops: sides in pixels, None is the size's own; scales are shares of the picture's area.
    crop: int | None = None
    local_crop: int | None = None
    depth: int | None = None
    """Blocks; None is the size's own."""
    local_crops: int = 4  # DINOv2: 8
    crop_scale: tuple[float, float] = (0.5, 1.0)  # DINO ViT: 0.25 to 1; DINOv2: 0.32 to 1
    local_crop_scale: tuple[float, float] = (0.15, 0.5)  # DINO ViT: 0.05 to 0.25

    # Masked patches: of half of the global crops, a tenth to a half (DINOv2's values).
    masked_pictures: float = 0.5
    masked_share: tuple[float, float] = (0.1, 0.5)

    # Heads. DINO, iBOT: 65,536 (8,192 for patches) outputs, hidden 2,048, bottleneck 256.
    head_outputs: int = 512
    head_hidden: int = 512
    head_bottleneck: int = 128
    head_batch_norm: bool = True
    """DINO leaves it out for ViTs. It takes away what all answers have in common, without which
    they stay alike for the first thousand steps."""
    shared_head: bool = False  # iBOT shares one head; DINOv2 found two better (section 4)

    # Losses, weighted as in DINOv2.
    class_weight: float = 1.0
    patch_weight: float = 1.0
    koleo_weight: float = 0.0  # DINOv2: 0.1, on batches of thousands
    label_weight: float = 0.0
    """Of naming, from the class token, what the data set says of the picture (``labels.py``)."""
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.02, 0.02)
    """From and to, linearly over ``teacher_warm_up`` of the run. DINOv2 warms up to 0.07 in
    37,500 steps; within a few hundred that made all answers alike (entropy log K)."""
    teacher_warm_up: float = 0.3
    centering: Centering = "sinkhorn"
    """DINOv2's Sinkhorn-Knopp, or DINO's and iBOT's running mean, with its momentum."""
    center_momentum: float = 0.9

    # The objective clip: its text tower, and the space that both towers share. CLIP ViT-B: width
    # 512, 12 blocks, 8 heads, context 77, 512 numbers shared, 49,408 byte pairs for words.
    text_width: int = 128
    text_depth: int = 3
    text_heads: int = 4
    context: int = 32
    """Words of a caption, and one more for the start."""
    shared: int = 128
    vocabulary: int = 8192
    """The words of the captions that occur most often, at most so many."""

    # Optimisation. Warm-ups and freezes are shares of the run, so that they suit any length.
    learning_rate: float = 5e-4  # DINOv2: 4e-3 · sqrt(batch / 1024), 7e-4 at 32
    final_learning_rate: float = 1e-6
    warm_up: float = 0.05
    weight_decay: tuple[float, float] = (0.04, 0.4)  # DINO's, cosine
    momentum: tuple[float, float] = (0.99, 1.0)  # DINO: 0.996 to 1, for runs 100 times as long
    frozen_last_layer: float = 0.04  # DINO: the first epoch
    clip: float = 3.0  # DINO, DINOv2
    token_std: float = 0.02
    """Of the class token's and the registers' first values. DINOv2 draws both at 1e-6, which a
    short run hardly leaves: all registers would stay one."""

    # Where and how it runs: none of these moves a number but by the machine's rounding.
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    checkpoint_every: int = 250
    log_every: int = 25
    overwrite: bool = False
    baseline: Path | None = None
    """The ``out`` of the run without registers, for the entry's ``baseline:``."""
    dataset_files: tuple[Path, ...] = ()
    data_root: Path | None = None
    command: tuple[str, ...] = ()
    """As it was typed, for the comment in models.yaml."""

    @property
    def facts(self) -> Size:
        """The size with the crops and the depth that were asked for."""
        own = SIZES[self.size]
        return dataclasses.replace(
            own,
            crop=self.crop or own.crop,
            local_crop=self.local_crop or own.local_crop,
            depth=self.depth or own.depth,
        )

    @property
    def model_name(self) -> str:
        own = f"{self.size}-clip" if self.objective == "clip" else self.size
        return self.name or (own if not self.registers else f"{own}-reg{self.registers}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``timm.create_model(ARCHITECTURE, ...)`` is given, here and by the registry."""
        facts = self.facts
        return {
            "img_size": facts.crop,
            "patch_size": facts.patch,
            "embed_dim": facts.width,
            "depth": facts.depth,
            "num_heads": facts.heads,
            "reg_tokens": self.registers,
            # Positions of patches only: the same parameter with and without registers.
            "no_embed_class": True,
        }

    def changed(self, settings: Mapping[str, object]) -> Recipe:
        """This recipe with some of the fields set that have no option of their own (``--set``).

        Raises ``HarnessError`` for another field, or a value that is none of its kind.
        """
        possible = settable(self.objective)
        for name in settings:
            if name not in possible:
                kind = "setting" if self.objective == OBJECTIVES[0] else "setting of clip"
                raise unknown(kind, name, possible, "docs/nano.md")
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        try:
            return TypeAdapter(Recipe).validate_python({**plain, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise HarnessError(
                f"--set {where}: {first['msg']} (given: {first['input']!r})"
            ) from None

    def total_steps(self, pictures: int) -> int:
        """Steps of the whole run; an epoch leaves out what does not fill a batch."""
        if self.epochs is not None:
            return self.epochs * (pictures // self.batch_size)
        return self.steps or STEPS

    def check(self) -> None:
        """Raises ``HarnessError`` for what cannot be trained, named as it is typed."""
        if self.size not in SIZES:
            raise unknown("size", self.size, SIZES, "harness pretrain --help")
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES, "harness pretrain --help")
        check_name("model", self.model_name)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS, "harness pretrain --help")
        if self.steps is not None and self.epochs is not None:
            raise HarnessError("--steps and --epochs: give one of them")
        whole: list[tuple[str, int | None, int, int]] = [
            ("--registers", self.registers, 0, MAX_REGISTERS),
            ("--steps", self.steps, 1, 10**9),
            ("--epochs", self.epochs, 1, 10**6),
            ("--batch-size", self.batch_size, 2, 65_536),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--crop", self.crop, 1, 4096),
            ("--local-crop", self.local_crop, 1, 4096),
            ("--local-crops", self.local_crops, 0, 64),
            ("depth", self.depth, 1, 1000),
            ("--workers", self.workers, 0, 1024),
            ("--threads", self.threads, 1, 1024),
            ("checkpoint_every", self.checkpoint_every, 1, 10**9),
            ("log_every", self.log_every, 1, 10**9),
            ("text_width", self.text_width, 1, 4096),
            ("text_depth", self.text_depth, 1, 64),
            ("text_heads", self.text_heads, 1, 4096),
            ("context", self.context, 2, 1024),
            ("shared", self.shared, 1, 4096),
            ("vocabulary", self.vocabulary, 1, 65_536),
        ]
        if not 0 <= self.label_weight < math.inf:
            raise HarnessError(f"--labels {self.label_weight}: a weight of 0 or more is needed")
        for option, value, low, high in whole:
            if value is not None and not low <= value <= high:
                raise HarnessError(f"{option} {value}: from {low} to {high:,} is possible")
        if self.text_width % self.text_heads:
            raise HarnessError(
                f"text_heads {self.text_heads}: do not divide text_width, {self.text_width}"
            )
        if self.objective == "clip" and self.label_weight:
            raise HarnessError("--labels: of --objective distillation; clip learns from captions")
        facts = self.facts
        for option, side in (("--crop", facts.crop), ("--local-crop", facts.local_crop)):
            if side % facts.patch:
                lower = side // facts.patch * facts.patch or facts.patch
                raise HarnessError(
                    f"{option} {side}: the patch of {self.size}, {facts.patch} pixels, does not "
                    f"divide it; {lower} or {lower + facts.patch} would do"
                )
        for name in ("crop_scale", "local_crop_scale", "masked_share"):
            low_share, high_share = getattr(self, name)
            if not 0 < low_share <= high_share <= 1:
                raise HarnessError(
                    f"{name} {low_share}, {high_share}: shares from 0 to 1, in order"
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(least <= number < math.inf for number in numbers):
                raise HarnessError(
                    f"{name} {value}: finite numbers of at least {least:g} are needed"
                )
        for name in (
            "masked_pictures",
            "teacher_warm_up",
            "center_momentum",
            "warm_up",
            "momentum",
        ):
            value = getattr(self, name)
            shares = value if isinstance(value, tuple) else (value,)
            if not all(0 <= share <= 1 for share in shares):
                raise HarnessError(f"{name} {value}: from 0 to 1 is possible")
        if min(self.teacher_temperature) < 0.02:
            raise HarnessError("teacher_temperature: below 0.02 an exponential leaves fp32")

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, as JSON has them."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _MACHINE | _NOT_OF[self.objective]
        }
        plain["name"], plain["crop"] = self.model_name, self.facts.crop
        if "local_crop" in plain:
            plain["local_crop"] = self.facts.local_crop
        loaded: dict[str, Any] = json.loads(json.dumps(plain))
        return loaded


def settable(objective: ObjectiveName = "distillation") -> tuple[str, ...]:
    """The fields that `--set` may change: those of the objective without an option of their own."""
    fields = (field.name for field in dataclasses.fields(Recipe))
    return tuple(name for name in fields if name not in _OPTIONS | _NOT_OF[objective])


_MACHINE = frozenset(
    {
        *("out", "device", "workers", "threads", "checkpoint_every", "log_every", "overwrite"),
        *("baseline", "dataset_files", "data_root", "command"),
    }
)
_NOT_OF: Mapping[ObjectiveName, frozenset[str]] = {
    # Its own name too: a recipe of before there were two is still the same recipe.
    "distillation": frozenset(
        {
            *("objective", "text_width", "text_depth", "text_heads", "context", "shared"),
            "vocabulary",
        }
    ),
    "clip": frozenset(
        {
            *("local_crop", "local_crops", "local_crop_scale", "masked_pictures", "masked_share"),
            *("head_outputs", "head_hidden", "head_bottleneck", "head_batch_norm", "shared_head"),
            *("class_weight", "patch_weight", "koleo_weight", "label_weight", "centering"),
            *("student_temperature", "teacher_temperature", "teacher_warm_up", "center_momentum"),
            *("momentum", "frozen_last_layer"),
        }
    ),
}
"""Fields that decide nothing of the objective."""
_AT_LEAST: Mapping[str, float] = {
    **dict.fromkeys(("head_outputs", "head_hidden", "head_bottleneck"), 2),
    **dict.fromkeys(("class_weight", "patch_weight", "koleo_weight"), 0),
    **dict.fromkeys(("learning_rate", "final_learning_rate", "weight_decay", "token_std"), 0),
    **dict.fromkeys(("student_temperature", "clip"), 1e-6),
}
# Fields that `--set` leaves to options of their own.
_OPTIONS = (_MACHINE - {"checkpoint_every", "log_every"}) | {
    *("data", "size", "registers", "name", "steps", "epochs", "batch_size", "seed", "precision"),
    *("crop", "local_crop", "local_crops", "label_weight", "objective"),
}
