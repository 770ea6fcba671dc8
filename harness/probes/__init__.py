"""Heads trained on frozen tokens, and neighbours among them. Nothing here knows a data set."""
