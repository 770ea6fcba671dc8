"""``make faults``: commands that are killed, meet, or find the disk full, and what is left."""
