"""Damage that digests do not show: a record or a table changed, and the record made to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a record."""
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def with_table(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the per-picture table of a record, given column by column as arrow arrays, and write
    its new digest and shape into the record."""
    table_path = path.with_suffix(".parquet")
    table = pyarrow.parquet.read_table(table_path)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    change(columns)
    pyarrow.parquet.write_table(pyarrow.table(columns), table_path)
    sealed(path)


def sealed(path: Path, shape: bool = True) -> None:
    """Make the record name the table that lies beside it, whatever that is; and its ``shape``."""
    data = path.with_suffix(".parquet").read_bytes()

    def seal(facts: dict[str, Any]) -> None:
        facts["per_picture"]["sha256"] = hashlib.sha256(data).hexdigest()
        if shape and data[:4] == b"PAR1":
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
            facts["per_picture"] |= {"rows": table.num_rows, "columns": table.column_names}

    changed(path, seal)
