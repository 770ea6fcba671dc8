"""Damaged and hostile files for every reader: ``make fuzz``. Not part of ``make test``."""
