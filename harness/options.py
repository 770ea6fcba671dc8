"""What a run was asked for. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from harness.errors import HarnessError
from harness.registry import Weights

OnBadPicture = Literal["fail", "skip"]


@dataclass(frozen=True)
class Options:
    """What the user asked for. No data set: each task's own default; no protocol: its first."""

    tasks: Sequence[str]
    models: Sequence[str]
    datasets: Sequence[str] = ()
    protocols: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    out: Path = Path("results")
    limit: int | None = None
    seed: int = 0
    seeds: int = 1
    weights: Weights = "released"
    device: str = "auto"
    compiled: bool = False
    batch_size: int = 8
    workers: int | None = None
    on_bad_picture: OnBadPicture = "fail"
    overwrite: bool = False
    store: bool = True
    memory: int | None = None
    save_predictions: int = 0
    model_files: Sequence[Path] = ()
    dataset_files: Sequence[Path] = ()
    data_root: Path | None = None
    allow_code: bool = False
    command: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--limit", self.limit, 1),
            ("--batch-size", self.batch_size, 1),
            ("--workers", self.workers, 0),
            ("--seed", self.seed, 0),
            ("--seeds", self.seeds, 1),
            ("--memory", self.memory, 1),
            ("--save-predictions", self.save_predictions, 0),
        ):
            if value is None:
                continue
            if not isinstance(value, int):
                raise HarnessError(f"{name} {value!r}: a whole number is needed")
            if value < least:
                raise HarnessError(f"{name} {value}: at least {least}")
            if value >= 2**63:
                raise HarnessError(f"{name} {value}: less than 2**63")
        for name, chosen, known in (
            ("weights", self.weights, get_args(Weights)),
            ("on bad picture", self.on_bad_picture, get_args(OnBadPicture)),
        ):
            if chosen not in known:
                raise HarnessError(f"{name}: {chosen!r} is none of {', '.join(known)}")
        for name, values in (("--task", self.tasks), ("--model", self.models)):
            if not values:
                raise HarnessError(f"{name}: at least one name is needed")
