"""Folders on other machines: results and features on any URL that fsspec knows."""
