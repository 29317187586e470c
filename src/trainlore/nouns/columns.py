"""Columns of an Arrow table: what they hold, made from anything, as numpy, their rows in any order, their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad


def gathered(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """The rows (N,) of a column in this order, one chunk of it after another.

    Arrow's own `take` first puts all chunks of a text column together: a whole copy of it in memory, for however few rows.
    """
    if column.num_chunks < 2 or not len(rows):
        return column.take(pa.array(rows, pa.int64()))
    begins = np.cumsum([0, *(len(c) for c in column.chunks)])
    of = np.searchsorted(begins, rows, side="right") - 1
    sorted_ = bool((of[1:] >= of[:-1]).all())
    order = None if sorted_ else np.argsort(of, kind="stable")
    rows, of = (rows, of) if order is None else (rows[order], of[order])
    cuts = np.flatnonzero(np.diff(of)) + 1
    found = [
        column.chunk(of[low]).take(pa.array(rows[low:high] - begins[of[low]]))
        for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]
    if order is None:
        return pa.chunked_array(found, column.type)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.chunked_array([pa.concat_arrays(found).take(pa.array(back))], column.type)


def gathered_table(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows (N,) of all columns in this order; see `gathered`."""
    return pa.table([gathered(c, rows) for c in table.columns], schema=table.schema)


def listed(t: pa.DataType) -> bool:
    return pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)


def leaf(t: pa.DataType) -> pa.DataType:
    """What the innermost lists hold."""
    while listed(t):
        t = t.value_type
    return t


def numeric(t: pa.DataType) -> bool:
    t = leaf(t)
    return pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t)


def one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        return whole.chunk(0) if whole.num_chunks else pa.array([], column.type)
    return whole


def dense(column: pa.ChunkedArray) -> np.ndarray | None:
    """Lists of one length, at every depth, as an array (N, ...); zeros where a row is null. None where lengths differ."""
    whole = one(column)
    array, shape = whole.drop_null() if whole.null_count else whole, []
    while listed(array.type):
        if array.null_count:
            return None
        if pa.types.is_fixed_size_list(array.type):
            shape.append(array.type.list_size)
        else:
            lengths = np.unique(pc.list_value_length(array).to_numpy(zero_copy_only=False))
            if len(lengths) != 1:
                return None
            shape.append(int(lengths[0]))
        array = array.flatten()
    if array.null_count and not pa.types.is_floating(array.type):
        return None
    values = array.to_numpy(zero_copy_only=False).reshape(len(whole) - whole.null_count, *shape)
    if not whole.null_count:
        return values
    out = np.zeros((len(whole), *shape), values.dtype)
    out[whole.is_valid().to_numpy(zero_copy_only=False)] = values
    return out


def plain(table: pa.Table) -> pa.Table:
    """The table with text as text, however it was packed."""
    if twice := [n for n in table.column_names if table.column_names.count(n) > 1]:
        raise Bad(f"column {twice[0]!r} is there twice: rename one")
    for at, f in enumerate(table.schema):
        kind = f.type.value_type if pa.types.is_dictionary(f.type) else f.type
        if pa.types.is_string_view(kind):
            kind = pa.large_string()
        if kind != f.type:
            table = table.set_column(at, f.name, table[f.name].cast(kind))
    return table


def column_of(name: str, value: Any) -> Any:
    """See `array_of`; raises Bad, naming the column, where the values have no common type."""
    try:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"a column is a list, not {type(value).__name__}")
        return array_of(value)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise Bad(f"column {name!r}: {error}") from None


def array_of(value: Any) -> Any:
    """An Arrow array from numpy, torch, Arrow or a list; arrays of more dimensions become lists of one length."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
    if isinstance(value, np.ndarray):
        array = pa.array(np.ascontiguousarray(value).reshape(-1))
        for size in reversed(value.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return array
    value = list(value) if isinstance(value, Iterable) else value
    if value and isinstance(value[0], str):
        return pa.array(value, pa.large_string())
    return pa.array(value)


def hash_of(column: pa.ChunkedArray) -> str:
    """Hash of the values, the same however the column is chunked."""
    digest = hashlib.blake2b(str(column.type).encode(), digest_size=16)
    for at in range(0, len(column), 1 << 16):
        piece = pa.concat_arrays(column.slice(at, 1 << 16).chunks)
        digest.update(pa.RecordBatch.from_arrays([piece], ["c"]).serialize())
    return digest.hexdigest()


def holed(column: pa.ChunkedArray) -> bool:
    """Whether a list of whole numbers holds a value that is missing."""
    flat = column
    while listed(flat.type):
        flat = pa.chunked_array([c.flatten() for c in flat.chunks], flat.type.value_type)
    return bool(flat.null_count) and not pa.types.is_floating(flat.type)
