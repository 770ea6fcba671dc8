"""``harness look``: what backbones make of single pictures, and figures of anatomy, as PNGs."""
