"""A pickle of plain values, read without running any code of its own or of numpy's.

A pickle names functions and has them called, so that reading one can do anything. Here it may name
what rebuilds numpy's arrays and numbers, and gets stand-ins of ours for it: even numpy's own
unpickling trusts what it is given. All that comes out is containers, numbers, strings and bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError

MOST_BYTES = 2**26
_KINDS = "biuf"  # of numbers: nothing that holds objects or fields


def read_plain(path: Path) -> Any:
    """What the pickle at ``path`` holds; arrays as (nested) lists. Strings of Python 2 are taken
    for Latin-1. Raises ``HarnessError`` where it is missing, damaged, too large, or names anything
    but plain values."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MOST_BYTES:
                raise HarnessError(f"{path}: larger than {MOST_BYTES // 2**20} MiB; not read")
            return _Unpickler(file, encoding="latin1").load()
    except HarnessError:
        raise
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror}") from None
    except _Refused as error:
        raise HarnessError(
            f"{path}: refused: it names {error}, and a pickle can run any code when loaded. Save "
            "its lists and numbers alone, best as .json"
        ) from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise HarnessError(f"{path}: damaged, not a pickle: {error!r}") from None


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # what it was called before numpy 2
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


class _Dtype:
    """What ``numpy.dtype`` would be, of plain numbers only: ``i8``, and the byte order."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.type = np.dtype(str(code))
        if self.type.kind not in _KINDS:
            raise _Refused(f"numpy's {self.type}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]  # the rest is of records, which have no kind of ours
        if order in ("<", ">"):
            self.type = self.type.newbyteorder(order)


class _Array(list[Any]):
    """What numpy would rebuild: empty, then given shape, type and bytes. A list of its rows."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self[:] = _values(data, dtype, shape, "F" if fortran else "C")


def _values(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> list[Any]:
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise ValueError(f"an array made of {type(raw).__name__}")
    if not raw:
        return []  # whatever its shape: of a billion empty rows, say
    rows = np.frombuffer(raw, dtype.type).reshape(shape, order=order).tolist()
    return rows if isinstance(rows, list) else [rows]


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return _values(data, dtype, (1,), "C")[0]


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    return _Array(_values(data, dtype, shape, order))


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode``, by which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """``bytes()``, by which Python 3 writes b"" for Python 2."""
    return b""


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("__builtin__", "bytes"): _no_bytes,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
