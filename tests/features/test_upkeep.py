"""``harness store``: what is told, what is found, what is removed and what is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from storing import SELECTORS, SHARD, Noise, extract, same

from harness.cli import main
from harness.errors import HarnessError
from harness.features.store import MANIFEST, Store
from harness.features.upkeep import clear, kept, parse_size, prune, verify

PICTURES = Noise(2 * SHARD)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    folder = tmp_path / "features"
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    store = Store(folder, SHARD)
    extract(store, PICTURES, SELECTORS)
    return store


def shards(store: Store) -> list[Path]:
    return sorted(store.folder.rglob("*.safetensors"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert main(["store", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_row_a_key_with_what_is_there(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "list")
    assert len(rows) == len(SELECTORS)
    for row in rows:
        assert (row["model"], row["dataset"], row["split"]) == ("tiny-reg4", "noise", "test")
        assert row["pictures"] == row["of"] == 2 * SHARD and row["complete"]
        folder = store.folder / row["key"]
        kinds = (".safetensors", ".json")
        assert row["bytes"] == sum(p.stat().st_size for p in folder.iterdir() if p.suffix in kinds)
    assert {row["token"] for row in rows} == {
        "global of layer 3, normed",
        "patch-mean of layer 3, normed",
        "register of layer 2, normed",
        "patches of layer 3, normed",
    }
    assert main(["store", "list"]) == 0
    shown = capsys.readouterr().out
    assert "patch-mean of layer 3, normed" in shown and f"{len(SELECTORS)} keys, " in shown


def test_a_key_that_is_not_complete_is_told(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    shards(store)[0].write_bytes(b"")
    assert main(["store", "verify", "--repair"]) == 0
    capsys.readouterr()
    (row,) = [row for row in told(capsys, "list") if not row["complete"]]
    assert (row["pictures"], row["of"]) == (SHARD, 2 * SHARD)


def test_verify_names_every_damaged_shard_and_repair_removes_them(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "verify") == []
    first, second, third = shards(store)[:3]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    third.write_bytes(bytes([third.read_bytes()[0] ^ 1]) + third.read_bytes()[1:])
    found = told(capsys, "verify", status=2)
    assert {row["path"] for row in found} == {str(first), str(second), str(third)}
    assert main(["store", "verify"]) == 2
    assert "3 damaged files" in capsys.readouterr().out
    assert len(told(capsys, "verify", "--repair")) == 3
    assert told(capsys, "verify") == []
    assert not first.exists() and not third.exists()
    found_again, tally = extract(store, PICTURES, SELECTORS)
    assert 0 < tally.forward_passes <= 2 * SHARD
    assert same(found_again, extract(None, PICTURES, SELECTORS)[0])


def test_verify_finds_a_shard_of_another_key_however_whole(store: Store) -> None:
    (one, *_), manifests = shards(store), sorted(store.folder.rglob(MANIFEST))
    manifests[-1].write_bytes(manifests[0].read_bytes())
    (damage,) = verify(store.folder)
    assert damage.path == manifests[-1] and one.exists()
    assert verify(store.folder, repair=True) == [damage]
    assert not verify(store.folder) and len(kept(store.folder)) == len(SELECTORS) - 1


def test_what_a_killed_run_had_not_listed_is_no_damage_and_is_made_again(store: Store) -> None:
    one = sorted(store.folder.rglob(MANIFEST))[0]
    one.unlink()  # as between the first shard and its manifest
    assert not verify(store.folder) and one.parent.exists()
    found, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes > 0 and one.exists()
    assert same(found, extract(None, PICTURES, SELECTORS)[0])
    one.unlink()
    assert not verify(store.folder, repair=True) and not one.parent.exists()


def test_prune_removes_what_was_not_used_for_longest(store: Store) -> None:
    keys = kept(store.folder)
    for age, key in enumerate(keys):
        for path in key.folder.iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    extract(store, PICTURES, SELECTORS[:1])  # used now
    used, *rest = kept(store.folder)
    assert prune(store.folder, sum(key.bytes for key in keys)) == []
    assert prune(store.folder, used.bytes) == rest[::-1]
    assert [key.folder for key in kept(store.folder)] == [used.folder]
    assert not rest[0].folder.exists()
    assert extract(store, PICTURES, SELECTORS[:1])[1].forward_passes == 0


def test_clear_asks_first_and_leaves_strangers_files_alone(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = store.folder / "mine.txt"
    mine.write_text("precious")
    inside = kept(store.folder)[0].folder / "mine.txt"
    inside.write_text("precious")
    assert main(["store", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err and len(shards(store)) == 2 * len(SELECTORS)
    assert len(told(capsys, "clear", "--yes")) == len(SELECTORS)
    assert sorted(p for p in store.folder.rglob("*") if p.is_file()) == sorted([mine, inside])
    assert told(capsys, "list") == clear(store.folder) == []


def test_a_store_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "nothing"))
    for arguments in (["list"], ["verify"], ["prune", "--max-size", "1GB"], ["clear", "--yes"]):
        assert told(capsys, *arguments) == []
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("800mib", 800 * 2**20),
        ("2T", 2 * 10**12),
        ("17", 17),
        ("0B", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "5ib", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="--max-size"):
        parse_size(text)


def test_prune_without_a_size_is_refused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune"]) == 2
    assert "--max-size 50GB" in capsys.readouterr().err
    assert len(shards(store)) == 2 * len(SELECTORS)
