"""What the commands show on a terminal: tables by rich, in the words of the design."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.console import number as _number
from harness.console import plain_table as _table
from harness.console import size
from harness.console import standard_output as _console
from harness.schema import pictures_folder
from harness.storage.mirrors import told
from harness.tables.rows import protocol_words as _protocol

if TYPE_CHECKING:
    from rich.progress import TaskID

    from harness.data.catalog import Catalog
    from harness.data.doctor import Report
    from harness.data.fetch import Fetched
    from harness.differences import Difference
    from harness.forecast import Forecast
    from harness.plan import Cell
    from harness.registry import ModelEntry
    from harness.schema import Metric, Record
    from harness.suites import Suite


def plan_facts(cells: Sequence[Cell], forecast: Forecast) -> list[dict[str, Any]]:
    """A plan as JSON: one entry a cell."""
    return [
        {
            "model": cell.entry.name,
            "dataset": cell.dataset.name,
            "task": cell.task.name,
            "protocol": cell.protocol.name,
            "trained_on": cell.base.dataset.name if cell.base else None,
            "pictures": _pictures(cell),
            "forward_passes": sum(cell.passes.values()),
            "forward_passes_saved": forecast.saved_by([cell]),
            "bytes": cell.bytes,
            "streamed": cell.block is not None,
            "bytes_stored": forecast.stored_by([cell]),
            "state": cell.state,
            "reason": cell.reason,
            "path": str(cell.path),
        }
        for cell in cells
    ]


def _pictures(cell: Cell) -> int:
    return sum(len(cell.dataset.roles[role].samples) for role in cell.requests)


def show_plan(cells: Sequence[Cell], forecast: Forecast | None = None) -> None:
    """Cells with pictures, forward passes and bytes kept; what is done already; the sums."""
    numbers = ("pictures", "forward passes", "kept")
    table = _table("model", "data set", "task", "protocol", *numbers, "state", right=numbers)
    for cell in cells:
        state = cell.state + (f": {cell.reason}" if cell.reason else "")
        if cell.base is not None and cell.reason is None:
            state += f" (head of {cell.base.dataset.name})"
        table.add_row(
            escape(cell.entry.name),
            escape(cell.dataset.name),
            cell.task.name,
            cell.path.stem,
            f"{_pictures(cell):,}",
            f"{sum(cell.passes.values()):,}",
            size(cell.bytes) + ("" if cell.block is None else " (streamed)"),
            escape(state),
        )
    console = _console()
    console.print(table)
    todo = [cell for cell in cells if cell.reason is None and cell.done is None]
    passes = {key: count for cell in todo for key, count in cell.passes.items()}
    console.print(
        f"{len(todo)} of {len(cells)} to do: {sum(passes.values()):,} forward passes (shared where "
        f"cells can), {size(sum(cell.bytes for cell in todo))} kept in memory"
    )
    saved, stored = (
        (0, 0) if forecast is None else (f(todo) for f in (forecast.saved_by, forecast.stored_by))
    )
    if saved or stored:
        console.print(
            f"the feature store spares {saved:,} of these passes (while weights are as last used) "
            f"and takes {size(stored)} more"
        )


def show_results(
    results: Sequence[tuple[Path, Record]],
    not_applicable: Sequence[Cell] = (),
    differences: Sequence[Difference] = (),
) -> None:
    """One table a (data set, task): models down, metrics across, with 95 % intervals. Below it,
    where models and their baselines are there, how far they are apart."""
    console = _console()
    groups: dict[tuple[str, str], list[tuple[Path, Record]]] = {}
    for path, record in results:
        groups.setdefault((record.task, record.dataset.name), []).append((path, record))
    for (task, dataset), rows in groups.items():
        metrics = [
            name
            for name in dict.fromkeys(name for _, record in rows for name in record.metrics)
            if any(name in record.metrics and record.metrics[name].shown for _, record in rows)
        ]
        heads = [f"{_folded(name)}\n{_arrow(rows, name)}" for name in metrics]
        numbers = (*heads, "pictures", "images\na second")
        table = _table("model", "protocol", *numbers, right=numbers, title=f"{task} on {dataset}")
        table.collapse_padding = True  # three metrics fit into 80 columns
        for _, record in rows:
            table.add_row(
                escape(record.model.name) + (" *" if record.model.weights == "random" else ""),
                escape("\n".join(_protocol(record))),
                *(_value(record.metrics.get(name)) for name in metrics),
                str(record.per_picture.rows if record.per_picture else 0),
                f"{record.cost.images_per_second:.1f}",
            )
        console.print(table)
        _print_footnotes(console, [record for _, record in rows])
        apart = [
            each
            for each in differences
            if (each.task, each.dataset) == (task, dataset) and each.metric in metrics
        ]
        if apart:
            said = {path.stem: ", ".join(_protocol(record)) for path, record in rows}
            _print_differences(console, apart, said)
    for cell in not_applicable:
        console.print(cell.told, markup=False, soft_wrap=True)
    for path, _ in results:
        console.print(f"record: {told(path)}", markup=False, soft_wrap=True)
        if (folder := pictures_folder(path)).is_dir():
            console.print(f"pictures: {folder}", markup=False, soft_wrap=True)


def _print_footnotes(console: Console, rows: Sequence[Record]) -> None:
    console.print("below each value its 95 % bootstrap interval over pictures", style="dim")
    if any(metric.sd is not None for record in rows for metric in record.metrics.values()):
        console.print("± standard deviation over seeds, or else over draws", style="dim")
    if any(record.model.weights == "random" for record in rows):
        console.print("* random weights: a smoke run, not a result; kept out of other tables")
    if any(record.selected_on == "test" for record in rows):
        console.print("† setting chosen on the pictures that are reported")
    for record in rows:
        if record.bad_pictures:
            console.print(
                f"{record.model.name}: {len(record.bad_pictures)} bad pictures left out "
                f"(named in the record)",
                markup=False,
            )
        if isinstance(found := record.details.get("summary"), dict) and "told" in found:
            console.print(
                f"{record.model.name} · {record.protocol.name}: {found['told']}", markup=False
            )
        skipped = record.counts.get("skipped_no_box")
        if skipped:
            console.print(
                f"{record.model.name} · {record.protocol.name}: {skipped} pictures without a box "
                f"skipped",
                markup=False,
            )


def _print_differences(
    console: Console, differences: Sequence[Difference], said: Mapping[str, str]
) -> None:
    """``said`` tells of the name of a record's file what protocol it is."""
    numbers = ("difference", "95 % interval")
    table = _table("model − baseline", "protocol", "metric", *numbers, right=numbers)
    table.collapse_padding = True
    shown = None
    for each in differences:
        pair = (f"{each.model} − {each.baseline}", said[each.protocol])
        table.add_row(
            *(("", "") if pair == shown else map(escape, pair)),
            each.metric.replace("_", " "),
            _number(each.value, each.unit, signed=True),
            " … ".join(_number(end, each.unit, signed=True) for end in (each.low, each.high)),
        )
        shown = pair
    console.print(table)
    counts = " or ".join(f"{count:,}" for count in sorted({each.pictures for each in differences}))
    console.print(f"paired over the same pictures ({counts})", style="dim")


def _folded(name: str) -> str:
    """A metric's name as a narrow head: its last word below the others."""
    first, _, last = name.rpartition("_")
    return f"{first.replace('_', ' ')}\n{last}".strip()


def _arrow(rows: Sequence[tuple[Path, Record]], name: str) -> str:
    metric = next(record.metrics[name] for _, record in rows if name in record.metrics)
    return f"{metric.unit} {'↑' if metric.higher_is_better else '↓'}".strip()


def _value(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    unit = metric.unit
    spread = "" if metric.sd is None else f" ± {_number(metric.sd, unit)}"
    ends = "–".join(_number(end, unit) for end in (metric.low, metric.high))
    return f"{_number(metric.value, unit)}{spread}\n{ends}"


def show_models(entries: Sequence[ModelEntry]) -> None:
    names = "name", "registers", "baseline", "reads texts", "source", "licence"
    table = _table(*names, right=("registers",))
    for entry in entries:
        table.add_row(
            escape(entry.name),
            str(entry.running_registers),
            escape(entry.baseline or ""),
            "" if entry.text is None else "yes",
            escape("; ".join(filter(None, (entry.timm or entry.factory, *entry.interventions)))),
            escape(entry.license or ""),
        )
    _console().print(table)


def show_tasks(tasks: Sequence[Mapping[str, Any]]) -> None:
    table = _table("task", "protocols (first: default)", "default data sets", "what it measures")
    for task in tasks:
        table.add_row(
            escape(task["name"]),
            escape("\n".join(task["protocols"])),
            escape(", ".join(task["default_datasets"])),
            escape(task["summary"]),
        )
    _console().print(table)


def show_suites(suites: Sequence[Suite]) -> None:
    table = _table("name", "models", "runs", "note")
    for suite in suites:
        table.add_row(
            escape(suite.name),
            escape(", ".join(suite.models) or "(name them with --model)"),
            escape("\n".join(str(run) for run in suite.runs)),
            escape(suite.note or ""),
        )
    _console().print(table)


def show_suite(facts: Mapping[str, Any], suite: Suite) -> None:
    """A suite, one line a run."""
    show_facts({**facts, "runs": "\n".join(str(run) for run in suite.runs)})


def dataset_rows(catalog: Catalog) -> list[dict[str, Any]]:
    """The catalog as JSON: name, format, whether its folder is here, where, expected pictures."""
    rows = []
    for name in catalog.names():
        entry = catalog.entry(name)
        root = catalog.root(name)
        rows.append(
            {
                "name": name,
                "format": entry.format,
                "here": not catalog.absent(name),
                "root": None if root is None else str(root),
                "pictures": dict(entry.expected),
                "license": entry.license,
                "note": entry.note,
            }
        )
    return rows


def show_datasets(rows: Sequence[Mapping[str, Any]]) -> None:
    table = _table("name", "format", "here", "pictures", "folder")
    for row in rows:
        table.add_row(
            escape(row["name"]),
            row["format"],
            "yes" if row["here"] else "no",
            ", ".join(f"{role} {count:,}" for role, count in row["pictures"].items()),
            escape(row["root"] or "(made on the fly)"),
        )
    _console().print(table)


@contextmanager
def transfers() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each download or extraction, on standard error; silent where that is a file."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def show_fetched(fetched: Sequence[Fetched]) -> None:
    console = _console()
    for one in fetched:
        digest = f" (sha256 {one.sha256})" if one.sha256 else ""
        text = f"{one.path}: {'was there already' if one.already else 'fetched' + digest}"
        console.print(text, markup=False, soft_wrap=True)


def show_report(report: Report) -> None:
    """What the doctor found: a line a finding, the command that mends it below."""
    console = _console()
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}
    for finding in report.findings:
        console.print(f"{marks[finding.level]}: {escape(finding.what)}", soft_wrap=True)
        if finding.fix:
            console.print(f"    mend it: {escape(finding.fix)}", soft_wrap=True)
    if not report.splits:
        return
    numbers = ("pictures", "missing", "boxes", "without boxes", "classes")
    table = _table("role", "split", *numbers, "fingerprint", right=numbers)
    for role, split in report.splits.items():
        counts = split.pictures, split.missing, split.boxes, split.without_boxes, split.classes
        table.add_row(
            role, escape(split.split), *(f"{count:,}" for count in counts), split.fingerprint[:16]
        )
    console.print(table)


def show_task(facts: Mapping[str, Any]) -> None:
    """A task with the names of its protocols; `harness describe PROTOCOL` tells their settings."""
    show_facts({**facts, "protocols": list(facts["protocols"])})
    _console().print("`harness describe PROTOCOL` tells a protocol's settings", style="dim")


def show_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, nested values on one line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(escape(name.replace("_", " ")), escape(_text(name, value)))
    _console().print(table)


def _text(name: str, value: Any) -> str:
    if value is None:
        return {"cached": "not on this machine"}.get(name, "–")
    if isinstance(value, Mapping):
        separator = "\n" if any(isinstance(inner, Mapping) for inner in value.values()) else ", "
        return separator.join(f"{key}: {_text(key, inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_text(name, item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
