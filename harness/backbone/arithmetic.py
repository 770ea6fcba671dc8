"""Float32 that is float32: the switches of torch that trade exactness for speed, held off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 and cuDNN's timing-based choice of algorithm move numbers from run to run: both off.

    torch has an old and a new way to set this, and refuses to read the old one where they disagree;
    so both are set, and both put back.
    """
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    operations: list[Any] = [matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)]
    operations += [getattr(mkldnn, "matmul", None), getattr(mkldnn, "conv", None)]
    operations = [one for one in operations if hasattr(one, "fp32_precision")]  # since torch 2.9
    new = [one.fp32_precision for one in operations]
    benchmark = cudnn.benchmark
    old_matmul = _or(torch.get_float32_matmul_precision, "highest")
    old_cudnn = _or(lambda: cudnn.allow_tf32, False)

    def put(old_matmul: str, old_cudnn: bool, new: list[str], benchmark: bool) -> None:
        torch.set_float32_matmul_precision(old_matmul)
        cudnn.allow_tf32, cudnn.benchmark = old_cudnn, benchmark
        for operation, value in zip(operations, new, strict=True):
            operation.fp32_precision = value

    put("highest", False, ["ieee"] * len(operations), False)
    try:
        yield
    finally:
        put(old_matmul, old_cudnn, new, benchmark)


def _or(read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except RuntimeError:
        return otherwise
