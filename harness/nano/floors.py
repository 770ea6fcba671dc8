"""The floors under every table: a backbone that passes pixels on, and one that knows nothing.

Both are timm ``VisionTransformer`` whose blocks leave every token as it is and whose queries, keys
and values are the tokens themselves, so that each layer and facet, normed or not, gives the same.
They have no class token, no registers and no positions; the global feature is the mean of the
patches. A score that is not above ``pixels`` owes nothing to the backbone, and one that is not
above ``chance`` owes nothing to the picture.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

_CHANNELS = 3
_WORD = 8  # bytes in an int64
_TOP_BIT = 1 << 63


def pixels(patch: int = 8, depth: int = 4) -> nn.Module:
    """A backbone whose tokens are the patches' own normalised pixels, ``3 * patch * patch`` numbers
    in the order of a patch embedding's weights: channel, row, column.

    Raises ``ValueError`` for a
    patch or a depth below 1.
    """
    module: nn.Module = _floor(_PixelsOfPatches, patch, depth, width=_CHANNELS * patch * patch)
    return module


def chance(patch: int = 8, depth: int = 4, width: int = 64, seed: int = 0) -> nn.Module:
    """A backbone whose tokens are noise: ``width`` numbers between -1 and 1, evenly spread about 0.

    They are a hash of the patch's 8-bit pixels, its place in the grid, and ``seed``: the same on
    every machine and in every batch, other for the same pixels at another place, and silent about
    what the picture shows. The hash needs the 8-bit values back, so the entry must say
    ``input: {mean: [0, 0, 0], std: [1, 1, 1]}``.

    Each number is one of the 256 odd multiples of 1/256, which every precision holds exactly; dot
    products of two tokens and sums over up to 65,536 patches are exact in float32 too.

    Raises ``ValueError`` for a patch or depth below 1, a width that is no multiple of 8, and a seed
    outside 0 … 2^63 - 1.
    """
    if width < 1 or width % _WORD:
        raise ValueError(f"width {width} is no multiple of {_WORD}")
    if not 0 <= seed < _TOP_BIT:
        raise ValueError(f"seed {seed}: from 0 to 2**63 - 1")
    noise = _floor(_NoiseOfPatches, patch, depth, width)
    noise.patch_embed.seed.fill_(seed)
    module: nn.Module = noise
    return module


def _floor(embed: type[nn.Module], patch: int, depth: int, width: int) -> Any:
    if patch < 1 or depth < 1:
        raise ValueError(f"patch {patch} and depth {depth} must be at least 1")
    module: Any = VisionTransformer(
        img_size=28 * patch,  # a grid of 28x28, as 224 pixels have with the default patch
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=1,
        mlp_ratio=1,
        qkv_bias=False,
        proj_bias=False,
        class_token=False,
        pos_embed="none",
        global_pool="avg",
        num_classes=0,
        dynamic_img_size=True,
        norm_layer=nn.Identity,
        embed_layer=embed,
        block_fn=_Unchanged,
    )
    identity = torch.eye(width)
    with torch.no_grad():
        for block in module.blocks:
            block.attn.qkv.weight.copy_(torch.cat((identity, identity, identity)))
            # What `_Unchanged` leaves out adds nothing either way: the weights say so too.
            for added in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                added.weight.zero_()
    return module


class _Unchanged(Block):  # type: ignore[misc]  # timm's types are not read
    """A transformer block that spares itself the attention and the MLP, whose weights are zero."""

    attends = False

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


class _PixelsOfPatches(PatchEmbed):  # type: ignore[misc]
    """``[B, 3, H, W]`` -> ``[B, rows, columns, 3 * patch * patch]``, moving pixels and no more.

    A convolution with the identity would do the same, but not bit for bit on every device.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.proj = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return _patches(x, self.patch_size[0])


class _NoiseOfPatches(PatchEmbed):  # type: ignore[misc]
    """``[B, 3, H, W]`` -> ``[B, rows, columns, width]``: a hash of each patch as numbers."""

    seed: Tensor

    def __init__(self, *, embed_dim: int, **arguments: Any) -> None:
        super().__init__(embed_dim=embed_dim, **arguments)
        self.proj = nn.Identity()
        self._width = embed_dim
        # Kept with the weights, so that another seed has another digest.
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        levels = (x.float() * 255).round().to(torch.int64)
        patches = _patches(levels, self.patch_size[0])
        rows, columns = patches.shape[1:3]
        row = torch.arange(rows, device=x.device)[:, None]
        column = torch.arange(columns, device=x.device)
        state = _mix(self.seed ^ (row << 32 | column)).expand(patches.shape[:3])
        for word in _words(patches).unbind(-1):
            state = _mix(state ^ word)
        # SplitMix64 itself: a counter added to the state, and mixed.
        steps = torch.arange(1, self._width // _WORD + 1, device=x.device) * _GOLDEN
        noise = _mix(state[..., None] + steps)
        octets = torch.stack([noise >> shift & 255 for shift in range(0, 64, 8)], dim=-1)
        return (2 * octets.flatten(-2) - 255).to(torch.float32) / 256


def _patches(values: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H / patch, W / patch, n]``, n: channel, row, column of a patch."""
    return F.pixel_unshuffle(values, patch).permute(0, 2, 3, 1)


def _words(levels: Tensor) -> Tensor:
    """8-bit levels ``[..., n]`` (int64) -> ``[..., ceil(n / 8)]``, eight to a word."""
    whole = F.pad(levels, (0, -levels.shape[-1] % _WORD))
    shifts = torch.arange(0, 64, 8, device=levels.device)
    return (whole.reshape(*whole.shape[:-1], -1, _WORD) << shifts).sum(-1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= _TOP_BIT else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _mix(values: Tensor) -> Tensor:
    """Scatter int64 values over 64 bits: SplitMix64's step (Steele et al., 2014), with wrap-around.

    The same as ``harness.data.generated.mix``, which works on numpy's unsigned numbers.
    """
    mixed = values + _GOLDEN
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shifted right with zeros coming in, as unsigned numbers are; torch brings in the sign."""
    shifted: Tensor = values >> by
    return shifted & ((1 << (64 - by)) - 1)
