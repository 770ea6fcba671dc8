"""What can go wrong, as the person at the terminal reads it."""


class HarnessError(Exception):
    """Wrong use or bad input: names the file, what is wrong, and what to do. Exit status 2."""


class BadPicture(HarnessError):
    """One picture cannot be used. ``--on-bad-image skip`` counts it and goes on."""


class BadLabels(BadPicture):
    """The labels of one picture's pixels cannot be used, whatever its pixels are."""
