"""Folders of results: whether they are whole, bringing them together, and the record's schema."""
