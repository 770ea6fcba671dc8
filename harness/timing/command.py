"""``harness run --dry-run``: the plan, and with ``--rate`` what it will take."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from harness import terminal
from harness.console import plain_table, size, standard_output
from harness.forecast import forecast
from harness.options import Options
from harness.plan import Cell
from harness.printable import json_text
from harness.timing.arguments import Asked
from harness.timing.arithmetic import TimeForecast, forecast_time


def dry_run(typed: Namespace, asked: Asked | None, cells: Sequence[Cell], options: Options) -> None:
    """Print the plan of ``cells``; where a forecast of time was asked for, that too. Writes
    nothing."""
    spared = forecast(cells, options)
    facts: Any = terminal.plan_facts(cells, spared)
    if asked is None:
        if typed.json:
            print(json_text(facts))
        else:
            terminal.show_plan(cells, spared)
        return
    found, device = _forecast(typed, asked, cells, options)
    if typed.json:
        print(json_text({"cells": facts, **time_facts(found, device)}))
    else:
        terminal.show_plan(cells, spared)
        show_time(found, device, measured=asked.rates is None)


def _forecast(
    typed: Namespace, asked: Asked, cells: Sequence[Cell], options: Options
) -> tuple[TimeForecast, str]:
    from harness.backbone.sources import choose_device
    from harness.progress import Silent, for_stream, remember_interrupts
    from harness.timing.measure import measure

    spared, measured = forecast(cells, options), None
    if asked.rates is None:
        remember_interrupts()
        progress = Silent() if typed.json else for_stream()
        measured = measure(cells, options, progress)
    device = "GPU" if choose_device(options.device).type == "cuda" else "device"
    return forecast_time(cells, options, spared, asked, measured), device


def time_facts(found: TimeForecast, device: str) -> dict[str, Any]:
    """A forecast as JSON; seconds."""
    return {
        "passes": [dataclasses.asdict(each) for each in found.passes],
        "fits": [dataclasses.asdict(each) for each in found.fits],
        "totals": {
            "devices": found.devices,
            "device": device,
            "wall_seconds": found.wall,
            "device_seconds": found.device_seconds,
            "pass_seconds": sum(each.seconds for each in found.passes),
            "fit_seconds": sum(each.seconds for each in found.fits),
            "loading_seconds": found.loading,
            "longest_uncut_seconds": found.longest,
            "forward_passes": sum(each.forward_passes for each in found.passes),
            "bytes_read": found.bytes_read,
            "bytes_stored": found.bytes_stored,
            "fits_left_out": len(found.left_out),
        },
    }


def show_time(found: TimeForecast, device: str, measured: bool) -> None:
    """Passes and fits, the largest first, and below them the sums."""
    numbers = ("forward passes", "takes")
    table = plain_table("model", "data set", "what", *numbers, right=numbers)
    rows = [
        (
            each.seconds,
            each.model,
            each.dataset,
            f"pass over {each.role}: {', '.join(each.protocols)}",
            f"{each.forward_passes:,}",
            duration(each.seconds),
        )
        for each in found.passes
    ]
    rows += [
        (
            each.seconds,
            each.model,
            each.dataset,
            f"fit: {each.protocol}",
            "",
            _fit(each.how, each.seconds),
        )
        for each in found.fits
        if each.how not in ("not included", "unknown")
    ]
    for _, *row in sorted(rows, key=lambda row: -row[0]):
        table.add_row(*(escape(text) for text in row))
    console = standard_output()
    console.print(table)
    many = f"{found.devices:,} {device}{'' if found.devices == 1 else 's'}"
    console.print(
        f"about {duration(found.wall)} on {many}, {hours(found.device_seconds)} {device}-hours: "
        f"passes {duration(sum(each.seconds for each in found.passes))}, fits "
        f"{duration(sum(each.seconds for each in found.fits))}, loading models "
        f"{duration(found.loading)}"
    )
    if found.devices > 1:
        console.print(f"the longest work that one {device} does alone: {duration(found.longest)}")
    console.print(
        f"feature store: {size(found.bytes_read)} to be read, {size(found.bytes_stored)} to be "
        "written"
    )
    if not measured:
        console.print("fits of heads and loading models: not included (--rate measure tries them)")
        return
    for line in found.left_out:
        said = "at least this long" if line.how == "at least" else f"not included: {line.why}"
        console.print(
            f"fit of {line.model} · {line.dataset} · {line.protocol}: {said}",
            markup=False,
            soft_wrap=True,
        )


def _fit(how: str, seconds: float) -> str:
    return f"{'≥ ' if how == 'at least' else ''}{duration(seconds)}"


def duration(seconds: float) -> str:
    """Seconds for people: ``4.2 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours_, minutes = divmod(round(seconds / 60), 60)
    if hours_ < 48:
        return f"{hours_} h {minutes:02d} min"
    days, hours_ = divmod(round(seconds / 3600), 24)
    return f"{days:,} d {hours_} h"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}" if seconds >= 3600 else f"{seconds / 3600:.3g}"
