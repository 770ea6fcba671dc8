"""What can be typed after ``harness bench``. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable

_MEASURED = (
    "anatomy",
    "attention",
    "cluster",
    "dense",
    "extract",
    "grid",
    "knn",
    "linear",
    "logistic",
    "lost",
    "memory",
    "paint",
    "registers",
    "stored",
    "tables",
    "tokencut",
)


def add_bench(add: Callable[[str, str, str], ArgumentParser]) -> ArgumentParser:
    """The command ``bench``, made by ``add`` of a name, what it is about and an example."""
    bench = add(
        "bench",
        "measure speed: the pipeline, and anatomy, against the bare forward, LOST against its Gram "
        "matrix, kNN, linear heads, the logistic path and TokenCut's cut against the plain way, "
        "attention rows against the whole softmax, stored features and patches (dense) against a "
        "stream of pictures, vectors read in blocks against vectors in memory, a test-time "
        "register, the painter of scenes, tables of 2,000 records, the engine ray against the "
        "local one (cluster) and over 1,000 cells (grid)",
        "harness bench extract --model vits --dataset voc07 --limit 200",
    )
    bench.add_argument("what", choices=_MEASURED)
    bench.add_argument("--model", metavar="NAME")
    bench.add_argument("--dataset", metavar="NAME")
    bench.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="the first N pictures only; of knn and logistic, N pictures to train on",
    )
    bench.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    return bench
