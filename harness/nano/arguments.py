"""What can be typed after ``harness pretrain``. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path


def add_pretrain(add: Callable[[str, str, str], ArgumentParser]) -> ArgumentParser:
    """The command ``pretrain``, made by ``add`` of a name, what it is about and an example."""
    pretrain = add(
        "pretrain",
        "train a ViT with or without registers on any pictures",
        "harness pretrain --registers 4 --data scenes --size nano --out build/nano-reg4",
    )
    pretrain.add_argument(
        "--data", required=True, metavar="NAME|FOLDER", help="a data set, or a folder of pictures"
    )
    pretrain.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where weights, registry entry, log and checkpoint go; what is there goes on",
    )
    pretrain.add_argument(
        "--objective",
        choices=("distillation", "clip"),
        default="distillation",
        help="distillation: from pictures alone, as DINO does; clip: from pictures and captions",
    )
    pretrain.add_argument("--registers", type=int, default=0, metavar="N", help="default: 0")
    pretrain.add_argument(
        "--size", default="nano", metavar="SIZE", help="nano, tiny or small (default: nano)"
    )
    pretrain.add_argument(
        "--name", help="of the model (default: SIZE-regN, of clip SIZE-clip-regN)"
    )
    length = pretrain.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N")
    length.add_argument("--steps", type=int, metavar="N", help="default: 1250")
    pretrain.add_argument("--batch-size", type=int, metavar="N", help="default: 32; of clip: 128")
    pretrain.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    pretrain.add_argument(
        "--crop", type=int, metavar="PIXELS", help="side of the two global crops (by the size)"
    )
    pretrain.add_argument(
        "--local-crop", type=int, metavar="PIXELS", help="side of the local crops (by the size)"
    )
    pretrain.add_argument(
        "--labels",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="also name the data set's classes and kinds of objects from the class token (0)",
    )
    pretrain.add_argument("--local-crops", type=int, metavar="N", help="default: 4")
    pretrain.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="any other setting of the recipe, such as patch_weight=0 or depth=24; repeatable",
    )
    pretrain.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on a GPU, fp32 on a CPU",
    )
    pretrain.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N"
    )
    pretrain.add_argument("--workers", type=int, metavar="N", help="decoding processes")
    pretrain.add_argument("--threads", type=int, metavar="N", help="of torch, on a CPU")
    pretrain.add_argument(
        "--baseline",
        type=Path,
        metavar="FOLDER",
        help="the --out of the run without registers: becomes the entry's baseline",
    )
    pretrain.add_argument("--overwrite", action="store_true", help="start again from nothing")
    return pretrain
