"""What is known of a backbone without its weights, read off a timm module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from harness.backbone.layout import TokenLayout
from harness.backbone.position import PositionRule
from harness.errors import HarnessError


@dataclass(frozen=True)
class Architecture:
    """What is known of a backbone without its weights."""

    layout: TokenLayout
    patch: int
    depth: int
    width: int
    heads: int
    stored_grid: tuple[int, int]
    parameters: int
    global_feature: Literal["class token", "mean of patches", "attention pooling"]
    position: PositionRule | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    attends: bool = True
    """Whether every block has attention of one softmax a head, whose rows can be read."""

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the position embedding was stored for."""
        rows, columns = self.stored_grid
        return rows * self.patch, columns * self.patch


def architecture_of(
    name: str,
    module: nn.Module,
    position: PositionRule | None,
    statistics: tuple[tuple[float, float, float], tuple[float, float, float], str],
) -> Architecture:
    """Read the facts off a timm ``VisionTransformer`` or ``Eva``; anything else is refused."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    from harness.backbone.attention import has_rows

    if not isinstance(module, VisionTransformer | Eva):
        raise HarnessError(
            f"model {name!r}: {type(module).__name__} is not supported; a timm VisionTransformer "
            f"or Eva was expected"
        )
    model: Any = module
    if not len(model.blocks):
        raise HarnessError(f"model {name!r}: has no blocks")
    first = model.blocks[0]
    if not (hasattr(first, "norm1") and hasattr(first, "attn")) or "Post" in type(first).__name__:
        raise HarnessError(f"model {name!r}: blocks of type {type(first).__name__} are unsupported")
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    layout = TokenLayout(0 if model.cls_token is None else 1, registers)
    if model.num_prefix_tokens != layout.extra:  # a distilled DeiT has a second class token
        raise HarnessError(
            f"model {name!r}: {model.num_prefix_tokens} tokens of {type(module).__name__} are not "
            f"patches, and {layout.classes} class token and {layout.registers} registers are known"
        )
    if not isinstance(model.patch_embed, PatchEmbed):
        raise HarnessError(
            f"model {name!r}: patches from a {type(model.patch_embed).__name__} are unsupported"
        )
    if getattr(model, "rope", None) is not None and not model.dynamic_img_size:
        raise HarnessError(f"model {name!r}: build rotary models with dynamic_img_size=True")
    # A factory may build a model that runs its tokens in another order.
    own, layout = layout, getattr(model, "token_layout", layout)
    if (layout.classes, layout.registers) != (own.classes, own.registers):
        raise HarnessError(f"model {name!r}: its token_layout is {layout}, its tokens are {own}")
    if layout.register_position == "suffix" and getattr(model, "rope", None) is not None:
        raise HarnessError(f"model {name!r}: rotary models need their registers in front")
    pooling: Literal["class token", "mean of patches", "attention pooling"]
    if model.attn_pool is not None:
        pooling = "attention pooling"
    elif model.global_pool in {"token", "avg"}:
        pooling = "class token" if model.global_pool == "token" else "mean of patches"
    else:
        raise HarnessError(
            f"model {name!r}: global_pool {model.global_pool!r} is unknown; token, avg or map"
        )
    if pooling == "class token" and not layout.classes:
        raise HarnessError(f"model {name!r}: pools a class token that it does not have")
    mean, std, interpolation = statistics
    rows, columns = model.patch_embed.grid_size
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise HarnessError(f"model {name!r}: patches of {patch[0]}x{patch[1]} are not square")
    return Architecture(
        layout=layout,
        patch=patch[0],
        depth=len(model.blocks),
        width=model.embed_dim,
        heads=first.attn.num_heads,
        stored_grid=(rows, columns),
        parameters=sum(p.numel() for p in model.parameters()),
        global_feature=pooling,
        position=None if model.pos_embed is None else (position or PositionRule()),
        mean=mean,
        std=std,
        interpolation=interpolation,
        attends=all(
            has_rows(getattr(block, "attn", None)) and getattr(block, "attends", True)
            for block in model.blocks
        ),
    )
