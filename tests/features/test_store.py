"""Features from the store are those of a run without one, whatever happened to the store."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import (
    ONE,
    SELECTORS,
    SHARD,
    Found,
    Moments,
    Noise,
    extract,
    in_process,
    model,
    same,
    source,
)

from harness import atomic
from harness.errors import BadPicture
from harness.features import store as store_module
from harness.features.keys import Key, feature_key
from harness.features.select import Selector
from harness.features.store import MANIFEST, Rows, Store, default_folder, shard_name
from harness.features.upkeep import verify

PICTURES = Noise(3 * SHARD - 3)
SHARDS = 3


@cache
def plain() -> Found:
    return extract(None, PICTURES, SELECTORS)[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "features", SHARD)


def files(store: Store) -> list[Path]:
    return sorted(store.folder.rglob("*.safetensors"))


def test_a_second_pass_runs_nothing_and_gives_the_same_bits(store: Store) -> None:
    first, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes == len(PICTURES.samples)
    again, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes == 0 and tally.pictures == len(PICTURES.samples)
    assert same(first, plain()) and same(again, plain())
    assert len(files(store)) == SHARDS * len(SELECTORS) and not store.notices


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, SHARDS - 1)), st.sets(st.integers(0, 20), max_size=6))
def test_only_pictures_of_missing_shards_are_run(gone: set[int], broken: set[int]) -> None:
    pictures = Noise(len(PICTURES.samples), broken)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), SHARD)
        first, told = extract(store, pictures, ONE, skip_bad=True)
        for path in files(store):
            if int(path.stem) in gone:
                path.unlink()
        again, tally = extract(store, pictures, ONE, skip_bad=True)
    assert same(first, again)
    assert list(first[ONE[0]]) == [f"p{i}" for i in range(21) if i not in broken]
    assert sorted(tally.bad) == sorted(told.bad) == sorted((f"p{i}", f"p{i}: torn") for i in broken)
    lost = [i for i in range(21) if i // SHARD in gone and i not in broken]
    assert tally.forward_passes == len(lost)


def test_values_that_are_not_finite_come_back_as_they_were(store: Store) -> None:
    key = feature_key(model(), source(PICTURES), SHARD, ONE[0], None)
    values = torch.tensor([[float("nan"), float("inf")], [-0.0, 1e-45]])
    rows = Rows(values, torch.ones(2).bool(), torch.zeros(2, 12).int(), {})
    store.feature(key, 2).write(0, rows)
    found = store.feature(key, 2).read(0)
    assert found is not None
    assert torch.equal(found.values.view(torch.int32), values.view(torch.int32))


def test_one_more_token_costs_a_pass_and_then_none(store: Store) -> None:
    extract(store, PICTURES, SELECTORS[:2])
    found, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes == len(PICTURES.samples) and same(found, plain())
    assert extract(store, PICTURES, SELECTORS)[1].forward_passes == 0


def test_a_pass_that_wants_tokens_runs_all_and_fills_the_store(store: Store) -> None:
    found, tally = extract(store, PICTURES, ONE, from_store=False)
    assert tally.forward_passes == len(PICTURES.samples)
    again, tally = extract(store, PICTURES, ONE)
    assert tally.forward_passes == 0 and same(found, again)


# ---------------------------------------------------------------------------- killed, and together


def kill_and_resume(store: Store, fatal: int) -> int:
    """Forward passes of an extraction that is taken up after one that died at that moment."""

    def work() -> None:
        with Moments(fatal):
            extract(store, PICTURES, SELECTORS)

    process = in_process(work)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found, tally = extract(store, PICTURES, SELECTORS)
    assert same(found, plain())
    assert not list(store.folder.rglob("*.tmp"))
    assert extract(store, PICTURES, SELECTORS)[1].forward_passes == 0
    return tally.forward_passes


def moments() -> int:
    with tempfile.TemporaryDirectory() as folder, Moments() as counted:
        extract(Store(Path(folder), SHARD), PICTURES, SELECTORS)
    return counted.count


def test_a_killed_extraction_goes_on_where_it_stopped(store: Store) -> None:
    assert kill_and_resume(store, moments() - 5) == len(PICTURES.samples) - 2 * SHARD


@pytest.mark.slow
def test_killed_at_thirty_points_and_resumed_the_features_are_those_of_one_run(
    tmp_path: Path,
) -> None:
    total = moments()
    points = random.Random(4).sample(range(total), 30)
    rerun = [kill_and_resume(Store(tmp_path / str(point), SHARD), point) for point in points]
    assert min(rerun) < max(rerun) == len(PICTURES.samples), "some found shards, some none"


def test_two_processes_that_fill_the_same_keys_do_no_harm(store: Store) -> None:
    processes = [in_process(lambda: extract(store, PICTURES, SELECTORS)) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes == 0 and same(found, plain())
    assert len(files(store)) == SHARDS * len(SELECTORS)


# ---------------------------------------------------------------------------------------- damaged


def damage(path: Path, how: int, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == 0:  # one bit, anywhere
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == 1:
        del data[draw.randrange(1, len(data)) :]
    elif how == 2:
        data.clear()
    elif how == 3:
        data += b"\0"
    else:  # another shard's bytes, whole in themselves
        other = path.with_name(shard_name((int(path.stem) + 1) % 25))
        data[:] = other.read_bytes()
    path.write_bytes(data)


def test_twenty_damaged_or_truncated_shards_are_all_found_and_made_again(tmp_path: Path) -> None:
    store, pictures, draw = Store(tmp_path, 2), Noise(50), random.Random(1)
    first, _ = extract(store, pictures)
    hurt = draw.sample(range(24), 20)
    for number, shard in enumerate(hurt):
        damage(files(store)[shard], number % 5, draw)
    again, tally = extract(store, pictures)
    assert tally.forward_passes == 2 * 20 and same(first, again)
    assert extract(store, pictures)[1].forward_passes == 0


def test_a_whole_shard_in_the_place_of_another_is_not_there(store: Store) -> None:
    extract(store, PICTURES)
    first, second, _ = files(store)
    second.write_bytes(first.read_bytes())
    manifest = store_module.read_manifest(first.parent)
    assert manifest is not None
    wrong = {**manifest.shards, 1: manifest.shards[0]}
    key = Key(manifest.facts, manifest.about)
    (first.parent / MANIFEST).write_bytes(store_module.manifest_bytes(key, 21, wrong))
    assert [damage.path for damage in verify(store.folder)] == [second]
    found, tally = extract(store, PICTURES)
    assert tally.forward_passes == SHARD and same(found, extract(None, PICTURES)[0])
    assert extract(store, PICTURES)[1].forward_passes == 0 and not verify(store.folder)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"", b"{", b"[]", b'{"sha256": 1, "body": null}'])
def test_a_damaged_manifest_costs_a_pass(store: Store, text: bytes) -> None:
    extract(store, PICTURES)
    (manifest,) = store.folder.rglob(MANIFEST)
    manifest.write_bytes(text)
    found, tally = extract(store, PICTURES)
    assert tally.forward_passes == len(PICTURES.samples)
    assert found[ONE[0]].keys() == plain()[ONE[0]].keys()
    assert extract(store, PICTURES)[1].forward_passes == 0


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_manifest_with_one_letter_changed_is_none(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), SHARD)
        key = feature_key(model(), source(PICTURES), SHARD, ONE[0], None)
        kept = store_module.manifest_bytes(key, 21, {0: "a" * 64, 1: "b" * 64})
        path = store.folder / key.digest / MANIFEST
        path.parent.mkdir()
        path.write_bytes(kept)
        assert store_module.read_manifest(path.parent) is not None
        at = data.draw(st.integers(0, len(kept) - 1))
        other = data.draw(st.integers(33, 126).filter(lambda code: code != kept[at]))
        if chr(kept[at]).isspace():
            return  # JSON does not mind
        path.write_bytes(kept[:at] + bytes([other]) + kept[at + 1 :])
        found = store_module.read_manifest(path.parent)
    assert found is None


# ------------------------------------------------------------------------------------ bad pictures


def test_a_bad_picture_from_the_store_stops_a_run_that_does_not_skip_it(store: Store) -> None:
    pictures = Noise(12, broken={2})
    extract(store, pictures, skip_bad=True)
    with pytest.raises(BadPicture, match=r"p2: torn.*--on-bad-image skip"):
        extract(store, pictures)


def test_the_shard_of_a_mended_picture_is_run_again(store: Store) -> None:
    pictures = Noise(12, broken={2})
    extract(store, pictures, skip_bad=True)
    pictures.broken = frozenset()
    found, tally = extract(store, pictures, skip_bad=True)
    assert tally.forward_passes == SHARD and not tally.bad
    assert same(found, extract(None, pictures)[0])


def test_a_shard_without_a_usable_picture_is_stored_too(store: Store) -> None:
    pictures = Noise(12, broken=set(range(SHARD)))
    first, _ = extract(store, pictures, SELECTORS, skip_bad=True)
    again, tally = extract(store, pictures, SELECTORS, skip_bad=True)
    assert tally.forward_passes == 0 and len(tally.bad) == SHARD and same(first, again)


# -------------------------------------------------------------------------------- it cannot be kept


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_fails_no_run_and_is_told_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, calls = atomic.write_through, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) > 3:
            raise OSError(code, "it is full")
        real(path, data)

    monkeypatch.setattr(atomic, "write_through", full)
    found, _ = extract(store, PICTURES, SELECTORS)
    assert same(found, plain())
    (notice,) = store.notices
    assert "it is full" in notice and "HARNESS_CACHE" in notice
    monkeypatch.undo()
    again, tally = extract(Store(store.folder, SHARD), PICTURES, SELECTORS)
    assert same(again, plain()) and tally.forward_passes == len(PICTURES.samples)


def test_a_folder_that_cannot_be_made_fails_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "features", SHARD)
    assert same(extract(store, PICTURES, SELECTORS)[0], plain())
    assert len(store.notices) == 1


def test_a_store_that_cannot_be_read_is_told_once_and_fails_no_run(store: Store) -> None:
    extract(store, PICTURES, SELECTORS)
    for manifest in store.folder.rglob(MANIFEST):
        manifest.unlink()
        manifest.mkdir()
    found, _ = extract(store, PICTURES, SELECTORS)
    assert same(found, plain()) and len(store.notices) == 1


def test_a_store_that_cannot_be_written_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(store, PICTURES, SELECTORS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(store_module, "locked", refuse)
    monkeypatch.setattr("os.utime", refuse)
    found, tally = extract(store, PICTURES, SELECTORS)
    assert tally.forward_passes == 0 and same(found, plain()) and not store.notices
    extract(store, PICTURES, [Selector("center", 1)])
    assert len(store.notices) == 1


def test_a_key_pruned_while_it_is_filled_is_begun_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = store_module.locked, []

    @contextlib.contextmanager
    def pruned(folder: Path) -> Iterator[None]:
        with real(folder):
            if not times:
                shutil.rmtree(folder)
            times.append(folder)
            yield

    monkeypatch.setattr(store_module, "locked", pruned)
    extract(store, PICTURES)
    assert not store.notices
    assert extract(store, PICTURES)[1].forward_passes == 0


def test_the_folder_is_the_environments_or_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", "/some/where")
    assert default_folder() == Path("/some/where")
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/vit-harness/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/vit-harness/features"
