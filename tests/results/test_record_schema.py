"""The published JSON Schema is that of the code, and says what the code says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_records import hits, made
from pydantic import ValidationError
from result_examples import facts

from harness.cli import main
from harness.results.check import check
from harness.results.json_schema import json_schema
from harness.schema import Record

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = ROOT / "docs" / "record.schema.json"


def valid(record: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(record))


def test_the_published_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "schema"]) == 0
    assert capsys.readouterr().out == PUBLISHED.read_text(encoding="utf-8"), (
        "harness results schema > docs/record.schema.json"
    )


def test_it_is_a_schema_that_names_its_version_and_no_place() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    assert published["title"] == "Record of vit-harness, schema 1"
    assert "$id" not in published


def test_every_field_is_described() -> None:
    published = json_schema()
    for name, part in {"Record": published, **published["$defs"]}.items():
        for field, its in part.get("properties", {}).items():
            assert its.get("description"), f"{name}.{field}"


def test_a_record_as_it_is_written_is_valid(tmp_path: Path) -> None:
    assert valid(facts())
    path = made(tmp_path, "vits-reg4", hits(0.5, 20), variant={"limit": 20}, limit=20)
    assert valid(json.loads(path.read_text()))


def put(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *above, last = where.split(".")
        for key in above:
            record = record[key]
        record[last] = value

    return change


def drop(record: dict[str, Any]) -> None:
    del record["cost"]


@pytest.mark.parametrize(
    "change",
    [
        put("surprise", 1),
        put("schema_version", 2),
        put("task", "a/b"),
        put("task", ".hidden"),
        put("model.name", "x" * 101),
        put("model.name", "\x1b[31m"),
        put("model.weights", "unknown"),
        put("metrics.corloc.value", "50"),
        put("metrics.corloc.value", None),
        put("cost.seconds", -1),
        put("dataset.fingerprint", "ABC"),
        put("provenance.started", "yesterday"),
        drop,
    ],
)
def test_schema_and_code_refuse_the_same(change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(json.dumps(facts()))
    assert valid(record)
    change(record)
    assert not valid(record)
    with pytest.raises(ValidationError):
        Record.model_validate(record)


def real_records() -> Iterator[Path]:
    yield from sorted((ROOT / "results" / "baseline").glob("*/*/*/*.json"))


def test_records_that_the_project_publishes_are_valid_and_whole() -> None:
    paths = list(real_records())
    if not paths:
        pytest.skip("results/baseline is not there: `make baseline` makes it")
    for path in paths:
        assert valid(json.loads(path.read_text(encoding="utf-8"))), path
    assert check([ROOT / "results" / "baseline"]).problems == []


@pytest.mark.slow
def test_records_that_runs_write_are_valid_and_whole(tmp_path: Path) -> None:
    common = ["--model", "pixels", "--no-store", "--out", str(tmp_path)]
    lost = ["--task", "lost", "--dataset", "scenes-demo", "--limit", "8"]
    masks = ["--task", "segmentation", "--protocol", "knn-seg", "--dataset", "scenes-few"]
    masks += ["--limit", "4", "--set", "size=64", "--set", "memory=200"]
    masks += ["--save-predictions", "1"]
    classes = ["--task", "logistic", "--dataset", "scenes-demo", "--limit", "40"]
    classes += ["--set", "resize=64", "--set", "crop=64", "--set", "c_count=3"]
    for run in (lost, masks, classes):
        assert main(["run", *run, *common]) == 0
    paths = sorted(tmp_path.glob("*/*/*/*.json"))
    assert len(paths) == 3 and list(tmp_path.glob("*/*/*/*.pictures/*.png"))
    for path in paths:
        assert valid(json.loads(path.read_text(encoding="utf-8"))), path
    assert check([tmp_path]).problems == []
