"""``harness results merge``: all or nothing is planned, and what is interrupted goes on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_results import NOT_READ
from made_records import hits, made
from resealed import changed
from result_examples import columns, finish, make, python

from harness import atomic, records
from harness.cli import main
from harness.errors import HarnessError
from harness.results.check import check
from harness.results.merge import carry_out, plan
from harness.schema import pictures_folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Two results, one with a head and a picture."""
    out = tmp_path / "first"
    made(out, "vits", hits(0.3, 40))
    path = records.record_path(out, "voc07", "lost", "vits", "lost")
    made(out, "vits-reg4", hits(0.4, 40))
    whole = records.read(path)
    records.write(path, whole, records.read_columns(path), head=b"a head")
    pictures_folder(path).mkdir()
    (pictures_folder(path) / "worst-1-a.png").write_bytes(b"png")
    return out


@pytest.fixture
def second(tmp_path: Path) -> Path:
    out = tmp_path / "second"
    made(out, "vitb", hits(0.5, 40))
    made(out, "vitb-reg4", hits(0.5, 40, seed=1))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def merge(into: Path, *sources: Path, **options: Any) -> dict[str, str]:
    steps = plan(sources, into, **options)
    carry_out(steps, into)
    return {str(step.target.relative_to(into)): step.state for step in steps}


def lost(out: Path, model: str = "vits") -> Path:
    return out / "voc07" / "lost" / model / "lost.json"


def test_every_file_of_every_source_is_there_afterwards_and_the_sources_are_as_they_were(
    first: Path, second: Path, tmp_path: Path
) -> None:
    before = contents(first), contents(second)
    into = tmp_path / "new" / "into"
    assert set(merge(into, first, second).values()) == {"new"}
    assert contents(into) == {**before[0], **before[1]}
    assert (contents(first), contents(second)) == before
    assert check([into]).problems == []


def test_a_second_merge_does_nothing(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(tmp_path / "into", first, second)
    monkeypatch.setattr(atomic, "write_through", pytest.fail)
    assert set(merge(tmp_path / "into", first, second).values()) == {"the same"}
    assert set(merge(tmp_path / "into", second, second).values()) == {"the same"}


def test_what_is_in_the_folder_already_stays(first: Path, second: Path) -> None:
    before = contents(second)
    merge(second, first)
    assert contents(second) == {**before, **contents(first)}


@pytest.mark.parametrize("existing", [False, True])
def test_two_that_differ_stop_all_of_it_with_both_named(
    first: Path, second: Path, tmp_path: Path, existing: bool
) -> None:
    made(second, "vits", hits(0.9, 40))
    into = tmp_path / "into"
    sources = (first, second)
    if existing:
        shutil.copytree(second, into)
        sources = (first,)
    before = contents(into)
    with pytest.raises(HarnessError, match=r"nothing was copied.*differ.*--prefer") as caught:
        merge(into, *sources)
    other = lost(into) if existing else lost(second)
    assert str(lost(first)) in str(caught.value) and str(other) in str(caught.value)
    assert contents(into) == before


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("prefer", ["first", "last"])
def test_the_first_or_the_last_can_be_preferred_and_nothing_of_the_other_is_left(
    first: Path, second: Path, tmp_path: Path, existing: bool, prefer: Any
) -> None:
    made(second, "vits", hits(0.9, 40))
    into = tmp_path / "into"
    sources = [first, second]
    if existing:
        shutil.copytree(first, into)
        sources = [second]
    merge(into, *sources, prefer=prefer)
    wanted = first if prefer == "first" else second
    folder = Path("voc07") / "lost" / "vits"
    assert contents(into / folder) == contents(wanted / folder)
    assert check([into]).problems == []
    before = contents(into)
    merge(into, *sources, prefer=prefer)
    assert contents(into) == before


@pytest.mark.parametrize("damage", [name for name in NOT_READ if name != "no metric"])
def test_a_damaged_record_stops_all_of_it(
    first: Path, second: Path, tmp_path: Path, damage: str
) -> None:
    NOT_READ[damage](lost(second, "vitb"))
    with pytest.raises(HarnessError) as caught:
        merge(tmp_path / "into", first, second)
    assert "nothing was copied" in str(caught.value) and "vitb" in str(caught.value)
    assert not (tmp_path / "into").exists()


def test_a_record_in_another_place_and_a_table_of_other_columns_stop_it_too(
    first: Path, second: Path, tmp_path: Path
) -> None:
    lost(second).parent.mkdir()
    for suffix in (".json", ".parquet"):
        shutil.copy(lost(second, "vitb").with_suffix(suffix), lost(second).with_suffix(suffix))
    changed(lost(second, "vitb-reg4"), lambda facts: facts["per_picture"].update(columns=["a"]))
    with pytest.raises(HarnessError, match="says that it is voc07/lost/vitb/lost") as caught:
        merge(tmp_path / "into", first, second)
    assert "not the rows and columns" in str(caught.value)


def test_a_damaged_record_in_the_folder_is_replaced_and_one_of_a_later_schema_is_not(
    first: Path, tmp_path: Path
) -> None:
    into = Path(shutil.copytree(first, tmp_path / "into"))
    os.truncate(lost(into), 50)
    assert merge(into, first)["voc07/lost/vits/lost.json"] == "new"
    assert contents(into) == contents(first)
    changed(lost(into), lambda facts: facts.update(schema_version=2))
    with pytest.raises(HarnessError, match="of schema 2"):
        merge(into, first)


def test_a_head_and_pictures_that_the_same_record_lacks_are_brought(
    first: Path, tmp_path: Path
) -> None:
    into = Path(shutil.copytree(first, tmp_path / "into"))
    lost(into).with_suffix(".head.safetensors").unlink()
    shutil.rmtree(pictures_folder(lost(into)))
    other = Path(shutil.copytree(into, tmp_path / "other"))
    assert set(merge(into, other, first).values()) == {"the same"}
    assert contents(into) == contents(first)
    # From two sources, too, of which only the second has them.
    merge(tmp_path / "new", other, first)
    assert contents(tmp_path / "new") == contents(first)


@pytest.mark.parametrize("after", range(6))
def test_whoever_is_stopped_can_start_again(
    first: Path, second: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, calls = tmp_path / "into", []
    write = atomic.write_through

    def stop(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) > after + 1:  # the first is the probe of the folder
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_through", stop)
        with pytest.raises(KeyboardInterrupt):
            merge(into, first, second)
    assert all(records.finished(path) for path in into.glob("*/*/*/*.json"))
    merge(into, first, second)
    assert contents(into) == {**contents(first), **contents(second)}


def test_a_full_disk_is_told_and_what_was_copied_is_whole(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name.startswith(".lost.json"):
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(atomic, "write_through", full)
    with pytest.raises(HarnessError, match="No space left on device; free some"):
        merge(tmp_path / "into", first)
    assert contents(tmp_path / "into") == {}


WRITER = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
for number in range(1, 41):
    variant = {"limit": number}
    path = t.records.record_path(out, "voc07", "lost", "vits", "lost", variant)
    t.records.write(path, t.make(number, limit=number, variant=variant), t.columns(number))
"""


@pytest.mark.slow
def test_a_run_may_write_into_the_folder_meanwhile(tmp_path: Path) -> None:
    into, source = tmp_path / "into", tmp_path / "source"
    for number in range(41, 81):
        variant = {"limit": number}
        path = records.record_path(source, "voc07", "lost", "vits", "lost", variant)
        records.write(path, make(number, limit=number, variant=variant), columns(number))
    process = python(WRITER, into)
    merge(into, source)
    output = finish(process)
    assert process.returncode == 0, output
    assert len(list(records.find(into))) == 80
    assert not [name for name in contents(into) if name.endswith(".tmp")]


def test_a_record_written_between_the_look_and_the_copy_is_not_run_over(
    first: Path, tmp_path: Path
) -> None:
    into = tmp_path / "into"
    steps = plan([first], into)
    made(into, "vits", hits(0.9, 40))
    before = contents(into)
    with pytest.raises(HarnessError, match="was written meanwhile; merge again"):
        carry_out(steps, into)
    assert contents(into) == before


def test_a_source_that_changes_between_the_look_and_the_copy_is_told(
    first: Path, tmp_path: Path
) -> None:
    steps = plan([first], tmp_path / "into")
    made(first, "vits", hits(0.9, 40))
    with pytest.raises(HarnessError, match="was written anew meanwhile"):
        carry_out(steps, tmp_path / "into")


def test_the_command_says_what_it_did_and_a_dry_run_does_nothing(
    first: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "into"
    command = ["results", "merge", str(first), str(second), "--into", str(into)]
    assert main([*command, "--dry-run"]) == 0
    assert "would be: 4 records copied" in capsys.readouterr().out and not into.exists()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] and {each["state"] for each in found["records"]} == {"new"}
    assert found["records"][2]["beside"] == [str(pictures_folder(lost(into)) / "worst-1-a.png")]
    assert main(command) == 0
    assert "0 records copied, 0 replaced, 4 there already" in capsys.readouterr().out
    made(second, "vits", hits(0.9, 40))
    assert main(command) == 2
    assert str(lost(second)) in capsys.readouterr().err
    assert main([*command, "--prefer", "last"]) == 0
    assert f"{lost(into)}: replaced by {lost(second)}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "the folder itself"])
def test_a_source_without_records_is_bad_input(
    first: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    if what == "a file":
        source.write_text("")
    elif what == "empty":
        source.mkdir()
    elif what == "the folder itself":
        source.symlink_to(first)
    into = first if what == "the folder itself" else tmp_path / "into"
    before = contents(first)
    assert main(["results", "merge", str(source), str(first), "--into", str(into)]) == 2
    assert str(source) in capsys.readouterr().err
    assert contents(first) == before and not (tmp_path / "into").exists()


def test_a_file_cannot_be_merged_into(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "into").write_text("")
    assert main(["results", "merge", str(first), "--into", str(tmp_path / "into")]) == 2
    assert "a file" in capsys.readouterr().err
