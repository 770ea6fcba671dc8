"""The feature store on a URL: what another machine finds there, and that no trouble fails a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flaky_proxy import flaky
from storing import SELECTORS, SHARD, Noise, extract, same

from harness.cli import main
from harness.errors import HarnessError
from harness.features import shared
from harness.features.shared import SharedStore, kept_in, make_room, user_store
from harness.features.shared_upkeep import clear_there, prune_there, verify_there
from harness.features.store import Store, default_folder
from harness.storage import remote

pytestmark = pytest.mark.slow  # moto's server takes seconds to start

Machine = Callable[[str], None]
PICTURES = Noise(2 * SHARD + 3)
COUNT = len(PICTURES.samples)
SHARDS = 3 * len(SELECTORS)


@pytest.fixture
def url(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HARNESS_CACHE", f"{s3}/features/")
    return f"{s3}/features"


def store(url: str) -> SharedStore:
    return SharedStore(url, SHARD)


def shards(url: str) -> list[str]:
    return [name for name in remote.at(url).listing() if name.endswith(".safetensors")]


def test_another_machine_runs_nothing_and_has_the_same_bits(url: str, machine: Machine) -> None:
    plain, _ = extract(None, PICTURES, SELECTORS)
    first, tally = extract(store(url), PICTURES, SELECTORS)
    assert tally.forward_passes == COUNT and same(first, plain)
    names = shards(url)
    assert len(names) == SHARDS
    for name in names:
        data = remote.at(url).read(name)
        assert hashlib.sha256(data).hexdigest() in name
    machine("two")
    there = store(url)
    again, tally = extract(there, PICTURES, SELECTORS)
    assert tally.forward_passes == 0 and same(again, plain) and not there.notices
    assert len(list(default_folder().rglob("*.safetensors"))) == SHARDS
    assert shards(url) == names


def test_a_copy_is_read_without_asking_for_its_bytes_again(
    url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(store(url), PICTURES, SELECTORS)
    with flaky(s3_server, every=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        remote.forget()
        _, tally = extract(store(url), PICTURES, SELECTORS)
        assert tally.forward_passes == 0
        assert proxy.asked == {"GET": len(SELECTORS)}  # a listing a key


@pytest.mark.parametrize("broken", ["here", "there"])
def test_a_damaged_shard_is_never_used(url: str, broken: str, machine: Machine) -> None:
    plain, _ = extract(None, PICTURES, SELECTORS)
    extract(store(url), PICTURES, SELECTORS)
    if broken == "here":
        for path in default_folder().rglob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        found, tally = extract(store(url), PICTURES, SELECTORS)
        assert tally.forward_passes == 0  # it is fetched again
    else:
        first = sorted(shards(url))[0]
        data = remote.at(url).read(first)
        remote.at(url).write(first, data[:-1] + bytes([data[-1] ^ 1]))
        machine("two")
        found, tally = extract(store(url), PICTURES, SELECTORS)
        assert 0 < tally.forward_passes <= SHARD
        assert len(shards(url)) == SHARDS  # in place of the damaged one
        machine("three")
        assert extract(store(url), PICTURES, SELECTORS)[1].forward_passes == 0
    assert same(found, plain)


def test_two_machines_that_write_one_shard_leave_whole_ones(
    url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = extract(None, PICTURES, SELECTORS)
    # Neither sees the other's until both have made all of theirs.
    with monkeypatch.context() as blind:
        blind.setattr(shared.SharedFeature, "_list", lambda self: None)
        extract(store(url), PICTURES, SELECTORS)
        machine("two")
        extract(store(url), PICTURES, SELECTORS, batch_size=2)  # last bits may differ
    machine("three")
    assert SHARDS < len(shards(url)) <= 2 * SHARDS
    assert not verify_there(remote.at(url))
    found, tally = extract(store(url), PICTURES, SELECTORS)
    assert tally.forward_passes == 0 and found.keys() == plain.keys()


def test_a_server_that_drops_each_tenth_request_fails_nothing(
    url: str, s3_server: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = extract(None, PICTURES, SELECTORS)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))
    with flaky(s3_server, every=10) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name in ("writes", "reads"):
            machine(name)
            there = store(url)
            found, tally = extract(there, PICTURES, SELECTORS)
            assert same(found, plain) and not there.notices
        assert tally.forward_passes == 0 and proxy.spoiled >= 3


@pytest.mark.parametrize("trouble", ["dead", "denied", "no bucket", "dies"])
def test_trouble_is_told_once_and_fails_no_run(
    url: str, trouble: str, monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    plain, _ = extract(None, PICTURES, SELECTORS)
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    if trouble == "dead":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elif trouble == "no bucket":
        url = "s3://no-such-bucket-at-all/features"
    elif trouble == "denied":

        def denied(self: remote.Remote, name: str, data: bytes) -> None:
            self._tried(name, lambda: (_ for _ in ()).throw(PermissionError("Forbidden")))

        monkeypatch.setattr(remote.Remote, "write", denied)
    else:
        extract(store(url), PICTURES, SELECTORS)

        def dies(self: remote.Remote, name: str, size: int | None = None) -> bytes:
            raise remote.StorageTrouble(f"{name}: the storage does not answer as it should")

        monkeypatch.setattr(remote.Remote, "read", dies)
    machine("two")
    there = store(url)
    found, _ = extract(there, PICTURES, SELECTORS)
    assert same(found, plain)
    (notice,) = there.notices
    assert notice.startswith(f"feature store {url}: ") and "goes on without storing" in notice


def test_a_store_that_did_not_answer_is_left_alone_for_a_while(
    url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    with flaky(s3_server, every=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        extract(store(url), PICTURES, SELECTORS)
        asked = sum(proxy.asked.values())
        second = store(url)
        extract(second, PICTURES, SELECTORS)
        assert sum(proxy.asked.values()) == asked > 0
        (notice,) = second.notices
        assert notice.startswith(f"feature store {url}: did not answer")
        proxy.every = 0
        monkeypatch.setattr(remote, "DOWN_SECONDS", 0.0)
        third = store(url)
        extract(third, PICTURES, SELECTORS)
        assert len(shards(url)) == SHARDS and not third.notices
    assert not remote.at(url).down()


def test_copies_are_bounded_and_the_last_one_stays(
    url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = extract(store(url), PICTURES, SELECTORS)
    machine("two")
    monkeypatch.setenv("HARNESS_CACHE_LOCAL_SIZE", "10 kB")
    found, tally = extract(store(url), PICTURES, SELECTORS)
    assert same(found, plain) and tally.forward_passes == 0
    held = sum(path.stat().st_size for path in default_folder().rglob("*.safetensors"))
    biggest = max(found.size for found in remote.at(url).listing().values())
    assert held <= max(10_000, biggest)
    monkeypatch.setenv("HARNESS_CACHE_LOCAL_SIZE", "much")
    with pytest.raises(HarnessError, match="HARNESS_CACHE_LOCAL_SIZE much: a size"):
        user_store()


def test_make_room_counts_what_it_removes(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    for number in range(4):
        (tmp_path / "key" / f"{number}.safetensors").write_bytes(b"0" * 100)
    assert make_room(tmp_path, 250) == 200
    assert make_room(tmp_path, -1, tmp_path / "key" / "3.safetensors") in (0, 100)


def test_the_command_looks_after_it(
    url: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(store(url), PICTURES, SELECTORS)
    strange = "notes/mine.txt"
    remote.at(url).write(strange, b"mine")
    assert main(["store", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(SELECTORS) and all(row["complete"] for row in rows)
    assert {row["pictures"] for row in rows} == {COUNT}
    assert main(["store", "list"]) == 0
    assert f"{len(SELECTORS)} keys, " in (shown := capsys.readouterr().out) and url in shown
    assert main(["store", "verify"]) == 0
    name = shards(url)[0]
    remote.at(url).write(name, b"damage")
    assert main(["store", "verify"]) == 2
    assert f"{url}/{name}" in capsys.readouterr().out
    assert main(["store", "verify", "--repair"]) == 0 and name not in shards(url)
    assert main(["store", "clear"]) == 2
    every = kept_in(user_store())
    most = sum(one.bytes for one in every) - 1
    assert [one.folder for one in prune_there(remote.at(url), most)] == [every[-1].folder]
    assert len(clear_there(remote.at(url))) == len(SELECTORS) - 1
    assert list(remote.at(url).listing()) == [strange]
    assert not list(default_folder().rglob("*.safetensors"))


def test_a_bad_url_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad, why in {
        "s3://key:secret@bucket/x": "no key, secret or query",
        "s3://": "not a place",
        "nonsense://bucket/x": "fsspec knows no nonsense://",
    }.items():
        monkeypatch.setenv("HARNESS_CACHE", bad)
        assert main(["store", "list"]) == 2
        told = capsys.readouterr().err
        assert why in told and "secret@" not in told


def test_a_folder_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "features"))
    assert type(user_store()) is Store and user_store().folder == tmp_path / "features"


def test_runs_on_two_machines_share_their_passes(
    url: str, s3: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: str) -> dict[str, object]:
        assert main([*RUN, "--out", f"{s3}/{out}"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        return dict(record)

    first = run("one")
    machine("two")
    assert main([*RUN[:-1], "--dry-run", "--out", f"{s3}/two"]) == 0
    capsys.readouterr()
    second = run("two")
    assert first["cost"]["forward_passes"] > 0  # type: ignore[index]
    assert second["cost"]["forward_passes"] == 0  # type: ignore[index]
    for same_in_both in ("metrics", "counts", "details", "per_picture", "dataset", "protocol"):
        assert first[same_in_both] == second[same_in_both]


RUN = [
    *("run", "--task", "knn", "--model", "pixels", "--dataset", "scenes-demo"),
    *("--set", "k=5", "--limit", "20", "--workers", "0", "--json"),
]
