"""What trained registers hold after each block: the file that ``replace_registers`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.backbone.arithmetic import exact_float32
from harness.backbone.interventions import RegisterStates
from harness.backbone.vit import Read
from harness.documents import canonical_json
from harness.errors import HarnessError
from harness.options import Options
from harness.progress import Progress
from harness.register_pictures import ready, write

EXAMPLES = 64
"""Pictures whose registers are kept one by one."""


def states(
    count: int, size: int | None, options: Options, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write to ``out`` what the trained registers of the first model of ``options`` hold after each
    block: mean and standard deviation over ``count`` pictures, and some one by one.

    Raises ``HarnessError`` for a model without registers, and where ``out`` is there.
    """
    import safetensors.torch

    backbone, pictures = ready(count, size, options, out, progress)
    facts = backbone.architecture
    if not facts.layout.registers:
        raise HarnessError(f"model {backbone.name!r}: has no trained registers")
    reads = [Read(layer) for layer in range(facts.depth)]
    total = square = torch.zeros(facts.depth, facts.layout.registers, facts.width).double()
    examples: list[Tensor] = []
    with exact_float32():
        for _, pixels in pictures.batches("registers", range(len(pictures.order))):
            tokens = backbone(pixels, reads).tokens
            held = torch.stack([tokens[read].registers for read in reads], dim=1).cpu()
            total = total + held.double().sum(0)
            square = square + held.double().square().sum(0)
            examples += list(held[: EXAMPLES - len(examples)])
    mean = total / len(pictures.order)
    sd = (square / len(pictures.order) - mean.square()).clamp(min=0).sqrt()
    found = RegisterStates(
        mean.float(),
        sd.float(),
        torch.stack(examples),
        backbone.weights_digest,
        canonical_json(pictures.facts).decode(),
    )
    tensors = {"mean": found.mean, "sd": found.sd, "examples": found.examples}
    write(out, safetensors.torch.save(tensors, found.metadata))
    return {
        "model": backbone.name,
        "layers": facts.depth,
        "registers": facts.layout.registers,
        "examples": len(examples),
        **pictures.facts,
    }
