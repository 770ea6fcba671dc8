"""Parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.arguments import parser
from harness.errors import HarnessError, SomeFailed
from harness.gate import regress
from harness.memory import asked_memory, settle
from harness.printable import json_text, printable
from harness.results.arguments import results as _results
from harness.storage import mirrors
from harness.timing.arguments import asked
from harness.typed import names as _names
from harness.typed import settings as _settings

if TYPE_CHECKING:
    from harness.options import Options

EXIT_DONE, EXIT_FAILED, EXIT_BAD, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The ``harness`` command. 0 done, 1 a gate failed, 2 wrong use or bad input, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options = parser().parse_args(arguments)
        options.typed = ["harness", *arguments]
        mirrors.prepare(options)
        return _COMMANDS[options.command](options)
    except HarnessError as error:
        print(f"harness: {printable(mirrors.told(error))}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, SomeFailed) else EXIT_BAD
    except KeyboardInterrupt:
        print("harness: interrupted; finished results are kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`harness models | head`): leave without a complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _run(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.further import plan_further
    from harness.pictured.choice import notices
    from harness.progress import Silent, for_stream, remember_interrupts
    from harness.schema import pictures_folder

    common = dict(
        out=options.out,
        seed=options.seed,
        seeds=options.seeds,
        on_bad_picture=options.on_bad_image,
        overwrite=options.overwrite,
        store=not options.no_store,
        memory=asked_memory(options.memory),
        save_predictions=options.save_predictions,
        command=options.typed,
        **_machine(options),
    )
    time_asked = asked(options)  # wrong use is told before anything is opened
    runs = _runs(options, common)
    cells = plan_further(_names("test-on", options.test_on), *runs)
    settle(cells, runs[0], not options.dry_run)
    not_shown = notices(cells, options.save_predictions)
    for warning in dict.fromkeys(text for cell in cells for text in cell.dataset.warnings):
        print(f"harness: warning: {warning}", file=sys.stderr)
    if options.dry_run:
        from harness.timing.command import dry_run

        dry_run(options, time_asked, cells, runs[0])
        return EXIT_DONE
    alone = [cell for cell in cells if cell.reason is not None]
    if len(alone) == len(cells):
        raise HarnessError("; ".join(cell.told for cell in alone))

    from harness.differences import differences

    failed = None
    remember_interrupts()
    with Silent() if options.json else for_stream() as progress:
        for notice in not_shown:
            progress.note(notice)
        for cell in cells:
            if cell.done is not None:
                progress.note(
                    f"{mirrors.told(cell.path)}: done already (--overwrite runs it again)"
                )
            elif cell.reason is None and len(cell.repeats) < options.seeds:
                progress.note(f"{cell.path}: no seed moves it; run once")
        try:
            for _ in _engine(options)(cells, runs[0], progress):  # what runs of a suite share
                pass
        except SomeFailed as error:
            failed = error
    results = [(cell.path, cell.done) for cell in cells if cell.done is not None]
    apart = differences(cells)
    facts = [
        {
            "path": str(path),
            "pictures": str(folder) if (folder := pictures_folder(path)).is_dir() else None,
            **record.model_dump(mode="json"),
            "differences": [
                dataclasses.asdict(each)
                for each in apart
                if (each.dataset, each.task, each.model, each.protocol)
                == (record.dataset.name, record.task, record.model.name, path.stem)
            ],
        }
        for path, record in results
    ]
    facts += [{"not_applicable": cell.told} for cell in alone]
    _print(options, facts, lambda: terminal.show_results(results, alone, apart))
    if failed is not None:
        raise failed
    return EXIT_DONE


def _engine(options: argparse.Namespace) -> Callable[..., Any]:
    """Who runs the cells: this process, or the workers of a cluster."""
    from harness.engine.arguments import engine

    where = engine(options)
    if where is None:
        from harness.run import run

        return run
    from harness.engine import driver

    return lambda cells, run, progress: driver.run(cells, run, where, progress)


def _runs(options: argparse.Namespace, common: dict[str, Any]) -> list[Options]:
    """What is asked for: one run in the command's own words, or those of its suites."""
    from harness.options import Options

    models = _names("model", options.model)
    if not options.suite:
        if not options.task or not options.model:
            raise HarnessError("harness run: name a --task and a --model, or a --suite")
        run = Options(
            tasks=_names("task", options.task),
            models=models,
            datasets=_names("dataset", options.dataset),
            protocols=_names("protocol", options.protocol),
            settings=_settings(options.set),
            **common,
        )
        return [run]
    for option in ("task", "protocol", "set"):
        if getattr(options, option):
            raise HarnessError(f"--{option}: not with --suite, which names its own")
    from harness.suites import Suites

    chosen = models, _names("dataset", options.dataset)
    return Suites.load(options.suites).options(_names("suite", options.suite), *chosen, common)


def _extract(options: argparse.Namespace) -> int:
    from harness import export, terminal
    from harness.options import Options
    from harness.progress import Silent, for_stream, remember_interrupts

    wanted = Options(
        tasks=["extract"],
        models=[options.model],
        datasets=[options.dataset],
        seed=options.seed,
        on_bad_picture=options.on_bad_image,
        overwrite=options.overwrite,
        store=not options.no_store,
        **_machine(options),
    )
    extraction = export.Extraction(
        tokens=_names("tokens", options.tokens) or ["global"],
        role=options.role,
        resize=options.resize,
        crop=options.crop,
        layer=options.layer,
        norm=not options.no_norm,
        precision=options.precision,
        outliers=options.outliers,
    )
    remember_interrupts()
    with Silent() if options.json else for_stream() as progress:
        facts = export.extract(extraction, wanted, options.out, progress)
    _print(options, facts, lambda: terminal.show_facts(facts))
    return EXIT_DONE


def _store(options: argparse.Namespace) -> int:
    from harness.store_command import store

    return EXIT_DONE if store(options) else EXIT_BAD


def _registers(options: argparse.Namespace) -> int:
    from harness.registers_command import registers

    registers(options, _machine(options))
    return EXIT_DONE


def _look(options: argparse.Namespace) -> int:
    from harness.look.command import look

    look(options, _names("model", options.model), _files(options))
    return EXIT_DONE


def _pretrain(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.nano.command import pretrained

    facts = pretrained(options, _settings(options.set))
    _print(options, facts, lambda: terminal.show_facts(facts))
    return EXIT_DONE


def _models(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.registry import Registry

    registry = Registry.load(options.models)
    entries = [registry.entry(name) for name in registry.names()]
    facts = [{"name": e.name, **e.model_dump(mode="json", exclude={"name"})} for e in entries]
    _print(options, facts, lambda: terminal.show_models(entries))
    return EXIT_DONE


def _tasks(options: argparse.Namespace) -> int:
    from harness.contract.command import tasks

    return tasks(options)


def _suites(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.suites import Suites

    found = Suites.load(options.suites)
    suites = [found.suite(name) for name in found.names()]
    facts = [suite.model_dump(mode="json") for suite in suites]
    _print(options, facts, lambda: terminal.show_suites(suites))
    return EXIT_DONE


def _describe(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.describe import describe_model, describe_protocol, describe_task
    from harness.documents import unknown
    from harness.registry import Registry
    from harness.suites import Suites
    from harness.task_names import find_task, task_names

    name, registry = options.name, Registry.load(options.models, options.allow_code)
    suites = Suites.load(options.suites)
    tasks = {task: find_task(task) for task in task_names()}
    protocols = {n: protocol for task in tasks.values() for n, protocol in task.protocols.items()}
    show = terminal.show_facts
    if name in registry.names():
        facts = describe_model(registry.entry(name))
    elif name in protocols:  # before tasks: a task's default protocol often bears its name
        facts = describe_protocol(protocols[name])
    elif name in tasks:
        facts, show = describe_task(tasks[name]), terminal.show_task
    elif name in suites.names():
        suite = suites.suite(name)
        facts = suite.model_dump(mode="json")
        _print(options, facts, lambda: terminal.show_suite(facts, suite))
        return EXIT_DONE
    else:
        known = [*registry.names(), *tasks, *protocols, *suites.names()]
        raise unknown("model, task, protocol or suite", name, known, "harness models")
    _print(options, facts, lambda: show(facts))
    return EXIT_DONE


def _datasets(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.data.catalog import Catalog

    catalog = Catalog.load(options.datasets, options.data_root)
    if options.action == "fetch":
        if not options.name:
            raise HarnessError("harness datasets fetch NAME: which? `harness datasets` lists them")
        from harness.data.fetch import fetch

        with terminal.transfers() as progress:
            fetched = fetch(catalog, options.name, progress)
        facts = [{**dataclasses.asdict(one), "path": str(one.path)} for one in fetched]
        _print(options, facts, lambda: terminal.show_fetched(fetched))
        return EXIT_DONE
    rows = terminal.dataset_rows(catalog)
    _print(options, rows, lambda: terminal.show_datasets(rows))
    return EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.data.catalog import Catalog
    from harness.data.doctor import examine

    catalog = Catalog.load(options.datasets, options.data_root)
    report = examine(catalog, options.name, decode=options.decode)
    _print(options, dataclasses.asdict(report), lambda: terminal.show_report(report))
    return EXIT_DONE if report.healthy else EXIT_BAD


def _tables(options: argparse.Namespace) -> int:
    from harness.tables.command import run

    run(options, _names)
    return EXIT_DONE


def _bench(options: argparse.Namespace) -> int:
    from harness import terminal
    from harness.bench.command import measure

    facts = measure(options, _machine(options))
    _print(options, facts, lambda: terminal.show_facts(facts))
    return EXIT_DONE


def _print(options: argparse.Namespace, facts: Any, show: Callable[[], None]) -> None:
    if options.json:
        print(json_text(facts))
    else:
        show()


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    """What runs on how much of what, for every command that runs a model."""
    return {
        "limit": options.limit,
        "weights": options.weights,
        "device": options.device,
        "compiled": options.compile,
        "batch_size": options.batch_size,
        "workers": options.workers,
        **_files(options),
    }


def _files(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_files": options.models,
        "dataset_files": options.datasets,
        "data_root": options.data_root,
        "allow_code": options.allow_code,
    }


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "extract": _extract,
    "store": _store,
    "registers": _registers,
    "look": _look,
    "pretrain": _pretrain,
    "models": _models,
    "tasks": _tasks,
    "suites": _suites,
    "datasets": _datasets,
    "doctor": _doctor,
    "describe": _describe,
    "compare": _tables,
    "leaderboard": _tables,
    "results": _results,
    "report": _tables,
    "regress": regress,
    "bench": _bench,
}


if __name__ == "__main__":
    sys.exit(main())
