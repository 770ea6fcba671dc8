"""Results made up for the tests of tables: a model, a cell, and what each picture was worth."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from result_examples import facts

from harness import records
from harness.aggregates import complete, scenes, score
from harness.documents import canonical_json
from harness.records import Record

AGGREGATE = {
    "corloc": ("mean", "hit", (), "%", True, 100.0),
    "rmse": ("mean", "rmse", (), "m", False, 1.0),
    "outlier_fraction": ("mean", "outlier_share", (), "%", False, 100.0),
    "miou": (
        *("mean_intersection_over_union", "intersection", ("predicted", "labelled")),
        *("%", True, 100.0),
    ),
    "map": ("mean_average_precision_area", "scores", ("present",), "%", True, 100.0),
}


def made(
    out: Path,
    model: str,
    columns: dict[str, NDArray[Any]],
    metric: str = "corloc",
    *,
    task: str = "lost",
    dataset: str = "voc07",
    protocol: str = "lost",
    version: str = "1.0",
    settings: dict[str, Any] | None = None,
    variant: dict[str, Any] | None = None,
    fingerprint: str | None = None,
    **changes: Any,
) -> Path:
    """Write a result of one metric; ``columns`` without ids get them. Returns its path."""
    count = len(next(iter(columns.values())))
    columns = {"image_id": np.array([f"{place:05d}" for place in range(count)]), **columns}
    aggregate, column, others, unit, up, scale = AGGREGATE[metric]
    pictures = fingerprint or hashlib.sha256(f"{dataset} {count}".encode()).hexdigest()
    table = [columns[name] for name in (column, *others)]
    numbers = scenes(columns)
    if numbers is None:
        table = complete(table)
    else:
        *table, numbers = complete([*table, numbers])
    value, (low, high) = score(aggregate, table, scale, int(pictures[:8], 16), numbers)
    whole = facts(variant=variant or {}, task=task, **changes)
    digest = hashlib.sha256(canonical_json(whole["model"]["entry"])).hexdigest()
    whole["model"] |= {
        **{"name": model, "entry_digest": digest},
        "registers": 4 if "reg4" in model else 0,
    }
    if (variant or {}).get("weights") == "random":
        whole["model"]["weights"] = "random"
    rules = {"name": protocol, "version": version, "k": 100, **(settings or {})}
    whole["protocol"] = {
        "name": protocol,
        "version": version,
        "hash": hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest(),
        "settings": rules,
    }
    whole["dataset"] |= {
        "name": dataset,
        "fingerprint": pictures,
        "fingerprints": {"test": pictures},
        "pictures": count,
    }
    whole["metrics"] = {
        metric: {
            **{"value": value, "low": low, "high": high, "unit": unit, "scale": scale},
            **{"higher_is_better": up, "column": column, "aggregate": aggregate},
            "others": list(others),
        }
    }
    path = records.record_path(out, dataset, task, model, protocol, variant)
    records.write(path, Record.model_validate(whole), columns)
    return path


def hits(share: float, count: int = 400, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Of pictures that are hard for all models alike; a larger share keeps all of a smaller's."""
    return {"hit": np.random.default_rng(seed).random(count) < share}
