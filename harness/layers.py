"""Which blocks a protocol means, by a rule that holds for every model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.task import NotApplicable

if TYPE_CHECKING:
    from harness.backbone.vit import Layer

LayerRule = Literal["all", "last", "last:4", "quarters"] | tuple["Layer", ...]


def resolve_layers(rule: LayerRule, depth: int) -> tuple[Layer, ...]:
    """A rule, or layers counted from either end -> block indices from 0, and ``embedding``.

    ``quarters`` are DINOv2's lin. 4 layers (paper, section 7.4): the blocks that end each quarter
    of the depth, but with 24 blocks the published 5, 12, 18, 24. Raises ``NotApplicable`` for a
    layer that the model does not have.
    """
    if rule == "all":
        return tuple(range(depth))
    if rule == "last":
        return (depth - 1,)
    if rule == "last:4":
        rule = (-4, -3, -2, -1)
    if rule == "quarters":
        if depth < 4:
            raise NotApplicable(f"quarters of a model with {depth} blocks")
        if depth == 24:
            return 4, 11, 17, 23
        return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    resolved: list[Layer] = []
    for layer in rule:
        if layer == "embedding":
            resolved.append(layer)
        elif isinstance(layer, int) and -depth <= layer < depth:
            resolved.append(layer % depth)
        else:
            raise NotApplicable(f"layer {layer} of a model with {depth} blocks")
    return tuple(resolved)
