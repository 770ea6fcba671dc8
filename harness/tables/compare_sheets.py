"""Comparisons drawn: for people as tables, for programs as facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.console import size
from harness.tables.compare import FEW_PICTURES, Comparison
from harness.tables.published import Published, published
from harness.tables.rows import Result, protocol_words
from harness.tables.sheet import Cell, Sheet, heading, measured, probability, span


def sheets(rows: Sequence[Comparison], alone: Sequence[Result]) -> list[Sheet]:
    """A table of differences and one of costs for each pair of models, and the published numbers
    of all. ``alone`` are results that only one model of a pair has."""
    found = []
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for row in rows:
        pairs.setdefault((row.first.model, row.second.model), []).append(row)
    for (first, second), those in pairs.items():
        found += [_differences(first, second, those), _costs(first, second, those)]
    if lines := _published(rows):
        found.append(lines)
    if alone and found:
        told = [f"only one of the two has: {each}" for each in alone]
        found[-1] = Sheet(**{**vars(found[-1]), "notes": [*found[-1].notes, *told]})
    return found


def _differences(first: str, second: str, rows: Sequence[Comparison]) -> Sheet:
    numbers = [first, second, "difference", "95 % interval", "p exact", "p", "p Holm"]
    lines: list[list[Cell | str]] = []
    shown = None
    for row in rows:
        place = row.dataset, f"{row.task}, {row.protocol}"
        head = ("", "") if place == shown else place
        shown, unit = place, row.unit
        name = heading(row.metric, unit, row.higher_is_better)
        if row.difference is None:
            said = [f"{row.verdict}: {row.reason}"]
            lines.append([*head, name, *["–"] * len(numbers), *said])
            continue
        assert row.low is not None and row.high is not None
        flag = " ‡" if row.few_pictures else ""
        lines.append(
            [
                *head,
                name,
                measured(row.first_value, unit),
                measured(row.second_value, unit),
                measured(row.difference, unit, signed=True),
                span(row.low, row.high, unit, signed=True) + flag,
                probability(row.p_exact),
                probability(row.p),
                probability(row.p_holm),
                Cell(row.verdict, bold=row.verdict in {"better", "worse"}),
            ]
        )
    columns = ["data set", "task, protocol", "metric", *numbers, "verdict"]
    title = f"{second} against {first}"
    return Sheet(title, columns, lines, numbers, _notes(rows))


def _notes(rows: Sequence[Comparison]) -> list[str]:
    compared = [row for row in rows if row.difference is not None]
    counts = " or ".join(f"{count:,}" for count in sorted({row.pictures for row in compared}))
    notes = []
    if compared:
        notes.append(
            f"paired over the same pictures ({counts}); p: McNemar's mid-p for hits and misses, "
            "else a permutation test; adjusted for all tests of this output (Holm), below 0.05 is "
            "better or worse"
        )
    if any(row.scenes is not None for row in compared):
        notes.append("pictures of one scene are drawn, and change sides, together")
    if any(row.verdict == "too few" for row in rows):
        notes.append("too few: the models differ on fewer than 6 pictures, which show nothing")
    if any(row.few_pictures for row in rows):
        notes.append(f"‡ fewer than {FEW_PICTURES} pictures: the interval is too short")
    if any("†" in row.protocol for row in rows):
        notes.append("† setting chosen on the pictures that are reported")
    return notes


def _costs(first: str, second: str, rows: Sequence[Comparison]) -> Sheet:
    numbers = [f"{what} {model}" for what in ("images/s", "GFLOPs", "memory")
               for model in (first, second)]  # fmt: skip
    numbers.insert(2, "ratio")
    lines = []
    devices = False
    for row in {row.second.path: row for row in rows}.values():
        ours, theirs = row.costs
        apart = (ours.device, ours.dtype) != (theirs.device, theirs.dtype)
        devices |= apart
        speeds = ours.images_per_second, theirs.images_per_second
        ratio = f"{speeds[1] / speeds[0]:.2f}" if speeds[0] and not apart else "–"
        flops = (
            "–" if each is None else f"{each:.3g}" for each in (ours.gigaflops, theirs.gigaflops)
        )
        memory = (size(each.peak_memory_bytes) for each in (ours, theirs))
        speed = (f"{each:.1f}" for each in speeds)
        lines.append([row.dataset, f"{row.task}, {row.protocol}", *speed, ratio, *flops, *memory])
    notes = ["GFLOPs of one picture at the model's default size; memory: the peak of the run"]
    if devices:
        notes.append("no ratio where the two ran on different devices or in different precision")
    return Sheet("what it costs", ["data set", "task, protocol", *numbers], lines, numbers, notes)


def lines_for(row: Comparison) -> list[Published]:
    """What was published of the two models for this metric, and of models that have no name
    here."""
    models = {row.first.model, row.second.model, None}
    found = published(row.second.record)
    return [each for each in found if each.metric == row.metric and each.model in models]


def _published(rows: Sequence[Comparison]) -> Sheet | None:
    lines: dict[tuple[str, ...], list[Cell | str]] = {}
    notes = []
    for row in rows:
        for each in lines_for(row):
            spread = "" if each.spread is None else f" ± {measured(each.spread, each.unit)}"
            cells = [
                row.dataset,
                f"{row.task}, {', '.join(protocol_words(row.second.record))}",
                each.metric.replace("_", " "),
                each.label,
                measured(each.value, each.unit) + spread,
                each.kind,
                f"{each.source}, {each.where}",
            ]
            lines[tuple(cells)] = list(cells)
            if each.note:
                notes.append(f"{each.source}, {each.where}: {each.note}")
    if not lines:
        return None
    columns = ["data set", "task, protocol", "metric", "model", "published", "is a", "source"]
    return Sheet(
        "published", columns, list(lines.values()), ["published"], list(dict.fromkeys(notes))
    )


def facts(row: Comparison) -> dict[str, Any]:
    """A comparison for a program."""
    found: dict[str, Any] = {
        "dataset": row.dataset,
        "task": row.task,
        "protocol": row.protocol,
        "protocol_hash": row.second.record.protocol.hash,
        "fingerprint": row.second.record.dataset.fingerprint,
        "metric": row.metric,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "first": row.first.model,
        "second": row.second.model,
    }
    for name in (
        *("first_value", "second_value", "difference", "low", "high", "pictures", "scenes"),
        *("few_pictures", "test", "discordant", "p_exact", "p", "p_holm", "verdict", "reason"),
    ):
        found[name] = getattr(row, name)
    for name, result, cost in zip(
        ("first", "second"), (row.first, row.second), row.costs, strict=True
    ):
        found[f"{name}_images_per_second"] = cost.images_per_second
        found[f"{name}_gigaflops"] = cost.gigaflops
        found[f"{name}_peak_memory_bytes"] = cost.peak_memory_bytes
        found[f"{name}_device"] = cost.device
        found[f"{name}_record"] = str(result.path)
    found["published"] = [
        {"model": each.label, "value": each.value, "spread": each.spread, "kind": each.kind,
         "source": f"{each.source}, {each.where}", "note": each.note}
        for each in lines_for(row)
    ]  # fmt: skip
    return found
