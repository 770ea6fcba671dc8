"""The two tiny DINOv2s of the reference material, as registry entries, and what is known of one."""

from __future__ import annotations

from pathlib import Path

from harness.backbone.architecture import Architecture
from harness.backbone.layout import TokenLayout

REFERENCE = Path(__file__).resolve().parent / "reference"

ARCHITECTURE = Architecture(
    layout=TokenLayout(1, 4),
    patch=14,
    depth=4,
    width=48,
    heads=3,
    stored_grid=(7, 7),
    parameters=1,
    global_feature="class token",
    position=None,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
)

_ENTRY = """
{name}:
  timm: {timm}
  checkpoint: {checkpoint}
  arguments: {{img_size: 98, embed_dim: 48, depth: 4, num_heads: 3, init_values: 1.0}}
  registers: {registers}
  position_embedding: {{antialias: {antialias}, offset: {offset}}}
"""


def entry(name: str, registers: int, checkpoint: Path | None = None) -> str:
    """YAML of a tiny DINOv2 entry with 0 or 4 registers, its own checkpoint unless one is given."""
    four = registers == 4
    return _ENTRY.format(
        name=name,
        timm="vit_small_patch14_reg4_dinov2" if four else "vit_small_patch14_dinov2",
        checkpoint=checkpoint or REFERENCE / f"dinov2_tiny_reg{registers}.safetensors",
        registers=registers,
        antialias=str(four).lower(),
        offset=0.0 if four else 0.1,
    )


def models_file(folder: Path) -> Path:
    """A registry file with ``tiny`` and ``tiny-reg4``."""
    path = folder / "tiny.yaml"
    path.write_text(entry("tiny", 0) + entry("tiny-reg4", 4) + "  baseline: tiny\n")
    return path
