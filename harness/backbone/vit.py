"""A frozen ViT: images and a request -> tokens, in one pass that stops where the request ends."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.backbone.architecture import Architecture
from harness.backbone.arithmetic import exact_float32
from harness.backbone.attention import Received, attention_rows, has_rows, project, received
from harness.backbone.interventions import Intervention
from harness.backbone.layout import (
    DENSE_FACETS,
    FACETS,
    DenseFacet,
    Facet,
    TokenLayout,
    Tokens,
)
from harness.backbone.position import PositionRule, resample
from harness.backbone.value_path import pooled_alone, value_path, value_written
from harness.backbone.weights import digest
from harness.errors import HarnessError

Layer = int | Literal["embedding"]
Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def runs_as(wanted: Precision, device: str) -> Precision:
    """What a precision runs as on a kind of device (``cpu``, ``cuda``)."""
    return "fp32" if wanted == "fp16" and device == "cpu" else wanted


class Read(NamedTuple):
    """One thing to read in a pass: a resolved layer (0 is the first block), a facet, normed or not.

    ``norm`` applies the final norm to the residual stream, and to what a value path gives; queries,
    keys and values have none.
    The layer ``embedding`` is the patch embedding's own output, before positions are added; it has
    no class token and no registers.
    """

    layer: Layer
    facet: Facet | DenseFacet = "token"
    norm: bool = False

    @property
    def of_output(self) -> bool:
        """Whether the block has to run for it."""
        return self.facet in {"token", "pooled-alone"}


@dataclass(frozen=True)
class Forward:
    """What one pass gave: tokens by read; by layer attention rows ``[B, heads, C+R, H, W]``, and
    what each token receives as a key."""

    tokens: dict[Read, Tokens]
    attention: dict[int, Tensor]
    received: dict[int, Received] = field(default_factory=dict)


class Backbone:
    """A frozen ViT on a device. Build one with ``harness.load_backbone``."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        architecture: Architecture,
        device: torch.device,
        compiled: bool = False,
        intervention: Intervention | None = None,
    ) -> None:
        """``architecture`` is of the module; an ``intervention`` is applied to both."""
        self.name = name
        self._own = architecture.layout
        self.intervention = (intervention or Intervention()).on(device)
        self.architecture = replace(architecture, layout=self.intervention.layout(self._own))
        self.device = device
        self.compiled = compiled
        frozen: Any = module.eval().requires_grad_(False).to(device)
        frozen.patch_embed.strict_img_size = False  # a factory's model may insist on one size
        self._model = frozen
        self.undo = self.intervention.install(name, module, self._own)
        blocks: list[Any] = list(self._model.blocks)
        self._blocks = blocks
        # torch gives blocks of one class one code, without a look at their hooks: blocks with
        # register neurons run as they are.
        hooked = {layer for layer, _ in self.intervention.neurons}
        # Sizes vary from picture to picture, so compiled code must not be specialised to one.
        self._run: list[Any] = [
            torch.compile(block, dynamic=True) if compiled and layer not in hooked else block
            for layer, block in enumerate(blocks)
        ]

    @property
    def module(self) -> nn.Module:
        """The timm module underneath."""
        module: nn.Module = self._model
        return module

    @cached_property
    def weights_digest(self) -> str:
        """sha256 of the weights, and of what is changed about them."""
        weights = digest(self.module)
        return weights if self.intervention.plain else self.intervention.digest(weights)

    @contextmanager
    def changed(self, intervention: Intervention) -> Iterator[Backbone]:
        """A backbone on the same module, changed; this one, which is plain, is not to run
        meanwhile. It is not compiled."""
        if not self.intervention.plain:
            raise ValueError(f"{self.name} is changed already")
        other = Backbone(
            self.name, self.module, self.architecture, self.device, intervention=intervention
        )
        try:
            yield other
        finally:
            other.undo()

    def precision(self, wanted: Precision) -> Precision:
        """What ``wanted`` runs as here: fp16 needs a GPU, and is fp32 on a CPU."""
        return runs_as(wanted, self.device.type)

    @torch.no_grad()  # and not inference_mode: heads are trained on these tokens
    def __call__(
        self,
        pixels: Tensor,
        reads: Collection[Read],
        attention: Collection[int] = (),
        precision: Precision = "fp32",
        received: Collection[int] = (),
    ) -> Forward:
        """Normalised pictures ``[B, 3, H, W]`` on ``device`` -> the tokens and rows asked for.

        ``attention`` and ``received`` are layers: of the first the rows of class and register
        tokens are given, of the second what every token receives from all (``Received``).

        H and W must be multiples of the patch. The pass ends at the deepest thing asked for: no
        block runs whose output nobody reads. Weights stay in float32; bf16 and fp16 run under
        autocast, as the published evaluations do, and tokens come in the type that gave.
        """
        grid = self._check(pixels, reads, [*attention, *received])
        with exact_float32(), self._autocast(precision):
            return self._forward(pixels, grid, reads, attention, received)

    def _check(
        self, pixels: Tensor, reads: Collection[Read], attention: Collection[int]
    ) -> tuple[int, int]:
        patch, depth = self.architecture.patch, self.architecture.depth
        height, width = pixels.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"{height}x{width} pixels are no multiple of the patch, {patch}")
        for read in reads:
            if read.layer != "embedding" and not 0 <= read.layer < depth:
                raise ValueError(f"layer {read.layer} of a model with {depth} blocks")
            if read.facet in DENSE_FACETS:
                self._check_dense(read)
            elif read.facet not in FACETS:
                raise ValueError(f"facet {read.facet!r} is none of {FACETS + DENSE_FACETS}")
            elif read.facet != "token" and (read.norm or read.layer == "embedding"):
                raise ValueError(f"{read}: only tokens are normed, only blocks have {read.facet}s")
        if any(not 0 <= layer < depth for layer in attention):
            raise ValueError(f"attention of {sorted(attention)} of a model with {depth} blocks")
        for module in (self._blocks[layer].attn for layer in attention):
            if not has_rows(module):
                kind = type(module).__name__
                raise HarnessError(f"model {self.name!r}: {kind} has no attention rows")
        return height // patch, width // patch

    def _check_dense(self, read: Read) -> None:
        if read.layer == "embedding":
            raise ValueError(f"{read}: only blocks have it")
        if read.facet == "pooled-alone":
            pool = self._model.attn_pool
            if read != Read(self.architecture.depth - 1, "pooled-alone", True) or pool is None:
                raise ValueError(f"{read}: attention pooling is of the last block's normed tokens")
            if getattr(pool, "pos_embed", None) is not None:
                raise HarnessError(
                    f"model {self.name!r}: its attention pooling adds positions: no token can be "
                    "pooled alone"
                )
        elif not has_rows(self._blocks[read.layer].attn):
            kind = type(self._blocks[read.layer].attn).__name__
            raise HarnessError(f"model {self.name!r}: {kind} has no value path of its own")

    def _forward(
        self,
        pixels: Tensor,
        grid: tuple[int, int],
        reads: Collection[Read],
        attention: Collection[int],
        all_queries: Collection[int],
    ) -> Forward:
        result = Forward({}, {})
        layout, last = self.architecture.layout, self.architecture.depth - 1
        patches = self._model.patch_embed(pixels).flatten(1, -2)
        for read in reads:
            if read.layer == "embedding":
                tokens = self._final_norm(patches) if read.norm else patches
                result.tokens[read] = TokenLayout(0, 0).split(tokens, grid)
        outputs = {r.layer for r in reads if r.layer != "embedding" and r.of_output}
        inner = {r.layer for r in reads if not r.of_output} | {*attention, *all_queries}
        wanted = [layer for layer in outputs | inner if isinstance(layer, int)]
        if not wanted:
            return result
        deepest = max(wanted)
        sequence = self._embed(patches, grid)
        rope = self._rope(grid)
        states = None
        if self.intervention.states is not None:
            states = self.intervention.states_of(pixels)
            replaced = layout.registers_from(0, states.shape[2])
        for layer in range(deepest + 1):
            block = self._blocks[layer]
            turn = rope[layer] if rope is not None and self._rope_by_layer else rope
            if layer in inner:
                normed = block.norm1(sequence)
                for read in reads:
                    if read.layer == layer and not read.of_output:
                        facet = self._inside(block, sequence, normed, read)
                        result.tokens[read] = layout.split(facet, grid)
                if layer in attention:
                    rows = attention_rows(block.attn, normed, layout, grid, turn)
                    result.attention[layer] = rows
                if layer in all_queries:
                    result.received[layer] = received(block, normed, layout, grid, turn)
            if layer == deepest and layer not in outputs:
                break
            run = self._run[layer]
            sequence = run(sequence) if turn is None else run(sequence, rope=turn)
            if states is not None:
                sequence[:, replaced] = states[:, layer].to(sequence.dtype)
            for read in reads:
                if read.layer == layer and read.facet == "token":
                    result.tokens[read] = self._tokens(sequence, grid, read.norm, layer == last)
                elif read.layer == layer and read.facet == "pooled-alone":
                    alone = pooled_alone(self._model.attn_pool, self._model.norm(sequence))
                    result.tokens[read] = layout.split(self._model.fc_norm(alone), grid)
        return result

    def _inside(self, block: Any, sequence: Tensor, normed: Tensor, read: Read) -> Tensor:
        """What ``read`` takes of a block before it runs, of its input and that input normed."""
        if read.facet == "value-path":
            found = value_path(block, sequence, normed)
        elif read.facet == "value-written":
            found = value_written(block, normed)
        else:
            assert read.facet != "pooled-alone"
            return project(block.attn, normed, read.facet)
        return self._final_norm(found) if read.norm else found

    def _tokens(self, sequence: Tensor, grid: tuple[int, int], norm: bool, last: bool) -> Tokens:
        layout = self.architecture.layout
        if not norm:
            return layout.split(sequence, grid)
        tokens = layout.split(self._final_norm(sequence), grid)
        if not last or self.architecture.global_feature == "class token":
            return tokens
        # timm pools what its own `norm` gave (the identity where the norm comes after pooling),
        # over a sequence of its own tokens, in its own order.
        raw = layout.split(self._model.norm(sequence), grid)
        cls = None if raw.cls is None else raw.cls[:, None]
        kept = self.intervention.kept(self._own)
        ordered = TokenLayout(layout.classes, kept).join(
            cls, raw.registers[:, :kept], raw.patches.flatten(1, 2)
        )
        pooled = self._model.forward_head(ordered, pre_logits=True)
        return Tokens(tokens.cls, tokens.registers, tokens.patches, pooled)

    def _final_norm(self, sequence: Tensor) -> Tensor:
        """The norm before the head, which stands after the pooling in models that average."""
        model = self._model
        after = isinstance(model.norm, nn.Identity)
        result: Tensor = model.fc_norm(sequence) if after else model.norm(sequence)
        return result

    def _embed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add positions, join class and register tokens: the sequence that block 0 reads."""
        model, layout = self._model, self.architecture.layout
        batch = patches.shape[0]
        classes = model.cls_token if layout.classes else None
        registers = model.reg_token if self.intervention.kept(self._own) else None
        if model.pos_embed is not None:
            # `no_embed_class` models store positions of patches alone; others store one for each
            # class and register token too, in front.
            stored = model.pos_embed.shape[1] - _area(self.architecture.stored_grid)
            front, rest = model.pos_embed[:, :stored], model.pos_embed[:, stored:]
            rule = self.architecture.position or PositionRule()
            patches = patches + resample(rest, self.architecture.stored_grid, grid, rule)
            if classes is not None and stored:
                classes = classes + front[:, : layout.classes]
            if registers is not None and stored == self._own.extra:
                registers = registers + front[:, layout.classes :]
        if added := self.intervention.added:
            zeros = patches.new_zeros(1, added, patches.shape[-1])
            registers = zeros if registers is None else torch.cat((registers, zeros), dim=1)
        sequence = layout.join(
            None if classes is None else classes.expand(batch, -1, -1),
            None if registers is None else registers.expand(batch, -1, -1),
            patches,
        )
        normed: Tensor = model.norm_pre(sequence)
        return normed

    @property
    def _rope_by_layer(self) -> bool:
        return bool(getattr(self._model, "rope_mixed", False))

    def _rope(self, grid: tuple[int, int]) -> Any:
        rope = getattr(self._model, "rope", None)
        return None if rope is None else rope.get_embed(shape=grid)

    @contextmanager
    def _autocast(self, precision: Precision) -> Iterator[None]:
        kind = _AUTOCAST.get(self.precision(precision))
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            yield


def _area(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
