"""What can go wrong, as the person at the terminal reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


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


@contextlib.contextmanager
def deaths_told() -> Iterator[None]:
    """The death of a worker process as a ``HarnessError``. torch tells it from a signal's handler,
    wherever the process is that reads: its consumers need this too."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise HarnessError(
            f"a worker process died ({str(error).splitlines()[0]}): out of memory? "
            f"Fewer (--workers 1) need less, --workers 0 reads in this process"
        ) from None
