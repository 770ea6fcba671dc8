"""``harness bench``: how fast, as ratios measured in one run."""
