"""Heads of 1x1 kind on frozen patch tokens: what segmentation and depth share."""
