"""How far a run is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import TracebackType
from typing import Protocol, Self

LINE_EVERY_SECONDS = 15.0

_interrupted = threading.Event()


def remember_interrupts() -> None:
    """Make Ctrl-C certain: Python drops a KeyboardInterrupt that happens to be raised inside a
    destructor or a callback (logging's after a fork, for one), prints a traceback and would run
    on. The next picture then raises it again, so that traceback is not shown."""

    def interrupt(number: int, frame: object) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    shown = sys.unraisablehook

    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            shown(dropped)

    _interrupted.clear()
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, interrupt)


class Progress(Protocol):
    """Where a run says how far it is. Everything goes to standard error."""

    def start(self, what: str, pictures: int) -> None: ...
    def advance(self, pictures: int) -> None: ...
    def note(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Silent:
    """For programs that call the harness."""

    def start(self, what: str, pictures: int) -> None:
        return None

    def advance(self, pictures: int) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Lines(Silent):
    """One plain line at the start and the end of a pass, and one every quarter of a minute."""

    def start(self, what: str, pictures: int) -> None:
        self._what, self._total, self._done = what, pictures, 0
        self._began = self._said = time.monotonic()
        print(f"{what}: {pictures} pictures", file=sys.stderr, flush=True)

    def advance(self, pictures: int) -> None:
        super().advance(pictures)
        self._done += pictures
        now = time.monotonic()
        if self._done < self._total and now - self._said < LINE_EVERY_SECONDS:
            return
        self._said = now
        text = f"{self._what}: {self._done}/{self._total}"
        if self._done:
            rate = self._done / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate
            text += f", {rate:.1f} images/s, {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bar(Silent):
    """A rich progress bar with images a second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def start(self, what: str, pictures: int) -> None:
        self._task = self._bar.add_task(what, total=pictures)

    def advance(self, pictures: int) -> None:
        super().advance(pictures)
        self._bar.advance(self._task, pictures)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def for_stream() -> Progress:
    """A bar if standard error is a terminal, else lines."""
    return Bar() if sys.stderr.isatty() else Lines()
