"""Records and tables to store, for the tests of the schema, the store, and its survival."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness import atomic, records
from harness.errors import HarnessError
from harness.records import Record

__all__ = ["HEX", "HarnessError", "Record", "atomic", "cell", "columns", "facts", "files"]
__all__ += ["finish", "make", "np", "python", "records"]

ROOT = Path(records.__file__).resolve().parent.parent
HEX = "0123456789abcdef" * 4


def facts(score: float = 50.0, **changes: Any) -> dict[str, Any]:
    """A record as JSON holds it."""
    whole: dict[str, Any] = {
        "task": "lost",
        "model": {
            "name": "vits",
            "entry": {"timm": "vit_small", "registers": 0},
            "entry_digest": HEX,
            "weights": "released",
            "weights_digest": HEX,
            "registers": 0,
        },
        "protocol": {"name": "lost", "version": "1", "hash": HEX, "settings": {"k": 100}},
        "dataset": {
            "name": "voc07",
            "split": "trainval",
            "fingerprint": HEX,
            "fingerprints": {"test": HEX},
            "pictures": 3,
        },
        "metrics": {
            "corloc": {
                "value": score,
                "low": score - 1,
                "high": score + 1,
                "unit": "%",
                "higher_is_better": True,
            }
        },
        "counts": {"skipped_no_box": 1},
        "cost": {
            "pictures": 3,
            "forward_passes": 3,
            "seconds": 1.5,
            "images_per_second": 2,
            "peak_memory_bytes": 10,
            "device": "cpu",
            "dtype": "float32",
        },
        "provenance": {
            "harness_version": "0.1.0",
            "python": "3.11.7",
            "versions": {"torch": "2"},
            "seed": 0,
            "started": "2025-01-01T00:00:00.000Z",
            "ended": "2025-01-01T00:00:02Z",
        },
    }
    return {**whole, **changes}


def make(score: float = 50.0, **changes: Any) -> Record:
    return Record.model_validate(facts(score, **changes))


def columns(score: float = 50.0) -> dict[str, Any]:
    return {
        "image_id": ["a", "b", "ü/c"],
        "score": np.array([score, np.nan, -1.5]),
        "hit": np.array([True, False, True]),
        "x0": np.array([1, 2, 2**40]),
    }


def cell(out: Path, variant: dict[str, Any] | None = None) -> Path:
    return records.record_path(out, "voc07", "lost", "vits", "lost", variant)


def files(folder: Path) -> set[str]:
    """Every file under ``folder`` but the lock."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {".lock"}


def python(script: str, *arguments: object, wrap: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Run ``script`` in another process that has this module as ``t``."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    return subprocess.Popen(
        [
            *wrap,
            sys.executable,
            "-c",
            "import result_examples as t\n" + script,
            *map(str, arguments),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output
