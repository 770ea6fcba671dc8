"""What can be typed of a forecast of time. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

MEASURE = "measure"


def add_forecast(command: ArgumentParser) -> None:
    command.add_argument(
        "--rate",
        metavar="measure|N|FILE",
        help="with --dry-run: also forecast the time, from a few seconds of each pass on this "
        "machine, from N forward passes a second, or from a YAML file of model: N",
    )
    command.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="with --rate: how many share the work (1; of --engine ray the workers of this "
        "machine)",
    )


@dataclass(frozen=True)
class Asked:
    """``rates``: forward passes a second, by model or of all; None where they are measured."""

    rates: Mapping[str, float] | float | None
    devices: int

    def rate(self, model: str) -> float:
        """Raises ``HarnessError`` for a model whose rate was not stated."""
        if isinstance(self.rates, float):
            return self.rates
        assert self.rates is not None
        if model not in self.rates:
            raise HarnessError(
                f"--rate: the file states no rate of model {model!r} (a line `{model}: N`)"
            )
        return self.rates[model]


def asked(options: Namespace) -> Asked | None:
    """The forecast that was typed, or None. Raises ``HarnessError`` for one that makes no sense."""
    for name, value in (("rate", options.rate), ("devices", options.devices)):
        if value is not None and not options.dry_run:
            raise HarnessError(f"--{name}: only with --dry-run, which forecasts and runs nothing")
    if options.rate is None:
        if options.devices is not None:
            raise HarnessError("--devices: only with --rate (measure, a number or a file)")
        return None
    if options.devices is not None and not 1 <= options.devices <= 1_000_000:
        raise HarnessError(f"--devices {options.devices}: from 1 to 1,000,000")
    rates = None if options.rate == MEASURE else _rates(options.rate)
    return Asked(rates, options.devices or _devices(options))


def _rates(text: str) -> Mapping[str, float] | float:
    try:
        number = float(text)
    except ValueError:
        if not Path(text).is_file():
            raise HarnessError(
                f"--rate {text}: neither `{MEASURE}`, nor a number of forward passes a second, nor "
                "a file of `model: number` lines"
            ) from None
    else:
        return _positive(number, HarnessError(f"--rate {text}: a finite number above 0 is needed"))
    from harness.documents import read_yaml

    document = read_yaml(Path(text))
    return {
        model: _positive(value, document.error((model,), "a finite number above 0 is needed"))
        for model, value in document.data.items()
    }


def _positive(value: Any, otherwise: HarnessError) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise otherwise
    if not (math.isfinite(value) and value > 0):
        raise otherwise
    return float(value)


def _devices(options: Namespace) -> int:
    """One, or the workers that the engine ``ray`` would start on this machine."""
    if options.engine == "local":
        return 1
    if options.address is not None:
        raise HarnessError("--address: a dry run asks no cluster; say with --devices N how many")
    import torch

    cores = os.cpu_count() or 1
    gpus = 0 if options.device == "cpu" else torch.cuda.device_count()
    if gpus:
        return max(1, int(gpus / (options.gpus_per_task or 1.0) + 1e-9))
    return max(1, cores // (options.cpus_per_task or 1))
