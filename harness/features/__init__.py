"""Extraction: pictures in, batches of tokens out, one forward pass for all listeners."""
