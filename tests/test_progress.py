import subprocess
import sys

import pytest

from harness.progress import Lines

DROPPED = """
import signal
from harness.progress import Silent, remember_interrupts

class Dying:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        if self.error:
            raise self.error
        signal.raise_signal(signal.SIGINT)

remember_interrupts()
Dying({error})
print("ran on")
Silent().advance(1)
print("missed")
"""


def dropped(error: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", DROPPED.replace("{error}", error)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60)


def test_ctrl_c_inside_a_destructor_is_silent_and_raised_at_the_next_picture() -> None:
    done = dropped("None")
    assert done.stdout == "ran on\n"
    assert done.stderr.count("Traceback") == 1
    assert "in advance" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_other_errors_inside_a_destructor_are_still_shown() -> None:
    done = dropped("ValueError('lost')")
    assert done.stdout == "ran on\nmissed\n"
    assert "Exception ignored" in done.stderr
    assert "ValueError: lost" in done.stderr


def test_no_time_is_foretold_before_the_first_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.progress.LINE_EVERY_SECONDS", 0.0)
    with Lines() as progress:
        progress.start("lost", 4)
        progress.advance(0)
        progress.advance(2)
    begun, none, two = capsys.readouterr().err.splitlines()
    assert (begun, none) == ("lost: 4 pictures", "lost: 0/4")
    assert two.startswith("lost: 2/4, ") and two.endswith(" s left")
