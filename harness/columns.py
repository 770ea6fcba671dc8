"""The per-picture table as bytes: columns with one row a picture, as a parquet file."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.schema import Metric

    Column = NDArray[Any] | Sequence[str]

_MOST_TEXT = 2**31
"""Bytes in memory of one column."""


def to_parquet(columns: Mapping[str, Column]) -> tuple[bytes, int]:
    """Columns ``[n]`` or ``[n, k]`` -> the parquet file's bytes, and n."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name, values in columns.items():
        array = np.asarray(values)
        text = array.dtype.kind == "U"
        if array.dtype.kind not in "biufU" or not (array.ndim == 1 or _rows_of_numbers(array)):
            raise ValueError(
                f"column {name!r} must be [n] numbers or text, or [n, k] numbers: "
                f"{array.dtype} {list(array.shape)}"
            )
        if array.ndim == 2:
            flat = pyarrow.array(array.ravel())
            arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])
        else:
            arrays[name] = pyarrow.array(array.tolist(), pyarrow.string()) if text else array
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1:
        raise ValueError(f"per-picture columns must be of one length, not {sorted(lengths)}")
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue(), lengths.pop()


def _rows_of_numbers(array: NDArray[Any]) -> bool:
    return array.ndim == 2 and array.shape[1] > 0 and array.dtype.kind != "U"


def to_numpy(column: Any) -> NDArray[Any]:
    """Raises ``ValueError`` for a column that ``to_parquet`` does not make."""
    import numpy as np
    import pyarrow
    import pyarrow.compute

    if column.null_count:
        raise ValueError("a column has places without a value")
    if pyarrow.types.is_string(column.type):
        # numpy gives every text the room of the longest.
        longest = pyarrow.compute.max(pyarrow.compute.utf8_length(column)).as_py() or 0
        if 4 * longest * len(column) > _MOST_TEXT:
            raise ValueError(f"a text of {longest:,} characters among {len(column):,} rows")
        return np.asarray(column.to_pylist(), dtype=np.str_)
    if not pyarrow.types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.to_numpy()
    else:
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(len(column), column.type.list_size)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"a column is of {column.type}, which is neither numbers nor text")
    return values


def check_columns(
    found: Mapping[str, NDArray[Any]], metrics: Mapping[str, Metric], columns: Collection[str]
) -> None:
    """Raises ``ValueError`` for a table that no harness writes, and that nothing can be counted on.
    ``found`` are those of its ``columns`` that were read."""
    from harness.aggregates import misfit

    ids = found.get("image_id")
    if ids is not None and len(ids) and (ids.ndim, ids.dtype.kind) != (1, "U"):
        raise ValueError("image_id is no text")
    for name, metric in metrics.items():
        own = [] if metric.column is None else [metric.column, *metric.others]
        if missing := [each for each in own if each not in columns]:
            raise ValueError(f"{name} is made of {', '.join(missing)}, which it does not have")
        arrays = [found[each] for each in own if each in found]
        if not own or len(arrays) < len(own):
            continue
        if (problem := misfit(metric.aggregate, arrays)) is not None:
            raise ValueError(f"{', '.join(own)}: {problem}")
