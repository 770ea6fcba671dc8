"""What is left of the results when runs are killed, meet, or find the disk full."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from result_examples import cell, columns, files, finish, make, python

from harness import atomic, records
from harness.errors import HarnessError


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = cell(tmp_path)
    records.write(path, make(), columns())
    return path


# ---------------------------------------------------------------------------- killed, and together


KILLED = """
import os, pathlib, signal, sys
out, before, score = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
calls = []
real = pathlib.Path.replace
def replace(self, target):
    if len(calls) == before:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(target)
    return real(self, target)
pathlib.Path.replace = replace
t.records.write(t.cell(out), t.make(score), t.columns(score))
"""


@pytest.mark.parametrize("had_result", [False, True])
@pytest.mark.parametrize("before", [0, 1])
def test_a_kill_between_the_renames_never_leaves_a_wrong_number(
    tmp_path: Path, had_result: bool, before: int
) -> None:
    path = cell(tmp_path)
    if had_result:
        records.write(path, make(), columns())
    process = python(KILLED, tmp_path, before, 80.0)
    output = finish(process)
    assert process.returncode == -signal.SIGKILL, output
    assert any(name.endswith(".tmp") for name in files(tmp_path)), "it died with work in hand"
    if not had_result:
        assert records.finished(path) is None
    elif before == 0:  # nothing renamed: the old result stands
        old = records.finished(path)
        assert old is not None
        assert old.metrics["corloc"].value == 50.0
        assert records.read_columns(path)["score"][0] == 50.0
    else:
        with pytest.raises(records.DamagedResult, match="not the table"):
            records.finished(path)
        with pytest.raises(records.DamagedResult, match="not the table"):
            records.read_columns(path)
    records.check_writable(tmp_path)
    assert not any(name.endswith(".tmp") for name in files(tmp_path)), "the litter is gone"
    records.write(path, make(80.0), columns(80.0))
    assert records.finished(path) is not None


def test_a_killed_process_leaves_no_lock_that_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import pathlib, sys, time\nwith t.atomic.locked(pathlib.Path(sys.argv[1])):\n"
    holder = python(script + "    print('held', flush=True); time.sleep(100)", tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(atomic, "LOCK_SECONDS", 0.2)
    with pytest.raises(HarnessError, match="held by another process"):
        records.write(cell(tmp_path), make(), columns())
    holder.kill()
    finish(holder)
    records.write(cell(tmp_path), make(), columns())
    assert records.finished(cell(tmp_path)) is not None


WRITER = """
import pathlib, sys
out, score = pathlib.Path(sys.argv[1]), float(sys.argv[2])
for turn in range(40):
    t.records.check_writable(out)
    t.records.write(t.cell(out), t.make(score), t.columns(score))
"""


def test_runs_that_write_one_cell_at_once_leave_a_pair_of_one_of_them(tmp_path: Path) -> None:
    writers = [python(WRITER, tmp_path, score) for score in (20.0, 80.0)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        record = records.finished(cell(tmp_path))  # raises if JSON and table are of two runs
        if record is not None:
            seen.add(record.metrics["corloc"].value)
    outputs = [finish(writer) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    record = records.finished(cell(tmp_path))
    assert record is not None
    assert records.read_columns(cell(tmp_path))["score"][0] == record.metrics["corloc"].value
    assert seen <= {20.0, 80.0}
    assert files(tmp_path) == {"voc07/lost/vits/lost.json", "voc07/lost/vits/lost.parquet"}


# -------------------------------------------------------------------------------- it cannot be kept


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("after", [0, 1])
def test_a_disk_that_fills_up_leaves_the_old_result_and_no_temporary_file(
    stored: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))

    before = {path: path.read_bytes() for path in stored.parent.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(HarnessError, match="untouched") as caught:
            records.write(stored, make(80.0), columns(80.0))
    assert str(stored) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert {path: path.read_bytes() for path in stored.parent.iterdir()} == before


def test_a_second_rename_that_fails_says_that_this_one_result_is_damaged(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(HarnessError, match="this one result is damaged"):
            records.write(stored, make(80.0), columns(80.0))
    assert not list(stored.parent.glob(".*"))
    with pytest.raises(records.DamagedResult):
        records.finished(stored)


def test_an_interrupt_leaves_no_temporary_file(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            records.write(stored, make(80.0), columns(80.0))
    assert not list(stored.parent.glob(".*"))
    assert records.finished(stored) is not None


def test_what_a_killed_command_left_of_a_file_goes_when_it_is_written_again(
    tmp_path: Path,
) -> None:
    """Found by ``make faults TARGET=leaderboard SEED=5``."""
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    left = tmp_path / f".board.md.{dead.pid}.tmp"
    others = [tmp_path / f".other.md.{dead.pid}.tmp", tmp_path / f".board.md.{os.getppid()}.tmp"]
    for path in (left, *others):
        path.write_bytes(b"half")
    atomic.publish(tmp_path / "board.md", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "board.md"])


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    for attempt in (
        lambda: records.check_writable(tmp_path / "out"),
        lambda: records.check_writable(tmp_path / "out" / "deeper"),
        lambda: records.write(cell(tmp_path / "out"), make(), columns()),
    ):
        with pytest.raises(HarnessError, match="a file stands where a folder is needed") as caught:
            attempt()
        assert str(tmp_path / "out") in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; see the read-only mount")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HarnessError, match="choose a folder that you may write to"):
        records.check_writable(tmp_path)
    tmp_path.chmod(0o700)


def on_tmpfs(folder: Path, options: str, script: str, *arguments: object) -> str:
    """Run ``script`` with a small tmpfs on ``folder``, mounted in a namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: a small disk cannot be mounted")
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    own = ("unshare", "-rm", "sh", "-c")
    trial = subprocess.run([*own, mount, folder, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"mounting is not allowed here: {trial.stderr.strip()}")
    process = python(script, *arguments, wrap=(*own, mount, str(folder)))
    output = finish(process)
    assert process.returncode == 0, output
    return output


FILL = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
t.records.check_writable(out)
t.records.write(t.cell(out), t.make(), t.columns())
numbers = {"score": t.np.random.default_rng(0).normal(size=100_000)}
variant = {"limit": 7}
for kind in ("table too large", "no room at all"):
    try:
        t.records.write(t.cell(out, variant), t.make(variant=variant), numbers)
    except t.HarnessError as error:
        print(error)
    assert t.files(out) - {"filler"} == {
        "voc07/lost/vits/lost.json", "voc07/lost/vits/lost.parquet"}, t.files(out)
    assert t.records.finished(t.cell(out)) is not None
    with (out / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError:
            pass
try:
    t.records.check_writable(out)
except t.HarnessError as error:
    print(error)
"""


def test_a_disk_that_is_really_full_is_named_and_loses_nothing(tmp_path: Path) -> None:
    output = on_tmpfs(tmp_path, "size=256k", FILL, tmp_path)
    first, second, third = output.splitlines()
    for line in (first, second, third):
        assert f"{tmp_path}" in line
        assert "No space left on device; free some space" in line
        assert "untouched" in line


READ_ONLY = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
for attempt in (t.records.check_writable, lambda out: t.records.write(t.cell(out), t.make(),
                t.columns())):
    try:
        attempt(out)
    except t.HarnessError as error:
        print(error)
"""


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    output = on_tmpfs(tmp_path, "ro", READ_ONLY, tmp_path)
    assert len(output.splitlines()) == 2
    for line in output.splitlines():
        assert "Read-only file system; choose a folder that you may write to" in line
