"""A frozen Vision Transformer and its tokens."""
