"""Data: an Arrow table, the rows of it in play, and what was done to it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    import datasets
    import torch

    from trainlore.nouns.model import Model

Batch = dict[str, Any]
TOKENS = "input_ids", "labels", "segment_ids", "position_ids"
PAD = {"labels": -100, "segment_ids": -1}  # by the end of a column's name; everything else pads with zero
CHUNK = 8192  # rows turned into Python objects at a time


@dataclass(frozen=True, eq=False)
class Data:
    """A table and the rows of it that are in play. Never written to; every change is a new view of shared columns.

    `data["name"]` is a numpy array for numbers (2-D for lists of one length) and an Arrow array for text and ragged
    lists, both of the rows in play. `ids` names each row for life: selection keeps them, rewriting keeps them, and rows
    made from others remember theirs in the column `parents`.
    """

    table: pa.Table
    rows: np.ndarray | None = None
    base_ids: np.ndarray | None = None
    trail: tuple[dict[str, Any], ...] = ()
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    # ---- making one

    @staticmethod
    def of(source: Any, **options: Any) -> Data:
        """Make Data from a path, `world:NAME/PART`, `hub:OWNER/NAME`, list of str, dict of columns, frame, table or Dataset."""
        if isinstance(source, Data):
            return source
        if isinstance(source, pa.Table):
            return Data(source)
        if isinstance(source, str) and source.startswith("world:"):
            from trainlore import worlds

            return worlds.data(source.removeprefix("world:"))
        if isinstance(source, str | Path):
            from trainlore.primitives import reading
            from trainlore.store import home

            return Data(reading.read(source, home() / "read", **options))
        if isinstance(source, Mapping):
            lengths = {k: len(v) for k, v in source.items()}
            if len(set(lengths.values())) > 1:
                raise Bad(f"columns differ in length: {lengths}")
            return Data(pa.table({k: _arrow(v) for k, v in source.items()}))
        if type(source).__module__.startswith("datasets."):
            flat = source.flatten_indices() if source._indices is not None else source
            return Data(flat.data.table)
        if hasattr(source, "to_dict") and hasattr(source, "columns"):
            return Data(pa.Table.from_pandas(source, preserve_index=False))
        if isinstance(source, Sequence) and source and all(isinstance(s, str) for s in source):
            return Data(pa.table({"text": pa.array(source, pa.large_string())}))
        if isinstance(source, Sequence) and source and all(isinstance(s, Mapping) for s in source):
            return Data(pa.Table.from_pylist([dict(s) for s in source]))
        raise Bad(
            f"cannot make data from {type(source).__name__}; give a path, a list of str or dict, a table or a frame"
        )

    # ---- looking at it

    def __len__(self) -> int:
        return self.table.num_rows if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        return f"Data({len(self):,} rows: {', '.join(self.columns)})"

    @property
    def columns(self) -> list[str]:
        """Names of the columns there are."""
        return self.table.column_names

    @property
    def ids(self) -> np.ndarray:
        """Stable names of the rows in play, int64 (N,)."""
        ids = np.arange(self.table.num_rows) if self.base_ids is None else self.base_ids
        return ids if self.rows is None else ids[self.rows]

    def need(self, *names: str, who: str = "this step") -> None:
        """Raise Bad unless there are rows and these columns."""
        if missing := [n for n in names if n not in self.columns]:
            raise Bad(f"{who} needs column {', '.join(map(repr, missing))}; there are {', '.join(self.columns)}")
        if not len(self):
            raise Bad(f"{who} was given no rows")

    def __getitem__(self, name: str) -> Any:
        whole = self._whole(name)
        if self.rows is None:
            return whole
        return whole[self.rows] if isinstance(whole, np.ndarray) else whole.take(pa.array(self.rows))

    def _whole(self, name: str) -> Any:
        """The column over all rows of the table: numpy where it can be, Arrow where not. Made once."""
        self.need_column(name)
        if ("whole", name) not in self._memo:
            column = self.table[name]
            kind = column.type
            if pa.types.is_fixed_size_list(kind) and column.null_count == 0:
                flat = column.combine_chunks()
                flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) and flat.num_chunks else flat
                value: Any = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
            elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                if column.null_count and not pa.types.is_floating(kind):
                    raise Bad(f"column {name!r} has no value in {column.null_count} rows: fill or drop them first")
                value = column.to_numpy()
            else:
                value = column
            self._memo["whole", name] = value
        return self._memo["whole", name]

    def groups(self, *names: str) -> dict[str, list[str]]:
        """The columns of these that there are, as one name a row: what a Report is grouped by."""
        return {n: np.asarray(self[n]).astype(str).tolist() for n in names if n in self.columns}

    def need_column(self, name: str) -> None:
        """Raise Bad unless the column is there."""
        if name not in self.columns:
            raise Bad(f"no column {name!r}; there are {', '.join(self.columns)}")

    def text(self, name: str = "text") -> Iterator[str]:
        """The strings of a column in row order, a bounded chunk of them in memory at a time; null is the empty string."""
        self.need_column(name)
        column = self.table[name]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise Bad(f"column {name!r} holds {column.type}, not text")
        for at in range(0, len(self), CHUNK):
            part = column.slice(at, CHUNK) if self.rows is None else column.take(pa.array(self.rows[at : at + CHUNK]))
            yield from (s or "" for s in part.to_pylist())

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A list column as (values (sum of lengths,), offsets int64 (N+1,))."""
        whole = self._whole(name)
        if isinstance(whole, np.ndarray):
            if whole.ndim != 2:
                raise Bad(f"column {name!r} holds single values, not lists")
            mine = whole if self.rows is None else whole[self.rows]
            return mine.reshape(-1), np.arange(len(mine) + 1, dtype=np.int64) * whole.shape[1]
        values, offsets = self._ragged(name)
        if self.rows is None:
            return values, offsets
        start, length = offsets[self.rows], offsets[self.rows + 1] - offsets[self.rows]
        out = np.concatenate([[0], np.cumsum(length)])
        return values[np.repeat(start - out[:-1], length) + np.arange(out[-1])], out

    def _ragged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if ("ragged", name) not in self._memo:
            column = self.table[name].combine_chunks()
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                raise Bad(f"column {name!r} holds {column.type}, not lists")
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            offsets = column.offsets.to_numpy().astype(np.int64)
            values = column.flatten().to_numpy(zero_copy_only=False)
            self._memo["ragged", name] = values, offsets - offsets[0]
        return self._memo["ragged", name]

    @property
    def kinds(self) -> dict[str, str]:
        """What each batch column will hold, in the words that parts' `needs` and `gives` are written in."""

        def kind(name: str, t: pa.DataType) -> str:
            if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
                if pa.types.is_floating(t.value_type):
                    return "shares" if name == "labels" else "numbers"
                return "tokens"
            if pa.types.is_integer(t) or pa.types.is_boolean(t):
                return "labels"
            return "numbers" if pa.types.is_floating(t) else "text"

        kinds = {f.name: kind(f.name, f.type) for f in self.table.schema}
        if "label" in kinds and "labels" not in kinds:
            kinds["labels"] = kinds["label"]
        return {**kinds, "row": "labels"}

    # ---- changing it (always a new view)

    def take(self, positions: Any) -> Data:
        """The rows at these positions (of the rows in play), in this order."""
        positions = np.asarray(positions)
        if positions.dtype == bool:
            return self.where(positions)
        positions = positions.astype(np.int64)
        return dataclasses.replace(self, rows=positions if self.rows is None else self.rows[positions])

    def where(self, keep: Any) -> Data:
        """The rows where the mask (N,) is true, in order."""
        keep = np.asarray(keep)
        if keep.shape != (len(self),):
            raise ValueError(f"a mask of {keep.shape} over {len(self)} rows")
        return self.take(np.flatnonzero(keep))

    def with_(self, **columns: Any) -> Data:
        """The same rows with these columns added or replaced; rows out of play get null (whole numbers: any)."""
        table, memo = self.table, dict(self._memo)
        for name, value in columns.items():
            array = _arrow(value)
            if len(array) != len(self):
                raise ValueError(f"column {name!r} has {len(array)} values for {len(self)} rows")
            if self.rows is not None:
                where = np.full(self.table.num_rows, -1, np.int64)
                where[self.rows] = np.arange(len(self.rows))
                nulls = not (_numeric(array.type) and not pa.types.is_floating(array.type))  # whole numbers have no NaN
                array = array.take(pa.array(where, mask=where < 0) if nulls else pa.array(where.clip(min=0)))
            at = table.schema.get_field_index(name)
            table = table.append_column(name, array) if at < 0 else table.set_column(at, name, array)
            for key in ("whole", "ragged", "hash"):
                memo.pop((key, name), None)
        return dataclasses.replace(self, table=table, _memo=memo)

    def without(self, *names: str) -> Data:
        """The same rows without these columns."""
        return dataclasses.replace(self, table=self.table.drop_columns([n for n in names if n in self.columns]))

    def new(self, columns: Mapping[str, Any], parents: Any = None) -> Data:
        """New rows made from these. `parents`: the id of each new row's origin (N,), or a list of ids for each."""
        made = {k: _arrow(v) for k, v in columns.items()}
        if parents is not None:
            made["parents"] = _arrow(parents)
        return Data(pa.table(made), trail=self.trail)

    def join(self, other: Data) -> Data:
        """The rows of both, with the columns they share; ids are made anew, with the old ones as `parents`."""
        shared = [c for c in self.columns if c in other.columns and c != "parents"]
        tables = [d.arrow().select(shared) for d in (self, other)]
        return Data(pa.concat_tables(tables, promote_options="permissive"), trail=(*self.trail, *other.trail))

    def arrow(self) -> pa.Table:
        """The rows in play as one Arrow table."""
        return self.table if self.rows is None else self.table.take(pa.array(self.rows))

    def hf(self) -> datasets.Dataset:
        """The rows in play as a `datasets.Dataset`."""
        import datasets

        return datasets.Dataset(self.arrow())

    # ---- feeding a network

    def batch(self, positions: Any, model: Model | None = None) -> Batch:
        """These rows as torch tensors, ragged lists padded on the right to a multiple of 8.

        `row` holds the positions; `attention_mask` is 1 on real tokens; text columns stay behind.
        """
        import torch

        positions = np.asarray(positions)
        rows = positions if self.rows is None else self.rows[positions]
        batch: Batch = {"row": torch.from_numpy(positions.astype(np.int64))}
        for name, t in zip(self.table.column_names, self.table.schema.types, strict=True):
            ragged = pa.types.is_list(t) or pa.types.is_large_list(t)
            if ragged and name == "parents" or not ragged and not _numeric(t):
                continue
            if ragged:
                batch[name] = _padded(*self._ragged(name), rows, _pad(name, model))
                if name.endswith("input_ids"):
                    _, offsets = self._ragged(name)
                    length = torch.from_numpy(offsets[rows + 1] - offsets[rows])
                    mask = (torch.arange(batch[name].shape[1])[None] < length[:, None]).long()
                    batch[name.removesuffix("input_ids") + "attention_mask"] = mask
            else:
                value = self._whole(name)[rows]
                value = value.astype(np.int64) if value.dtype.kind in "biu" else value.astype(np.float32)
                batch[name] = torch.from_numpy(value)
        if "label" in batch and "labels" not in batch:
            batch["labels"] = batch.pop("label")
        return batch

    # ---- keeping it

    def hashes(self) -> dict[str, str]:
        """The content hash of every column over the whole table, made once a column."""
        for name in self.columns:
            if ("hash", name) not in self._memo:
                self._memo["hash", name] = _hash(self.table[name])
        return {name: self._memo["hash", name] for name in self.columns}

    @property
    def fingerprint(self) -> str:
        """The content hash of columns, rows in play and ids."""
        digest = hashlib.blake2b(repr(sorted(self.hashes().items())).encode(), digest_size=16)
        for array in (self.rows, self.base_ids):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _numeric(t: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(t):
        t = t.value_type
    return pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t)


def _arrow(value: Any) -> Any:
    """An Arrow array from numpy, torch, Arrow or a list; 2-D arrays become lists of one length."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value).reshape(-1)), value.shape[1])
        return pa.array(value)
    value = list(value) if isinstance(value, Iterable) else value
    if value and isinstance(value[0], str):
        return pa.array(value, pa.large_string())
    return pa.array(value)


def _pad(name: str, model: Model | None) -> int:
    if name.endswith("input_ids") and model is not None and model.tokenizer is not None:
        return int(model.tokenizer.pad_token_id or 0)
    return next((pad for end, pad in PAD.items() if name.endswith(end)), 0)


def _padded(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, pad: int) -> torch.Tensor:
    import torch

    start, length = offsets[rows], offsets[rows + 1] - offsets[rows]
    width = max(
        8, -(-int(length.max(initial=1)) // 8) * 8
    )  # few distinct widths: kernels and the meter's counts are reused
    dtype = np.float32 if values.dtype.kind == "f" else np.int64
    out = np.full((len(rows), width), pad, dtype)
    inside = np.arange(width)[None] < length[:, None]
    out[inside] = values[np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())]
    return torch.from_numpy(out)


def _hash(column: pa.ChunkedArray) -> str:
    """Hash of the values, the same however the column is chunked."""
    digest = hashlib.blake2b(str(column.type).encode(), digest_size=16)
    for at in range(0, len(column), 1 << 16):
        piece = pa.concat_arrays(column.slice(at, 1 << 16).chunks)
        digest.update(pa.RecordBatch.from_arrays([piece], ["c"]).serialize())
    return digest.hexdigest()
