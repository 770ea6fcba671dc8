"""``harness results check``: what is whole is called whole, and each damage by its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from made_records import hits, made
from resealed import changed, sealed, with_table

from harness.cli import main
from harness.results import check as results_check
from harness.results.check import Report, check
from harness.schema import pictures_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Hits of two models, areas by class, and a metric that some pictures and scenes have."""
    folder = tmp_path / "results"
    for model in ("vits", "vits-reg4", "vitb"):
        made(folder, model, hits(0.3, 50))
    labelled = np.random.default_rng(0).integers(1, 90, (50, 3))
    made(
        folder,
        "vits",
        {"intersection": labelled // 2, "predicted": labelled, "labelled": labelled},
        "miou",
        task="segmentation",
    )
    made(
        folder,
        "vits",
        {
            "rmse": np.where(np.arange(50) % 7, np.linspace(1, 2, 50), np.nan),
            "scene": np.array([f"scene {place // 10}" for place in range(50)]),
        },
        "rmse",
        task="depth",
        dataset="nyu",
    )
    return folder


def lost(out: Path, model: str = "vits") -> Path:
    return out / "voc07" / "lost" / model / "lost.json"


def told(report: Report, root: Path) -> list[tuple[str, str]]:
    return [(str(each.path.relative_to(root)), each.what) for each in report.problems]


def test_a_whole_folder_has_no_problem_and_the_folder_is_left_as_it_was(out: Path) -> None:
    (out / "README.md").write_text("Results")
    (out / "LEADERBOARD.json").write_text("{}")
    pictures_folder(lost(out)).mkdir()
    (pictures_folder(lost(out)) / "worst-1-a.png").write_bytes(b"png")
    before = sorted(out.rglob("*"))
    report = check([out])
    assert told(report, out) == [] and report.records == 5
    assert sorted(out.rglob("*")) == before


def a_value(path: Path) -> None:
    changed(path, lambda facts: facts["metrics"]["corloc"].update(value=31.0))


def an_interval(path: Path) -> None:
    changed(path, lambda facts: facts["metrics"]["corloc"].update(low=20.5))


def a_digest(path: Path) -> None:
    changed(path, lambda facts: facts["protocol"]["settings"].update(k=50))


def a_version(number: int) -> Callable[[Path], None]:
    return lambda path: changed(path, lambda facts: facts.update(schema_version=number))


def no_value(path: Path) -> None:
    def damage(columns: dict[str, pyarrow.Array]) -> None:
        columns["hit"] = pyarrow.array([np.nan, *map(float, columns["hit"].to_pylist()[1:])])

    with_table(path, damage)


def an_infinite_value(path: Path) -> None:
    def damage(columns: dict[str, pyarrow.Array]) -> None:
        columns["hit"] = pyarrow.array([np.inf, *map(float, columns["hit"].to_pylist()[1:])])

    with_table(path, damage)


def a_row_twice(path: Path) -> None:
    def damage(columns: dict[str, pyarrow.Array]) -> None:
        ids = columns["image_id"].to_pylist()
        columns["image_id"] = pyarrow.array([ids[1], *ids[1:]])

    with_table(path, damage)


def no_column(path: Path) -> None:
    with_table(path, lambda columns: columns.update(guess=columns.pop("hit")))


def other_pictures(path: Path) -> None:
    def damage(columns: dict[str, pyarrow.Array]) -> None:
        columns["image_id"] = pyarrow.array([f"other {row}" for row in range(50)])

    with_table(path, damage)


def empty_table(path: Path) -> None:
    path.with_suffix(".parquet").write_bytes(b"")
    sealed(path)


def too_many_rows(path: Path) -> None:
    changed(path, lambda facts: facts["dataset"].update(pictures=49))


def moved(path: Path) -> None:
    for suffix in (".json", ".parquet"):
        path.with_suffix(suffix).rename(path.with_name(f"other{suffix}"))
    changed(
        path.with_name("other.json"),
        lambda facts: facts["per_picture"].update(file="other.parquet"),
    )


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut short": (lambda path: os.truncate(path, 100), "lost.json", "not strict JSON"),
    "NaN": (
        lambda path: path.write_text(path.read_text().replace("1.5", "NaN", 1)),
        "lost.json",
        "NaN is not JSON",
    ),
    "a key twice": (
        lambda path: path.write_text(path.read_text().replace("{", '{"task": "lost",', 1)),
        "lost.json",
        "a key stands twice",
    ),
    "an older schema": (a_version(0), "lost.json", "of schema 0, which this harness does not"),
    "a later schema": (a_version(2), "lost.json", "of schema 2; this harness reads up to 1"),
    "no table": (
        lambda path: path.with_suffix(".parquet").unlink(),
        "lost.parquet",
        "missing, though lost.json names it",
    ),
    "another table": (
        lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1"),
        "lost.parquet",
        "not the table that lost.json was made of",
    ),
    "an empty table": (empty_table, "lost.parquet", "damaged"),
    "a value": (a_value, "lost.json", "corloc is 31, but its pictures give"),
    "an interval": (an_interval, "lost.json", "the interval of corloc is 20.5 to"),
    "a picture without a value": (no_value, "lost.json", "but its pictures give"),
    "an infinite value": (an_infinite_value, "lost.json", "but its pictures give inf"),
    "a column": (no_column, "lost.parquet", "made of hit, which it does not have"),
    "a row twice": (a_row_twice, "lost.parquet", "not one row for each picture"),
    "other pictures": (other_pictures, "lost.parquet", "one is of another data set"),
    "too many rows": (too_many_rows, "lost.json", "50 pictures of the 49 that there are"),
    "a digest": (a_digest, "lost.json", "protocol.hash is not that of protocol.settings"),
    "another name": (moved, "other.json", "it says that it is voc07/lost/vits/lost.json"),
    "a link to nothing": (
        lambda path: (path.unlink(), path.symlink_to("nowhere.json")),
        "lost.json",
        "no such result",
    ),
    "a link to itself": (
        lambda path: (path.unlink(), path.symlink_to(path.name)),
        "lost.json",
        "cannot be read",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "lost.json", "a folder, not a record"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_the_only_problem_and_told_with_what_to_do(
    out: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_check, "_BETWEEN_RENAMES", 0.0)
    do, name, words = DAMAGE[damage]
    do(lost(out))
    (problem,) = check([out]).problems
    assert problem.path == lost(out).with_name(name)
    assert words in problem.what and problem.advice


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("voc07/lost/vits/gone.parquet", "a table without a record"),
        ("voc07/lost/vits/gone.head.safetensors", "a head without a record"),
        ("voc07/lost/vits/lost.head.safetensors", "a head that its record does not name"),
        ("voc07/lost/vits/.lost.json.999999999.tmp", "left by a run that was killed"),
        ("voc07/lost/vits/gone.pictures/worst-1-a.png", "pictures without a record"),
    ],
)
def test_files_that_nobody_names_are_found(out: Path, name: str, words: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"x")
    ((path, what),) = told(check([out]), out)
    assert words in what and name.startswith(path)


def test_a_temporary_file_of_a_process_that_runs_is_no_litter(out: Path) -> None:
    (lost(out).parent / f".lost.json.{os.getpid()}.tmp").write_bytes(b"x")
    assert told(check([out]), out) == []


def test_a_score_that_is_no_mean_is_made_again_from_its_counts(out: Path) -> None:
    path = out / "voc07" / "segmentation" / "vits" / "lost.json"

    def fewer(columns: dict[str, pyarrow.Array]) -> None:
        counts = columns["intersection"]
        columns["intersection"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(counts.flatten().to_numpy() // 2), 3
        )

    with_table(path, fewer)
    ((_, what),) = told(check([out]), out)
    assert what == "miou is 32.8601, but its pictures give 13.8427"


def test_the_scores_of_a_record_are_one_problem(out: Path) -> None:
    def more(facts: dict[str, Any]) -> None:
        wrong = {**facts["metrics"]["corloc"], "value": 99.0, "high": 99.0}
        facts["metrics"] |= {f"corloc_{place}": wrong for place in range(5)}

    changed(lost(out), more)
    ((_, what),) = told(check([out]), out)
    assert what.count("is 99, but its pictures give") == 3 and what.endswith("; and 2 more")


def test_a_record_where_no_table_looks_is_found_and_a_folder_in_the_folder_is_checked(
    out: Path,
) -> None:
    shutil.copytree(out / "voc07", out / "baseline" / "voc07")
    assert check([out]).records == 9 and told(check([out]), out) == []
    shutil.copy(lost(out), out / "lost.json")
    a_value(lost(out / "baseline"))
    found = told(check([out]), out)
    assert [path for path, _ in found] == ["baseline/voc07/lost/vits/lost.json", "lost.json"]
    assert "where no table looks" in found[1][1]


def test_a_link_back_up_is_told_and_a_link_to_another_disk_is_followed(
    out: Path, tmp_path: Path
) -> None:
    (out / "nyu").rename(tmp_path / "nyu")
    (out / "nyu").symlink_to(tmp_path / "nyu")
    assert check([out]).records == 5
    (out / "voc07" / "again").symlink_to(out)
    (out / "voc07" / "itself").symlink_to("itself")
    ((path, what),) = told(check([out]), out)
    assert path == "voc07/again" and "a link back" in what


def test_two_folders_are_checked_as_tables_read_them(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(out / "nyu", other / "nyu")
    assert told(check([out, other]), tmp_path) == []
    made(other, "vits", hits(0.5, 50))
    ((path, what),) = told(check([out, other]), tmp_path)
    assert path == "other/voc07/lost/vits/lost.json"
    assert "of the same cell as" in what and str(lost(out)) in what
    assert told(check([other]), tmp_path) == [] == told(check([out]), tmp_path)


def test_the_command_that_makes_a_record_again_is_the_advice(out: Path) -> None:
    command = ["harness", "run", "--task", "lost", "--out", "my results"]
    changed(lost(out), lambda facts: facts["provenance"].update(command=command))
    a_value(lost(out))
    (problem,) = check([out]).problems
    assert problem.advice.endswith("harness run --task lost --out 'my results' --overwrite")


def test_a_run_that_writes_meanwhile_is_no_damage(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = lost(out).with_suffix(".parquet")
    whole = table.read_bytes()
    table.write_bytes(b"that of the record to come")
    monkeypatch.setattr("time.sleep", lambda _: table.write_bytes(whole))
    assert told(check([out]), out) == []


def test_the_command_prints_a_table_or_json_and_its_status_says_whether_all_is_well(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", "check", str(out)]) == 0
    assert "5 records" in capsys.readouterr().out
    a_value(lost(out))
    assert main(["results", "check", str(out)]) == 2
    shown = capsys.readouterr().out
    assert f"{lost(out)}: corloc is 31" in shown and "mend it: " in shown and "1 problem\n" in shown
    for command in (
        ["results", "check", str(out), "--json"],
        ["results", "--json", "check", str(out)],
    ):
        assert main(command) == 2
        found = json.loads(capsys.readouterr().out)
        assert (found["records"], len(found["problems"])) == (5, 1)
        assert found["problems"][0]["path"] == str(lost(out))


@pytest.mark.parametrize("what", ["missing", "a file", "empty"])
def test_a_folder_without_records_is_bad_input(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    if what == "a file":
        folder.write_text("")
    elif what == "empty":
        folder.mkdir()
    assert main(["results", "check", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err
