"""Published numbers: each names what there is, and stands only beside what it may stand beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import hits, made

from harness.data.catalog import Catalog
from harness.records import read
from harness.registry import Registry
from harness.tables.published import PublishedTable, published, sources
from harness.task_names import find_task

GOLDEN = Path(__file__).parents[1] / "golden"
TABLES = [
    pytest.param(table, id=f"{name}-{place}")
    for name, source in sources().items()
    for place, table in enumerate(source.tables)
]


@pytest.mark.parametrize("table", TABLES)
def test_a_published_table_names_protocols_metrics_models_and_data_sets_that_there_are(
    table: PublishedTable,
) -> None:
    registry, catalog = Registry.load(), set(Catalog.load().names())
    for name in table.protocols:
        protocol = find_task(table.task).protocols[name].changed(table.settings)
        assert protocol.version.partition(".")[0] == str(table.version)
        golden = json.loads((GOLDEN / f"{name}.json").read_text())
        metrics = next(iter(golden["scores"].values()))["metrics"]
        assert set(table.metrics) <= metrics.keys()
    for row in table.rows:
        assert (row.model is None) != (row.label is None)
        assert row.model is None or row.model in registry.names()
        assert row.values.keys() <= catalog and row.spread.keys() <= row.values.keys()
        if table.unit == "%":
            assert all(1 < value < 100 for value in row.values.values())


def test_unreleased_models_are_reference_lines_and_no_targets() -> None:
    tables = [t for t in sources()["registers"].tables if t.where in {"table 2a", "table 3"}]
    assert {table.kind for table in tables} == {"reference line"}
    assert all(row.model is None for table in tables for row in table.rows)


def values(path: Path) -> set[tuple[str, float, str]]:
    return {(each.label, each.value, each.kind) for each in published(read(path))}


def test_a_number_stands_beside_its_protocol_settings_and_data_set(tmp_path: Path) -> None:
    lost = values(made(tmp_path, "vits", hits(0.3)))
    assert ("dino-vits16", 61.9, "target") in lost
    assert ("DINOv2 ViT-L + reg", 55.4, "reference line") in lost
    assert ("DeiT-III ViT-B", 11.7, "reference line") not in lost
    value = values(made(tmp_path, "vits", hits(0.3), variant={"set": {"facet": "value"}}))
    assert ("DeiT-III ViT-B", 11.7, "reference line") in value
    assert ("dino-vits16", 61.9, "target") not in value


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "2.0"},
        {"dataset": "elsewhere"},
        {"variant": {"set": {"k": 50}}},
        {"variant": {"limit": 400}, "limit": 400},
        {"task": "tokencut"},
    ],
)
def test_another_version_data_set_setting_or_part_has_no_published_numbers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert values(made(tmp_path, "vits", hits(0.3), **changes)) == set()
