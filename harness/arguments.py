"""What can be typed: the commands and their options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from harness import registers_command
from harness.bench.arguments import add_bench
from harness.contract.arguments import add_tasks
from harness.engine.arguments import add_engine
from harness.gate.arguments import add_gate
from harness.look.arguments import add_look
from harness.memory import add_memory
from harness.nano.arguments import add_pretrain
from harness.results import arguments as results_arguments
from harness.storage.mirrors import results_folder
from harness.tables.arguments import add_tables
from harness.timing.arguments import add_forecast


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command; the result's ``action`` names the command."""
    whole = argparse.ArgumentParser(
        prog="harness",
        allow_abbrev=False,
        description="How good are a Vision Transformer's frozen features, and what do register "
        "tokens change?",
        epilog="example: harness run --task lost --model vitl,vitl-reg4 --dataset voc07",
    )
    whole.add_argument("--version", action=_Version)
    commands = whole.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        command.set_defaults(command=name)
        command.add_argument("--json", action="store_true", help="print JSON for a program")
        return command

    run = add("run", "score models on tasks and store the records", _RUN_EXAMPLE)
    run.add_argument("--task", action="append", default=[], metavar="NAME[,NAME]")
    run.add_argument("--model", action="append", default=[], metavar="NAME[,NAME]")
    run.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="a named list of runs (harness suites) in place of --task, --protocol and --set; "
        "--model replaces its models, --dataset its data sets",
    )
    run.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="default: the task's own",
    )
    run.add_argument(
        "--test-on",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="data sets of the same classes on which the trained head is judged too, without "
        "training (linear)",
    )
    run.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="default: the task's first (harness tasks)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="change a setting of the protocol; repeatable",
    )
    run.add_argument("--limit", type=int, metavar="N", help="the first N pictures only")
    run.add_argument(
        "--out",
        type=results_folder,
        default=Path("results"),
        metavar="FOLDER",
        help="where records go (default: results)",
    )
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    add_forecast(run)
    again = run.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="leave finished results as they are (the default)"
    )
    again.add_argument("--overwrite", action="store_true", help="run finished results again")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    run.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="run what draws (first weights, order, tokens, few-shot pictures) with N seeds from "
        "--seed on: one record, of their mean and spread",
    )
    run.add_argument("--save-predictions", type=int, default=0, metavar="N", help=_PICTURES_HELP)
    add_engine(run)
    _add_bad_image(run)
    _add_no_store(run)
    add_memory(run)
    _add_machine(run)
    _add_files(run)
    _add_suite_files(run)

    extract = add(
        "extract",
        "write features of a data set to a file, through the feature store",
        "harness extract --model vits-reg4 --dataset scenes --tokens global,patch-mean "
        "--out build/features",
    )
    extract.add_argument("--model", required=True, metavar="NAME")
    extract.add_argument("--dataset", required=True, metavar="NAME")
    extract.add_argument(
        "--tokens",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="global (the default), cls, register, registers-mean, patch, patch-mean, "
        "cls+patch-mean, center, outlier, normal",
    )
    extract.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    extract.add_argument(
        "--role", choices=("train", "select", "test", "all"), default="test", help="default: test"
    )
    extract.add_argument(
        "--resize", type=int, default=256, metavar="PIXELS", help="the shorter side (256)"
    )
    extract.add_argument(
        "--crop", type=int, default=224, metavar="PIXELS", help="side of the middle (224)"
    )
    extract.add_argument(
        "--layer", type=int, default=-1, metavar="N", help="block, negative from the end (-1)"
    )
    extract.add_argument("--no-norm", action="store_true", help="before the final norm")
    extract.add_argument(
        "--outliers",
        default="mean+3sd",
        metavar="RULE",
        help="of outlier and normal: a norm, quantile0.98, mean+3sd (the default) or valley",
    )
    extract.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp16",
        help="default: fp16, which is fp32 on a CPU",
    )
    extract.add_argument("--limit", type=int, metavar="N", help="the first N pictures only")
    extract.add_argument("--seed", type=int, default=0, metavar="N", help="of drawn tokens (0)")
    extract.add_argument("--overwrite", action="store_true", help="replace what is in FOLDER")
    _add_bad_image(extract)
    _add_no_store(extract)
    _add_machine(extract)
    _add_files(extract)

    store = add(
        "store",
        "look after the feature store (in $HARNESS_CACHE)",
        "harness store prune --max-size 50GB",
    )
    store.add_argument(
        "action",
        choices=("list", "verify", "prune", "clear"),
        help="verify: hash every shard again; prune: remove what was not used for longest",
    )
    store.add_argument("--repair", action="store_true", help="verify: remove what is damaged")
    store.add_argument("--max-size", metavar="SIZE", help="prune: what may stay, such as 50GB")
    store.add_argument("--yes", action="store_true", help="clear: without this nothing is removed")

    registers = add("registers", registers_command.ABOUT, registers_command.EXAMPLE)
    registers_command.add_arguments(registers)
    _add_machine(registers)
    _add_files(registers)

    _add_files(add_look(add))

    _add_dataset_files(add_pretrain(add))

    models = add("models", "list the models", "harness models --models mine.yaml")
    _add_model_files(models)
    _add_files(add_tasks(add))
    suites = add("suites", "list the suites: named lists of runs", "harness suites")
    _add_suite_files(suites)
    datasets = add(
        "datasets",
        "list the data sets, or fetch one",
        "harness datasets fetch voc07 --data-root ~/data",
    )
    datasets.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    datasets.add_argument("name", nargs="?", help="the data set to fetch")
    _add_dataset_files(datasets)
    doctor = add(
        "doctor",
        "examine a data set: what is there, what is missing",
        "harness doctor voc07",
    )
    doctor.add_argument("name", metavar="DATASET")
    doctor.add_argument("--decode", action="store_true", help="also decode every picture")
    _add_dataset_files(doctor)
    describe = add(
        "describe",
        "tell all about a model, a task, a protocol or a suite",
        "harness describe vitl-reg4",
    )
    describe.add_argument("name", metavar="NAME")
    _add_model_files(describe)
    _add_allow_code(describe)
    _add_suite_files(describe)
    for table in add_tables(add):
        _add_model_files(table)
    results_arguments.add_results(
        add("results", results_arguments.ABOUT, results_arguments.EXAMPLE)
    )
    add_gate(add)
    bench = add_bench(add)
    _add_machine(bench)
    _add_files(bench)
    return whole


_RUN_EXAMPLE = (
    "harness run --task lost --model vitl,vitl-reg4 --dataset voc07 --protocol lost,lost-swept"
)
_PICTURES_HELP = (
    "draw the worst, median and best N test pictures (segmentation, depth), beside the record"
)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vit-harness {version('vit-harness')}")
        parser.exit()


def _add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N (default: auto)",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures a forward pass; moves no number (8)",
    )
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="decoding processes (one a core but one, at most 8)",
    )
    command.add_argument(
        "--weights",
        choices=("released", "random"),
        default="released",
        help="random: for smoke runs, kept out of tables",
    )
    command.add_argument("--compile", action="store_true", help="run blocks through torch.compile")


def _add_bad_image(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--on-bad-image",
        choices=("fail", "skip"),
        default="fail",
        help="skip: leave bad pictures out, count and name them",
    )


def _add_no_store(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-store",
        action="store_true",
        help="neither read nor fill the feature store (in $HARNESS_CACHE)",
    )


def _add_model_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="registry file laid over the shipped one; repeatable",
    )


def _add_allow_code(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-code",
        action="store_true",
        help="run the Python functions that entries of --models FILE name as `factory:` (or "
        "HARNESS_ALLOW_CODE=1)",
    )


def _add_dataset_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--datasets",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="data-set file laid over the catalog; repeatable",
    )
    root = os.environ.get("HARNESS_DATA")
    command.add_argument(
        "--data-root",
        type=Path,
        default=Path(root) if root else None,
        metavar="FOLDER",
        help="where data sets lie (default: $HARNESS_DATA)",
    )


def _add_suite_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--suites",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="suites file laid over the shipped one; repeatable",
    )


def _add_files(command: argparse.ArgumentParser) -> None:
    _add_model_files(command)
    _add_allow_code(command)
    _add_dataset_files(command)
