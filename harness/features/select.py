"""One feature vector a picture out of its tokens: which token, of which layer, normed or not.

What a classifier is given; or all patches of a picture side by side, for a dense probe. Kinds are
never mixed: which token is a register or a patch is the layout's to say
(``harness/backbone/layout.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from harness.backbone.architecture import Architecture
from harness.backbone.layout import DenseFacet, Facet, Tokens
from harness.backbone.vit import Read
from harness.data.views import View
from harness.errors import HarnessError
from harness.features.outliers import OutlierRule
from harness.task import NotApplicable

TokenName = Literal[
    "global",
    "cls",
    "register",
    "registers-mean",
    "patch",
    "patch-mean",
    "cls+patch-mean",
    "center",
    "outlier",
    "normal",
]
TOKENS: tuple[TokenName, ...] = get_args(TokenName)
DRAWN = frozenset({"register", "patch", "outlier", "normal"})
"""Tokens of which a picture has several: one of them is drawn."""


@dataclass(frozen=True)
class Selector:
    """Which token of a layer stands for the picture, or ``patches``: all of them, row by row.

    ``global``: the released global feature (class token or pooled), of the last layer and normed;
    ``center``: the patch in row H//2, column W//2; ``outlier``, ``normal``: a patch whose norm
    before the final norm is above ``rule``'s cut-off, or not. Of a kind in ``DRAWN`` one token a
    picture is drawn, by ``seed``, ``draw`` and the picture's id alone. With ``half`` values are
    rounded to half precision, and take half the room. Another ``facet`` is what the token is of.
    """

    token: TokenName | Literal["patches"]
    layer: int
    norm: bool = True
    rule: OutlierRule | None = None
    draw: int = 0
    seed: int = 0
    half: bool = False
    facet: Facet | DenseFacet = "token"

    def __post_init__(self) -> None:
        if (self.rule is None) == (self.token in {"outlier", "normal"}):
            raise ValueError(f"{self.token}: a rule belongs to outlier and normal, and to no other")

    @property
    def reads(self) -> frozenset[Read]:
        """What a pass must read for it."""
        reads = {self.read}
        if self.rule is not None:
            reads.add(Read(self.layer, "token", False))
        return frozenset(reads)

    @property
    def read(self) -> Read:
        """Of these tokens it chooses."""
        return Read(self.layer, self.facet, self.norm)

    def facts(self) -> dict[str, Any]:
        """As JSON; what draws nothing has no seed."""
        facts = asdict(self)
        if not self.half:
            del facts["half"]  # as it was before there was any
        if self.facet == "token":
            del facts["facet"]  # so too
        if self.token not in DRAWN:
            del facts["draw"], facts["seed"]
        return facts


class Selected(NamedTuple):
    """``values [B, D]`` float32, or float16 of a ``half`` selector, and ``there [B]``: whether the
    picture has such a token at all (a row without one is 0). Of ``patches`` D is H·W·D, which
    ``patch_grid`` parts again."""

    values: Tensor
    there: Tensor


def applicable(selector: Selector, architecture: Architecture) -> None:
    """Raises ``NotApplicable`` where a model has no such token."""
    layout = architecture.layout
    if selector.token in {"cls", "cls+patch-mean"} and not layout.classes:
        raise NotApplicable("the model has no class token")
    if selector.token in {"register", "registers-mean"} and not layout.registers:
        raise NotApplicable("the model has no registers")
    last_normed = selector.layer == architecture.depth - 1 and selector.norm
    pooled = architecture.global_feature != "class token"
    if selector.token == "global" and pooled and not last_normed:
        raise NotApplicable(
            f"its global feature is the {architecture.global_feature}, which the last layer alone "
            "has, normed"
        )


def width(selector: Selector, architecture: Architecture, view: View | None = None) -> int:
    """How many numbers the feature has (for planning: a pooling that projects may differ).
    ``patches`` need the view, which decides how many there are."""
    if selector.token == "patches":
        padded: tuple[int, int] = getattr(view, "padded")  # noqa: B009 (it has one size)
        height, across = padded
        return architecture.width * (height // architecture.patch) * (across // architecture.patch)
    return architecture.width * (2 if selector.token == "cls+patch-mean" else 1)


def row_bytes(selector: Selector, architecture: Architecture, view: View) -> int:
    """What the feature of one picture takes."""
    return (2 if selector.half else 4) * width(selector, architecture, view)


def patch_grid(values: Tensor, padded: tuple[int, int], patch: int) -> Tensor:
    """What ``patches`` selected, ``[B, H·W·D]`` -> ``[B, H, W, D]``; ``padded`` is the (height,
    width) of the pictures in pixels, as their geometry tells it."""
    return values.reshape(len(values), padded[0] // patch, padded[1] // patch, -1)


def select(
    selector: Selector,
    tokens: Mapping[Read, Tokens],
    ids: Sequence[str],
    cutoffs: Mapping[OutlierRule, float],
) -> Selected:
    """The chosen token of every row; ``ids`` are the rows' pictures.

    Raises ``HarnessError`` where half precision cannot hold a value.
    """
    found = _select(selector, tokens, ids, cutoffs)
    if not selector.half:
        return found
    values = found.values.half()
    if not torch.equal(torch.isfinite(values), torch.isfinite(found.values)):
        raise HarnessError(
            f"the {selector.token} of layer {selector.layer} has values beyond 65,504, which half "
            "precision cannot hold: keep it in single precision (--set stored_as=fp32)"
        )
    return Selected(values, found.there)


def _select(
    selector: Selector,
    tokens: Mapping[Read, Tokens],
    ids: Sequence[str],
    cutoffs: Mapping[OutlierRule, float],
) -> Selected:
    chosen = tokens[selector.read]
    patches = chosen.patches.flatten(1, 2)
    everywhere = torch.ones(len(ids), dtype=torch.bool, device=patches.device)
    match selector.token:
        case "global":
            values = chosen.global_
        case "cls":
            values = _cls(chosen)
        case "registers-mean":
            values = chosen.registers.float().mean(1)
        case "patch-mean":
            values = patches.float().mean(1)
        case "cls+patch-mean":
            values = torch.cat([_cls(chosen).float(), patches.float().mean(1)], dim=1)
        case "patches":
            values = patches.flatten(1)
        case "center":
            rows, columns = chosen.patches.shape[1:3]
            values = chosen.patches[:, rows // 2, columns // 2]
        case "register":
            return _drawn(selector, chosen.registers, _all(chosen.registers), ids)
        case "patch":
            return _drawn(selector, patches, _all(patches), ids)
        case "outlier" | "normal":
            assert selector.rule is not None
            raw = tokens[Read(selector.layer, "token", False)].patches.flatten(1, 2)
            beyond = raw.float().norm(dim=-1) > cutoffs[selector.rule]
            wanted = beyond if selector.token == "outlier" else ~beyond
            return _drawn(selector, patches, wanted, ids)
    return Selected(values.float(), everywhere)


def _cls(tokens: Tokens) -> Tensor:
    if tokens.cls is None:
        raise ValueError("this layer has no class token")
    return tokens.cls


def _all(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _drawn(selector: Selector, tokens: Tensor, wanted: Tensor, ids: Sequence[str]) -> Selected:
    """One of the ``wanted [B, N]`` among ``tokens [B, N, D]`` of every row."""
    rows, places, there = [], [], []
    for row, mask in enumerate(wanted.cpu().numpy()):
        candidates = mask.nonzero()[0]
        there.append(bool(len(candidates)))
        if len(candidates):
            text = f"{selector.seed} {selector.draw} {ids[row]}"
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            rows.append(row)
            places.append(int(candidates[number % len(candidates)]))
    values = torch.zeros(len(ids), tokens.shape[-1], device=tokens.device)
    if rows:
        values[rows] = tokens[rows, places].float()
    return Selected(values, torch.tensor(there, device=tokens.device))
