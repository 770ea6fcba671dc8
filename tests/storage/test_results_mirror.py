"""Results on a URL: what machines see of each other's, and what is left when something breaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flaky_proxy import flaky
from made_records import made

from harness import records
from harness.cli import main
from harness.errors import HarnessError
from harness.storage import mirrors, remote
from harness.storage.mirror import Mirror

pytestmark = pytest.mark.slow  # moto's server takes seconds to start

Machine = Callable[[str], None]


def opened(url: str) -> Mirror:
    mirror = Mirror(url)
    mirror.pull()
    return mirror


def write(mirror: Mirror, model: str = "vits", hits: int = 3, scale: int = 1) -> str:
    path = made(mirror.folder, model, {"hit": np.arange(8 * scale) < hits})
    return path.relative_to(mirror.folder).as_posix()


def scores(mirror: Mirror) -> dict[str, float]:
    found = records.find(mirror.folder)
    return {record.model.name: record.metrics["corloc"].value for _, record in found}


def test_a_result_that_is_pushed_is_there_on_another_machine_to_the_bit(
    s3: str, machine: Machine
) -> None:
    first = opened(s3 + "/results")
    record = write(first)
    first.push(record)
    machine("two")
    second = opened(s3 + "/results")
    assert second.folder != first.folder
    for end in (".json", ".parquet"):
        name = record.removesuffix(".json") + end
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    assert scores(second) == {"vits": 37.5}


def test_what_is_the_same_already_is_not_sent_or_fetched_again(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky(s3_server, every=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        remote.forget()
        mirror = opened(s3)
        record = write(mirror)
        mirror.push(record)
        asked = dict(proxy.asked)
        assert asked["PUT"] == 2
        mirror.push(record)
        assert proxy.asked == asked
        assert mirror.pull() == []
        # One listing, and not one object.
        assert proxy.asked == {**asked, "GET": asked["GET"] + 1}


def test_what_was_written_anew_or_removed_there_is_so_here(s3: str, machine: Machine) -> None:
    here = opened(s3)
    for model in ("vits", "vitb"):
        here.push(write(here, model))
    machine("two")
    other = opened(s3)
    other.push(write(other, "vits", hits=7))
    for end in (".json", ".parquet"):
        remote.at(s3).remove(f"voc07/lost/vitb/lost{end}")
    assert here.pull() == []
    assert scores(here) == {"vits": 87.5}
    assert not list(here.folder.glob("*/*/vitb/*"))


def test_pictures_go_and_come_with_their_record(s3: str, machine: Machine) -> None:
    here = opened(s3)
    record = write(here)
    folder = here.folder / record.replace(".json", ".pictures")
    folder.mkdir()
    for name in ("worst-1-a.png", "best-1-b.png"):
        (folder / name).write_bytes(name.encode())
    here.push(record)
    machine("two")
    other = opened(s3)
    pictures = other.folder / record.replace(".json", ".pictures")
    assert {path.name for path in pictures.iterdir()} == {"worst-1-a.png", "best-1-b.png"}
    (folder / "worst-1-a.png").unlink()
    (folder / "best-1-b.png").write_bytes(b"drawn anew")
    here.push(record)
    other.pull()
    assert [path.read_bytes() for path in pictures.iterdir()] == [b"drawn anew"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    here.push(record)
    other.pull()
    assert not pictures.exists()
    assert scores(other) == {"vits": 37.5}


def test_a_result_that_could_not_be_sent_is_sent_by_the_next_run(s3: str) -> None:
    mirror = opened(s3)
    record = write(mirror)
    assert mirror.pull() == [record]  # nothing of it is there, and it is not removed here
    assert scores(mirror) == {"vits": 37.5}
    mirror.push(record)
    assert mirror.pull() == []
    assert record in remote.at(s3).listing()


def test_a_result_that_was_not_sent_gives_way_to_one_written_there_since(
    s3: str, machine: Machine
) -> None:
    here = opened(s3)
    write(here, hits=1)
    machine("two")
    other = opened(s3)
    other.push(write(other, hits=7))
    assert here.pull() == []
    assert scores(here) == {"vits": 87.5}


def test_a_driver_that_dies_before_the_record_leaves_an_unfinished_cell(
    s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = opened(s3)
    record = write(here)
    plain = remote.Remote.write

    def dies(self: remote.Remote, name: str, data: bytes) -> None:
        if name.endswith(".json"):
            raise KeyboardInterrupt
        plain(self, name, data)

    with monkeypatch.context() as killed:
        killed.setattr(remote.Remote, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            here.push(record)
    machine("two")
    listing = remote.at(s3).listing()
    assert set(listing) == {record.replace(".json", ".parquet")}
    other = opened(s3)
    assert scores(other) == {}
    assert records.finished(other.folder / record) is None


def test_a_table_of_another_run_beside_a_record_is_damage_and_never_a_number(
    s3: str, machine: Machine
) -> None:
    here = opened(s3)
    record = write(here, hits=3)
    here.push(record)
    machine("two")
    other = opened(s3)
    write(other, hits=5)
    table = record.replace(".json", ".parquet")
    remote.at(s3).write(table, (other.folder / table).read_bytes())  # and then it dies
    here.pull()
    with pytest.raises(records.DamagedResult, match="not the table"):
        records.finished(here.folder / record)
    here.push(write(here, hits=3))  # its cell is run again
    machine("three")
    assert scores(opened(s3)) == {"vits": 37.5}


def test_machines_that_write_one_result_at_once_leave_a_whole_one(s3: str) -> None:
    folder = Path(mirrors.results_folder(s3)).parent.parent
    machines = []
    for number in range(4):
        mirror = Mirror(s3)
        mirror._root = folder / str(number)
        mirror.folder = mirror._root / "records"
        mirror.pull()
        machines.append((mirror, number))

    def work(mirror: Mirror, number: int) -> None:
        for again in range(4):
            mirror.push(write(mirror, hits=4 * again + number, scale=2))  # no two are alike

    threads = [threading.Thread(target=work, args=each) for each in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    judge = Mirror(s3)
    judge.pull()
    ((_, record),) = records.find(judge.folder)
    assert records.read_columns(judge.folder / "voc07/lost/vits/lost.json", record)
    for mirror, _ in machines:
        mirror.pull()
        assert scores(mirror) == scores(judge)


def test_a_server_that_drops_each_tenth_request_costs_time_and_nothing_else(
    s3: str, s3_server: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))
    for kind in ("drop", "busy", "half"):
        with flaky(s3_server, every=10, kind=kind) as proxy:  # type: ignore[arg-type]
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            machine(f"writes {kind}")
            writer = opened(f"{s3}/{kind}")
            for number in range(10):
                writer.push(write(writer, f"model-{number}", hits=number % 8))
            machine(f"reads {kind}")
            reader = opened(f"{s3}/{kind}")
            assert proxy.spoiled >= 5
            assert scores(reader) == scores(writer)
            assert len(scores(reader)) == 10


def test_names_that_could_leave_the_folder_are_not_fetched(s3: str, machine: Machine) -> None:
    mirror = opened(s3)
    mirror.push(write(mirror))
    for name in ("a/b/c/.hidden.json", "a/../../../up.json", "a/b/c/x.py", "README.md", "a/b/d/"):
        remote.at(s3)._fs.pipe_file(f"{s3.removeprefix('s3://')}/{name}", b"{}")
    machine("two")
    other = opened(s3)
    files = sorted(path.name for path in other.folder.rglob("*") if path.is_file())
    assert files == [".lock", "lost.json", "lost.parquet"]


RUN = ["run", "--task", "lost", "--model", "chance", "--dataset", "scenes-demo", "--limit", "20"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    assert main([*arguments]) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_trouble_is_told_with_what_to_do(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    run = "run", "--task", "lost", "--model", "chance", "--dataset", "scenes-demo", "--out"
    assert "no such bucket" in fails(capsys, *run, "s3://no-such-bucket-at-all/results")
    assert "no results there" in fails(capsys, "leaderboard", "--results", f"{s3}/empty")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.forget()
    assert "does not answer" in fails(capsys, "leaderboard", "--results", f"{s3}/empty")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    remote.forget()
    assert "no credentials" in fails(capsys, "leaderboard", "--results", f"{s3}/empty")


def test_a_run_and_tables_on_a_url(
    s3: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{s3}/results"
    run = [
        *RUN,
        *("--workers", "0", "--no-store", "--out", out, "--json"),
    ]
    assert main(run) == 0
    (first,) = json.loads(capsys.readouterr().out)
    machine("two")
    assert main(run) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert again["provenance"] == first["provenance"]  # the same record: it was not run
    machine("three")
    assert main(["leaderboard", "--results", out, "--all"]) == 0
    assert "chance" in capsys.readouterr().out
    assert main(["results", "check", out]) == 0
    assert main(["results", "merge", out, "--into", f"{s3}/merged"]) == 0
    machine("four")
    capsys.readouterr()
    assert main(["regress", "--baseline", out, "--candidate", f"{s3}/merged"]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_whose_storage_dies_keeps_the_result_and_sends_it_when_typed_again(
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = remote.Remote.write

    def dead(self: remote.Remote, name: str, data: bytes) -> None:
        if name != ".probe":
            raise remote.StorageTrouble(f"{name}: the storage does not answer as it should")
        plain(self, name, data)

    run = [
        *RUN,
        *("--workers", "0", "--no-store", "--out", s3),
    ]
    with monkeypatch.context() as broken:
        broken.setattr(remote.Remote, "write", dead)
        assert "the same command uploads it" in fails(capsys, *run, status=1)
    assert not [name for name in remote.at(s3).listing() if name.endswith(".json")]
    assert main(run) == 0
    told = capsys.readouterr().err
    assert "1 results of an earlier run are uploaded" in told and "done already" in told
    assert [name for name in remote.at(s3).listing() if name.endswith(".json")]


def test_a_failing_push_raises_and_names_the_url(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", ())
    folder = mirrors.results_folder(s3)
    record = made(folder, "vits", {"hit": np.arange(8) < 3})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.forget()
    with pytest.raises(HarnessError, match=f"{s3}/voc07.*the same command uploads it"):
        mirrors.push(record)
