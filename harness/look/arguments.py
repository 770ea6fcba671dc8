"""What can be typed after ``harness look``. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path


def add_look(add: Callable[[str, str, str], ArgumentParser]) -> ArgumentParser:
    """The command ``look``, made by ``add`` of a name, what it is about and an example."""
    look = add(
        "look",
        "draw what models make of pictures: norms, attention, patches, LOST's box; or figures of "
        "anatomy",
        "harness look photo.jpg --model vits,vits-reg4 --html",
    )
    look.add_argument(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="a file, a folder of pictures, or with --dataset an id",
    )
    look.add_argument("--model", action="append", default=[], metavar="NAME[,NAME]")
    look.add_argument(
        "--dataset", metavar="NAME", help="PICTUREs are ids of this data set (default: all of test)"
    )
    look.add_argument("--limit", type=int, metavar="N", help="the first N pictures only")
    look.add_argument(
        "--anatomy",
        nargs="+",
        default=[],
        type=Path,
        metavar="RECORD",
        help="draw records of the task anatomy instead: histograms of norms, norms by layer, "
        "where outliers are; with the numbers as CSV",
    )
    look.add_argument(
        "--out", type=Path, default=Path("look"), metavar="FOLDER", help="for the PNGs (look)"
    )
    look.add_argument(
        "--html", action="store_true", help="also look.html: one page with the PNGs inside"
    )
    look.add_argument(
        "--layers",
        default="quarters",
        metavar="RULE",
        help="whose norms are shown: quarters (the default), all, or a list such as embedding,5,-1",
    )
    look.add_argument(
        "--longest",
        type=int,
        default=640,
        metavar="PIXELS",
        help="a picture with a longer side is reduced to it (640)",
    )
    look.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N (default: auto)",
    )
    look.add_argument(
        "--weights",
        choices=("released", "random"),
        default="released",
        help="random: to try the machinery",
    )
    return look
