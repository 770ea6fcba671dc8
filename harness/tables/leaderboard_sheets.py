"""The leaderboard drawn: for people as tables, for programs as facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.console import size
from harness.storage.mirrors import from_there
from harness.tables.compare import FEW_PICTURES
from harness.tables.leaderboard import Board, Gain, Standing, value_of
from harness.tables.rows import FLOORS, Result, plain, protocol_words
from harness.tables.sheet import Cell, Sheet, heading, measured, span


def sheets(found: Sequence[Board], start: Path) -> list[Sheet]:
    """Boards as tables. Links to records are relative to the folder ``start``."""
    return [_sheet(board, start) for board in found]


def _sheet(board: Board, start: Path) -> Sheet:
    heads = {
        name: heading(name, metric.unit, metric.higher_is_better)
        for name, metric in board.metrics.items()
    }
    bests = {name: best(board, name) for name in heads}
    several = len({each.result.variant for each in board.standings}) > 1
    rows: list[list[Cell | str]] = []
    for each in board.standings:
        result, cost = each.result, each.result.record.cost
        words = protocol_words(result.record)[1:] if several else []
        name = result.model + ("*" if result.record.model.weights == "random" else "")
        rows.append(
            [
                "floor" if each.rank is None else f"{each.rank}{'=' if each.tied else ''}",
                ", ".join([name, *words]),
                str(result.record.model.registers),
                *(_score(result, metric, bests[metric]) for metric in heads),
                _gain(each.gain, next(iter(board.metrics.values())).unit),
                f"{cost.images_per_second:.1f}",
                "–" if cost.gigaflops is None else f"{cost.gigaflops:.3g}",
                size(cost.peak_memory_bytes),
                Cell("record", link=from_there(result.path, start)),
            ]
        )
    for line in published_rows(board):
        values = (line.get(metric, "") for metric in heads)
        rows.append(["", line["label"], "", *values, "", "", "", "", line["source"]])
    title = " · ".join([*board.standings[0].result.place, ", ".join(title_words(board))])
    numbers = ["registers", *heads.values(), "gain", "images/s", "GFLOPs", "memory"]
    notes = [_protocol(board), *cautions(board)]
    return Sheet(title, ["rank", "model", *numbers, "source"], rows, numbers, notes)


def title_words(board: Board) -> list[str]:
    """What all results of a table say of their protocol."""
    words = [protocol_words(each.result.record) for each in board.standings]
    return [word for word in words[0] if all(word in each for each in words)]


def best(board: Board, metric: str) -> float | None:
    """The best value of those that are ranked."""
    values = [
        value_of(each.result, metric)
        for each in board.standings
        if each.rank is not None and metric in each.result.record.metrics
    ]
    up = board.metrics[metric].higher_is_better
    return (max(values) if up else min(values)) if values else None


def _score(result: Result, metric: str, best: float | None) -> Cell | str:
    found = result.record.metrics.get(metric)
    if found is None:
        return "–"
    spread = "" if found.sd is None else f" ± {measured(found.sd, found.unit)}"
    text = measured(found.value, found.unit) + spread
    floor = result.model in FLOORS
    text += f" ({span(found.low, found.high, found.unit)})"
    return Cell(text, bold=found.value == best and not floor)


def _gain(gain: Gain | None, unit: str) -> str:
    if gain is None:
        return ""
    text = measured(gain.value, unit, signed=True)
    if gain.low is not None and gain.high is not None:
        text += f" ({span(gain.low, gain.high, unit, signed=True)})"
    return f"{text} on {gain.baseline}"


def published_rows(board: Board) -> list[dict[str, str]]:
    """One for each model of each source, with what it has of the metrics."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in board.published:
        source = f"{each.source}, {each.where} ({each.kind})"
        line = lines.setdefault((each.label, each.source, each.where), {})
        line |= {"label": each.label, "source": source}
        spread = "" if each.spread is None else f" ± {measured(each.spread, each.unit)}"
        line[each.metric] = measured(each.value, each.unit) + spread
    return list(lines.values())


def _protocol(board: Board) -> str:
    protocol = board.record.protocol
    told = ", ".join(f"{name} {value}" for name, value in settings(board).items())
    return f"protocol {protocol.name} {protocol.version} (hash {protocol.hash[:12]}): {told}"


def settings(board: Board) -> dict[str, str]:
    """The protocol's settings as people write them."""
    return {
        name.replace("_", " "): plain(value)
        for name, value in board.record.protocol.settings.items()
        if name not in {"name", "version"}
    }


def cautions(board: Board) -> list[str]:
    """What the numbers are of and how far they carry; below a table."""
    record = board.record
    scored = {
        each.result.record.per_picture.rows
        for each in board.standings
        if each.result.record.per_picture is not None
    }
    counts = " or ".join(f"{count:,}" for count in sorted(scored))
    notes = [
        f"data set {record.dataset.name}, {record.dataset.split}: {counts} pictures scored of "
        f"{record.dataset.pictures:,} (fingerprint {record.dataset.fingerprint[:12]}); in brackets "
        "95 % bootstrap intervals over them; models of one rank (=) are not told apart by these",
    ]
    if scored and min(scored) < FEW_PICTURES:
        notes.append(f"fewer than {FEW_PICTURES} pictures: the intervals are too short")
    if any(each.result.record.selected_on == "test" for each in board.standings):
        notes.append("† setting chosen on the pictures that are reported")
    if any(each.result.record.model.weights == "random" for each in board.standings):
        notes.append("* random weights: a smoke run, not a result")
    for note in dict.fromkeys(each.note for each in board.published if each.note):
        sources = {f"{e.source}, {e.where}" for e in board.published if e.note == note}
        notes.append(f"{', '.join(sorted(sources))}: {note}")
    return notes


def facts(found: Sequence[Board], start: Path) -> list[dict[str, Any]]:
    """Boards for a program: one entry for each metric of each line, published ones included."""
    entries = []
    for board in found:
        record = board.record
        common = {
            "dataset": record.dataset.name,
            "task": record.task,
            "protocol": record.protocol.name,
            "version": record.protocol.version,
            "protocol_hash": record.protocol.hash,
            "fingerprint": record.dataset.fingerprint,
        }
        ranking = next(iter(board.metrics))
        for each in board.standings:
            entries += [
                {**common, **_entry(each, name, name == ranking, start)}
                for name in board.metrics
                if name in each.result.record.metrics
            ]
        entries += [
            {
                **common,
                "kind": line.kind,
                "model": line.label,
                "metric": line.metric,
                "unit": line.unit,
                "value": line.value,
                "source": f"{line.source}, {line.where}",
                "note": line.note,
            }
            for line in board.published
        ]
    return entries


def _entry(each: Standing, metric: str, ranking: bool, start: Path) -> dict[str, Any]:
    result, record = each.result, each.result.record
    found, gain = record.metrics[metric], each.gain if ranking else None
    return {
        "kind": "floor" if each.rank is None else "measured",
        "rank": each.rank if ranking else None,
        "tied": each.tied if ranking else None,
        "model": result.model,
        "variant": record.variant,
        "registers": record.model.registers,
        "metric": metric,
        "unit": found.unit,
        "higher_is_better": found.higher_is_better,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "sd": found.sd,
        "baseline": gain and gain.baseline,
        "gain": gain and gain.value,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "pictures": record.per_picture and record.per_picture.rows,
        "images_per_second": record.cost.images_per_second,
        "gigaflops": record.cost.gigaflops,
        "peak_memory_bytes": record.cost.peak_memory_bytes,
        "device": record.cost.device,
        "selected_on": record.selected_on,
        "record": from_there(result.path, start),
    }
