"""The built-in tasks, one file each. Installed as ``harness.tasks``."""
