"""What a run will take, before it is run: `harness run --dry-run --rate`."""
