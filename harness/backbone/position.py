"""Position embeddings at other sizes, resampled as each family was released.

DINO and DINOv2 without registers resample bicubically *without* antialiasing and enlarge the target
grid by 0.1 to step around a rounding problem; DINOv2 with registers antialiases and adds nothing
(hub/backbones.py of dinov2: ``interpolate_antialias``, ``interpolate_offset``). timm always does
the latter. A with/without comparison that ignores this compares two interpolations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PositionRule:
    """How a release resamples its position embedding; the defaults are timm's."""

    antialias: bool = True
    offset: float = 0.0


def resample(
    embedding: Tensor, stored: tuple[int, int], grid: tuple[int, int], rule: PositionRule
) -> Tensor:
    """Patch position embedding ``[1, rows*columns, D]`` of ``stored`` -> the same for ``grid``.

    Computed in float32. At the stored grid the embedding is returned as it is, offset or not.
    """
    if grid == stored:
        return embedding
    width = embedding.shape[-1]
    plane = embedding.float().reshape(1, *stored, width).permute(0, 3, 1, 2)
    if rule.offset:
        # The scale itself enters the sampling positions, so it cannot be replaced by a size.
        rows, columns = ((new + rule.offset) / old for new, old in zip(grid, stored, strict=True))
        plane = F.interpolate(
            plane, scale_factor=(rows, columns), mode="bicubic", antialias=rule.antialias
        )
    else:
        plane = F.interpolate(plane, size=grid, mode="bicubic", antialias=rule.antialias)
    if plane.shape[-2:] != grid:
        raise ValueError(f"resampling {stored} to {grid} gave {tuple(plane.shape[-2:])}")
    return plane.permute(0, 2, 3, 1).reshape(1, -1, width).to(embedding.dtype)
