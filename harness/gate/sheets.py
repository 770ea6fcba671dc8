"""What a gate found, as tables for the terminal and for markdown."""

from __future__ import annotations

from collections.abc import Sequence

from harness.gate.cells import Cell
from harness.gate.judge import Report
from harness.gate.pace import Pace
from harness.tables.compare import FEW_PICTURES
from harness.tables.sheet import Cell as Text
from harness.tables.sheet import Sheet, heading, measured, probability, span

NUMBERS = ["baseline", "candidate", "difference", "95 % interval", "tolerance", "p Holm"]


def sheets(report: Report) -> list[Sheet]:
    """What fails, what warns, what moved besides, and speed; unchanged cells are counted."""
    found = [table(title, cells) for title, cells in groups(report) if cells]
    if report.paces:
        found.append(speeds(report.paces, report.gate.speed or 0.0))
    return found


def groups(report: Report) -> list[tuple[str, list[Cell]]]:
    """Cells as they are told: the graver first, each once, unchanged ones not at all."""
    told = [cell for cell in report.cells if cell.action in {"pass", "ignore"}]
    return [
        ("regressed", [cell for cell in report.failing if cell.state == "regressed"]),
        (
            "fails for another reason",
            [cell for cell in report.failing if cell.state != "regressed"],
        ),
        ("warnings", [cell for cell in report.cells if cell.action == "warn"]),
        ("moved, or only told", [cell for cell in told if not _as_ever(cell)]),
    ]


def unchanged(report: Report) -> Sheet:
    """A line for each result of which no picture's value moved."""
    metrics: dict[tuple[str, str, str], list[str]] = {}
    for cell in report.cells:
        if _as_ever(cell):
            place = cell.dataset, f"{cell.task}, {cell.protocol}", cell.model
            metrics.setdefault(place, []).append(cell.metric.replace("_", " "))
    lines = [[*place, ", ".join(names)] for place, names in metrics.items()]
    return Sheet("unchanged", ["data set", "task, protocol", "model", "metrics"], lines)


def _as_ever(cell: Cell) -> bool:
    return cell.state == "unchanged" and cell.action == "pass"


def table(title: str, cells: Sequence[Cell]) -> Sheet:
    lines: list[list[Text | str]] = []
    shown = None
    for cell in cells:
        place = cell.dataset, f"{cell.task}, {cell.protocol}", cell.model
        head = ("", "", "") if place == shown else place
        shown = place
        lines.append([*head, *numbers(cell), Text(cell.state, bold=cell.state == "regressed"),
                      reason(cell)])  # fmt: skip
    columns = ["data set", "task, protocol", "model", "metric", *NUMBERS, "state", ""]
    return Sheet(title, columns, lines, NUMBERS, notes(cells))


def numbers(cell: Cell) -> list[str]:
    """Metric and ``NUMBERS`` of a cell, a dash for what it lacks."""
    unit = cell.unit
    interval = "–"
    if cell.low is not None and cell.high is not None:
        flag = " ‡" if cell.few_pictures and cell.p is not None else ""
        interval = span(cell.low, cell.high, unit, signed=True) + flag
    return [
        heading(cell.metric, unit, cell.higher_is_better),
        measured(cell.baseline, unit),
        measured(cell.candidate, unit),
        measured(cell.difference, unit, signed=True),
        interval,
        measured(cell.tolerance, unit),
        probability(cell.p_holm),
    ]


def reason(cell: Cell) -> str:
    parts = [cell.reason] if cell.reason else []
    parts += [f"ignored: {cell.ignored}"] if cell.ignored is not None else []
    return "; ".join(parts)


def notes(cells: Sequence[Cell]) -> list[str]:
    found = []
    if any(cell.p_holm is not None for cell in cells):
        found.append(
            "difference: candidate less baseline, paired over the same pictures; p: of a loss no "
            "larger than the tolerance, adjusted for all cells that moved (Holm)"
        )
    if any(cell.few_pictures and cell.p is not None for cell in cells):
        found.append(f"‡ fewer than {FEW_PICTURES} pictures: the interval is too short")
    return found


def speeds(paces: Sequence[Pace], ratio: float) -> Sheet:
    columns = ["data set", "task, protocol", "model", "baseline", "candidate", "ratio", ""]
    lines: list[list[Text | str]] = [
        [
            *(each.dataset, f"{each.task}, {each.protocol}", each.model),
            *(f"{each.baseline:.1f}", f"{each.candidate:.1f}", f"{each.ratio:.2f}"),
            Text("slower", bold=True) if each.slow else "",
        ]
        for each in paces
    ]
    title = f"images a second, at least {ratio:g} of the baseline's"
    return Sheet(title, columns, lines, ["baseline", "candidate", "ratio"])
