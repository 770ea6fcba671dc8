"""What can go wrong, as the person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Sequence


class HarnessError(Exception):
    """Wrong use or bad input: names the file, what is wrong, and what to do. Exit status 2."""


class BadPicture(HarnessError):
    """One picture cannot be used. ``--on-bad-image skip`` counts it and goes on."""


class BadLabels(BadPicture):
    """The labels of one picture's pixels cannot be used, whatever its pixels are."""


class Unwritable(HarnessError):
    """A file cannot be written (a full disk, a read-only folder): nor could those of other cells,
    so a run stops at once."""


class SomeFailed(HarnessError):
    """Of many cells some failed, and the others are done: exit status 1. ``failures`` has a text
    for each."""

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        count = len(self.failures)
        super().__init__(f"{count} failed, the rest is done:\n" + "\n".join(self.failures))


def after_failures(failures: Sequence[str], some_done: bool) -> HarnessError:
    """What a run of many cells raises at its end: ``SomeFailed``, or where nothing was done a plain
    error."""
    return SomeFailed(failures) if some_done else HarnessError("\n".join(failures))
