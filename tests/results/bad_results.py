"""Everything that a folder of results may have in it that no harness wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from resealed import changed, sealed, with_table

Damage = Callable[[Path], object]
"""Of the record at a path: the second model's of a pair."""

LONG = "x" * 1_000_000
HOSTILE = "\x1b[31mred\x1b[2J\x9b5m\x07\u202e\r"


def _text(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def _set(**values: Any) -> Damage:
    return lambda path: changed(path, lambda facts: facts.update(values))


def _in(part: str, **values: Any) -> Damage:
    return lambda path: changed(path, lambda facts: facts[part].update(values))


def _metric(**values: Any) -> Damage:
    return lambda path: changed(path, lambda facts: facts["metrics"]["corloc"].update(values))


def _column(name: str, values: Callable[[Any], Any]) -> Damage:
    return lambda path: with_table(
        path, lambda columns: columns.update({name: values(columns[name])})
    )


def _instead(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _numbers(first: float) -> Callable[[Any], Any]:
    return lambda column: pyarrow.array([first, *map(float, column.to_pylist()[1:])])


def _empty_table(path: Path) -> None:
    path.with_suffix(".parquet").write_bytes(b"")
    sealed(path)


def _other_name(path: Path) -> None:
    changed(path, lambda facts: facts["metrics"].update({HOSTILE: facts["metrics"].pop("corloc")}))


NOT_READ: dict[str, Damage] = {
    "cut short": lambda path: os.truncate(path, 200),
    "empty": lambda path: os.truncate(path, 0),
    "not UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"lost", b"lo\xff\xfe")),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "NaN": _text('"value": ', '"value": NaN, "was": '),
    "infinity": _text('"value": ', '"value": 1e999, "was": '),
    "a key twice": _text('"task"', '"task": "lost", "task"'),
    "half a pair of surrogates": _text('"unit": "%"', '"unit": "\\ud800"'),
    "a number of 5,000 digits": _text('"value": ', f'"value": {"9" * 5_000}, "was": '),
    "a number of 400 digits": _text('"value": ', f'"value": {"9" * 400}, "was": '),
    "nested too deep": lambda path: path.write_text('{"a":' * 100_000),
    "an older schema": _set(schema_version=0),
    "a later schema": _set(schema_version=2),
    "a schema that is text": _set(schema_version="1"),
    "no record": lambda path: path.write_text("[1, 2]"),
    "no table named": _set(per_picture=None),
    "a table elsewhere": _in("per_picture", file="../../../../etc/passwd"),
    "a hostile name of a model": _in("model", name=HOSTILE),
    "a long name of a model": _in("model", name=LONG),
    "a name of a task that climbs": _set(task="../.."),
    "a long unknown field": _set(**{LONG: 1}),
    "a hostile unknown field": _set(**{HOSTILE: 1}),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "a folder": _instead(lambda path: path.mkdir()),
    "no table": lambda path: path.with_suffix(".parquet").unlink(),
    "a table of no byte": lambda path: path.with_suffix(".parquet").write_bytes(b""),
    "another table": lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1PAR1"),
    "no metric": _set(metrics={}),
}
"""The record must be left out by every command."""

BAD_TABLE: dict[str, Damage] = {
    "a table of no byte": _empty_table,
    "NaN in a column": _column("hit", _numbers(np.nan)),
    "infinity in a column": _column("hit", _numbers(np.inf)),
    "no value in a column": _column("hit", lambda c: pyarrow.array([None, *c.to_pylist()[1:]])),
    "text for numbers": _column("hit", lambda c: pyarrow.array(["yes"] * len(c))),
    "lists for numbers": _column("hit", lambda c: pyarrow.array([[1.0]] * len(c))),
    "two numbers for one": _column(
        "hit",
        lambda c: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.ones(2 * len(c))), 2),
    ),
    "another name of the column": lambda path: with_table(
        path, lambda columns: columns.update(guess=columns.pop("hit"))
    ),
    "other pictures": _column(
        "image_id", lambda c: pyarrow.array([f"other {n}" for n in range(len(c))])
    ),
    "a picture twice": _column(
        "image_id", lambda c: pyarrow.array([c[1].as_py(), *c.to_pylist()[1:]])
    ),
    "numbers for ids": _column("image_id", lambda c: pyarrow.array(np.arange(len(c)))),
    "a row less": lambda path: with_table(
        path, lambda columns: columns.update({n: c.slice(1) for n, c in columns.items()})
    ),
    "an unknown aggregate": _metric(aggregate=HOSTILE),
    "areas that are none": _metric(
        aggregate="mean_intersection_over_union", others=["image_id", "hit"]
    ),
}
"""The record can be read, and its table cannot be, or does not give its scores."""

ODD: dict[str, Damage] = {
    "a long id": _column("image_id", lambda c: pyarrow.array([LONG[:100_000], *c.to_pylist()[1:]])),
    "a hostile unit": _metric(unit=HOSTILE),
    "a long unit": _metric(unit=LONG),
    "a hostile metric": _other_name,
    "a hostile split": _in("dataset", split=HOSTILE),
    "a hostile device": _in("cost", device=HOSTILE),
    "a long device": _in("cost", device=LONG),
    "hostile settings": _in("protocol", settings={HOSTILE: HOSTILE, "[bold]": LONG}),
    "a hostile version": _in("protocol", version=HOSTILE),
    "a hostile variant": _set(variant={"set": {HOSTILE: [HOSTILE]}, HOSTILE: LONG}),
    "a hostile role": _set(selected_on=HOSTILE, counts={HOSTILE: 10**30}),
    "a hostile command": _in("provenance", command=["harness", HOSTILE, LONG]),
    "an enormous value": _metric(value=1e308, low=-1e308, high=1e308),
    "an enormous scale": _metric(scale=1e308),
    "an enormous cost": _in("cost", seconds=1e308, pictures=10**300, peak_memory_bytes=10**300),
    "no cost": _in("cost", seconds=0, pictures=0, images_per_second=0),
}
"""Records that are none of ours, and yet records: nothing of them may reach a terminal raw."""
