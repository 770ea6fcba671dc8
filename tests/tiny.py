"""The two tiny DINOv2s of the reference material, as registry entries."""

from __future__ import annotations

from pathlib import Path

REFERENCE = Path(__file__).resolve().parent / "reference"

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
