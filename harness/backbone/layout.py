"""Which token is what. The only place that knows the order of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Facet = Literal["token", "query", "key", "value"]
FACETS: tuple[Facet, ...] = ("token", "query", "key", "value")
DenseFacet = Literal["value-path", "value-written", "pooled-alone"]
"""How patches are read one by one (``harness/backbone/value_path.py``): the block's output with its
attention's value path in the place of attention; what that path alone adds; the last block's normed
tokens through attention pooling, each as if it were the only one."""
DENSE_FACETS: tuple[DenseFacet, ...] = ("value-path", "value-written", "pooled-alone")


@dataclass(frozen=True)
class TokenLayout:
    """The order of a backbone's sequence.

    ``prefix``: ``[class][registers][patches]``, timm's order. ``suffix``: the registers come last,
    ``[class][patches][registers]``, as in test-time-registers.
    """

    classes: int
    registers: int
    register_position: Literal["prefix", "suffix"] = "prefix"

    def __post_init__(self) -> None:
        if self.classes not in (0, 1) or self.registers < 0:
            raise ValueError(f"{self}: at most one class token, and no fewer than 0 registers")

    @property
    def extra(self) -> int:
        """Tokens that are not patches."""
        return self.classes + self.registers

    @property
    def patch_slice(self) -> slice:
        if self.register_position == "prefix":
            return slice(self.extra, None)
        return slice(self.classes, -self.registers if self.registers else None)

    @property
    def register_slice(self) -> slice:
        if self.register_position == "prefix":
            return slice(self.classes, self.extra)
        return slice(-self.registers, None) if self.registers else slice(0, 0)

    def registers_from(self, first: int, count: int) -> slice:
        """Where ``count`` of the registers stand, from the one numbered ``first``."""
        if self.register_position == "prefix":
            return slice(self.classes + first, self.classes + first + count)
        start = first - self.registers
        return slice(start, start + count or None) if count else slice(0, 0)

    def join(self, classes: Tensor | None, registers: Tensor | None, patches: Tensor) -> Tensor:
        """Tokens ``[B, ., D]`` of each kind -> one sequence ``[B, N, D]`` in this order."""
        import torch

        parts = [classes, registers, patches]
        if self.register_position == "suffix":
            parts = [classes, patches, registers]
        return torch.cat([part for part in parts if part is not None], dim=1)

    def split(self, sequence: Tensor, grid: tuple[int, int]) -> Tokens:
        """A sequence ``[B, N, D]`` over a patch grid ``(rows, columns)`` -> its kinds."""
        rows, columns = grid
        batch, length, width = sequence.shape
        if length != self.extra + rows * columns:
            raise ValueError(f"{length} tokens do not fit {self} over a {rows}x{columns} grid")
        return Tokens(
            cls=sequence[:, 0] if self.classes else None,
            registers=sequence[:, self.register_slice],
            patches=sequence[:, self.patch_slice].reshape(batch, rows, columns, width),
        )


@dataclass(frozen=True)
class Tokens:
    """The tokens of one layer and facet.

    ``cls [B, D]`` or None, ``registers [B, R, D]``, ``patches [B, H, W, D]``. ``pooled [B, D']`` is
    the model's released global feature where that is not the class token (attention pooling, a mean
    of patches), given for the normed tokens of the last layer only.
    """

    cls: Tensor | None
    registers: Tensor
    patches: Tensor
    pooled: Tensor | None = None

    @property
    def global_(self) -> Tensor:
        """The released global feature ``[B, D']``: pooled where there is one, else the class."""
        feature = self.cls if self.pooled is None else self.pooled
        if feature is None:
            raise ValueError("this layer has neither a pooled feature nor a class token")
        return feature
