"""A module of this package that runs in a process of its own and is told what to do, a line each,
on its standard input. It answers each line with one of its own; the end of the input is its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping


class Child:
    """The process. ``said`` is the word of its first answer."""

    def __init__(self, process: subprocess.Popen[str], name: str, lacking: str) -> None:
        self._process, self._name, self._lacking = process, name, lacking
        self.said = self._line()

    def tell(self, what: str) -> None:
        """Also from a process that was forked from this one."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(f"{self._name}: "):
                return line.split()[1]
        raise SystemExit(f"make faults: {self._lacking}")


@contextlib.contextmanager
def running(name: str, own: Mapping[str, str], lacking: str) -> Iterator[Child]:
    """``python -m faults.NAME`` with ``own`` in its environment; ``lacking`` is said where it ends
    before it answers."""
    with subprocess.Popen(
        [sys.executable, "-m", f"faults.{name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **own},
    ) as process:
        try:
            yield Child(process, name, lacking)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
