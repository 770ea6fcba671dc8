"""Text towers beside the picture towers: what an entry's ``text:`` names, and what it gives."""
