"""The store of results: what is written comes back, and what is damaged is told apart."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_examples import cell, columns, files, make

from harness import records
from harness.errors import HarnessError


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = cell(tmp_path)
    records.write(path, make(), columns())
    return path


def test_a_record_is_stored_under_its_own_name_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the place"):
        records.write(cell(tmp_path, {"limit": 1}), make(), columns())


def test_a_record_and_its_columns_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = cell(tmp_path, {"limit": 3})
    written = records.write(path, make(limit=3, variant={"limit": 3}), columns())
    assert records.read(path) == records.finished(path) == written
    assert written.per_picture is not None
    assert (written.per_picture.rows, written.per_picture.file) == (3, path.stem + ".parquet")
    back = records.read_columns(path)
    assert list(back) == written.per_picture.columns == list(columns())
    for name, expected in columns().items():
        np.testing.assert_array_equal(back[name], np.asarray(expected))
        assert back[name].dtype.kind == np.asarray(expected).dtype.kind
    assert files(tmp_path) == {f"voc07/lost/vits/{path.stem}{s}" for s in (".json", ".parquet")}


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 5).flatmap(
        lambda n: st.tuples(
            st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n),
            st.lists(st.floats(), min_size=n, max_size=n),
        )
    )
)
def test_any_text_and_any_float_survive(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[list[str], list[float]]
) -> None:
    path = cell(tmp_path_factory.mktemp("out"))
    texts, floats = table
    records.write(path, make(), {"text": texts, "float": np.array(floats)})
    back = records.read_columns(path)
    # numpy itself drops trailing NULs of fixed-width text; that is the only thing lost.
    assert back["text"].tolist() == [text.rstrip("\0") for text in texts]
    np.testing.assert_array_equal(back["float"], np.array(floats))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (0, 2)])
def test_several_numbers_a_picture_survive_with_their_kind_and_shape(
    tmp_path: Path, kind: type, shape: tuple[int, int]
) -> None:
    numbers = np.arange(shape[0] * shape[1]).reshape(shape).astype(kind)
    if kind in (np.float32, np.float64):
        numbers[:1, :1] = np.nan
    ids = [str(row) for row in range(shape[0])]
    records.write(cell(tmp_path), make(), {"image_id": ids, "numbers": numbers})
    back = records.read_columns(cell(tmp_path))["numbers"]
    assert back.dtype == numbers.dtype and back.shape == shape
    np.testing.assert_array_equal(back, numbers)


def test_the_json_is_strict_and_ends_with_a_newline(stored: Path) -> None:
    text = stored.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text)["metrics"]["corloc"]["value"] == 50.0
    assert json.loads(text)["schema_version"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"a": np.zeros(2), "b": np.zeros(3)},
        {"a": np.zeros((2, 2, 2))},
        {"a": np.zeros((2, 0))},
        {"a": np.array([["x", "y"]])},
        {"a": np.zeros((2, 3)), "b": np.zeros(3)},
        {"a": np.array([object()])},
        {"a": np.float64(1.0)},
    ],
)
def test_columns_that_are_no_table_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="column"):
        records.write(cell(tmp_path), make(), wrong)
    assert files(tmp_path) == set()


def test_a_cell_that_was_never_run_is_not_finished(tmp_path: Path) -> None:
    assert records.finished(cell(tmp_path)) is None
    with pytest.raises(HarnessError, match="no such result"):
        records.read(cell(tmp_path))


def change(**values: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def rewrite(old: str, new: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "JSON cut short": lambda path: os.truncate(path, 100),
    "JSON empty": lambda path: os.truncate(path, 0),
    "JSON not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "JSON a list": lambda path: path.write_text("[]"),
    "JSON nested too deep": lambda path: path.write_text("[" * 100_000),
    "JSON with NaN": rewrite('"value": 50.0', '"value": NaN'),
    "JSON with infinity by overflow": rewrite('"value": 50.0', '"value": 1e999'),
    "JSON with a key twice": rewrite('"task": "lost"', '"task": "lost", "task": "lost"'),
    "an unknown key": change(surprise=1),
    "a number as text": rewrite('"value": 50.0', '"value": "50.0"'),
    "no table named": change(per_picture=None),
    "another file named as the table": rewrite('"file": "lost.parquet"', '"file": "../x.parquet"'),
    "table missing": lambda path: path.with_suffix(".parquet").unlink(),
    "table cut short": lambda path: os.truncate(path.with_suffix(".parquet"), 50),
    "table empty": lambda path: os.truncate(path.with_suffix(".parquet"), 0),
    "another table": lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_told_apart_from_not_run(stored: Path, damage: str) -> None:
    DAMAGE[damage](stored)
    with pytest.raises(records.DamagedResult, match=r"lost\.(json|parquet)"):
        records.finished(stored)
    with pytest.raises(records.DamagedResult):
        records.read_columns(stored)
    records.write(stored, make(), columns())
    assert records.finished(stored) is not None, "a damaged cell can be run again"


def test_a_record_of_a_later_schema_is_not_called_damaged_and_so_not_run_over(stored: Path) -> None:
    change(schema_version=2)(stored)
    with pytest.raises(HarnessError, match=r"of schema 2; .* upgrade") as caught:
        records.finished(stored)
    assert not isinstance(caught.value, records.DamagedResult)


def test_find_gives_every_record_in_order_and_names_the_damaged_ones(tmp_path: Path) -> None:
    for variant in ({}, {"limit": 1}, {"limit": 2}):
        records.write(cell(tmp_path, variant), make(variant=variant), columns())
    (tmp_path / "leaderboard.json").write_text("{}")
    (cell(tmp_path).parent / ".lost.json.99.tmp").write_text("{")
    assert [path for path, _ in records.find(tmp_path)] == sorted(
        cell(tmp_path, variant) for variant in ({}, {"limit": 1}, {"limit": 2})
    )
    os.truncate(cell(tmp_path, {"limit": 1}), 10)
    with pytest.raises(records.DamagedResult):
        list(records.find(tmp_path))
    damaged: list[HarnessError] = []
    assert len(list(records.find(tmp_path, damaged))) == 2
    assert [str(cell(tmp_path, {"limit": 1})) in str(error) for error in damaged] == [True]
    assert list(records.find(tmp_path / "nothing here")) == []
