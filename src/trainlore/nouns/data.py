"""Data: an Arrow table, the rows of it in play, and what was done to it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad
from trainlore.nouns.columns import (
    array_of,
    column_of,
    dense,
    gathered,
    gathered_table,
    hash_of,
    holed,
    leaf,
    listed,
    numeric,
    one,
    plain,
)

if TYPE_CHECKING:
    import datasets
    import torch

    from trainlore.nouns.model import Model

Batch = dict[str, Any]
TOKENS = "input_ids", "labels", "segment_ids", "position_ids"
DENSE = "features", "pixel_values"  # what a network reads as it is: never padded
PAD = {"labels": -100, "segment_ids": -1}  # by the end of a column's name; everything else pads with zero
READ = (*TOKENS, *DENSE, "label", "weight")  # what the engine reads of a batch: a value missing there is an error
GAPS = "numbers, of which some are missing"  # such a column of the user's own stays out of batches
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
        if isinstance(source, pa.RecordBatch):
            source = pa.Table.from_batches([source])
        if isinstance(source, pa.Table):
            return Data(plain(source))
        if isinstance(source, str) and source.startswith("world:"):
            from trainlore import worlds

            return worlds.data(source.removeprefix("world:"))
        if isinstance(source, str | Path):
            from trainlore.primitives import reading
            from trainlore.store import home

            return Data(reading.read(source, home() / "read", **options))
        if isinstance(source, Mapping):
            if type(source).__module__.startswith("datasets."):
                raise Bad(f"this is a DatasetDict; give one of its splits: {', '.join(map(str, source))}")
            columns = {k: column_of(k, v) for k, v in source.items()}
            lengths = {k: len(v) for k, v in columns.items()}
            if len(set(lengths.values())) > 1:
                raise Bad(f"columns differ in length: {lengths}")
            return Data(plain(pa.table(columns)))
        if type(source).__module__.startswith("datasets."):
            if not hasattr(source, "_indices"):
                raise Bad(
                    f"{type(source).__name__} has no end: take some rows first, Dataset.from_list(list(it.take(n)))"
                )
            whole = source.data.table if source._indices is None else source.with_format("arrow")[:]
            return Data(plain(whole))
        if hasattr(source, "columns") and hasattr(source, "to_arrow"):
            return Data(plain(source.to_arrow()))
        if hasattr(source, "columns") and hasattr(source, "to_dict"):
            try:
                return Data(plain(pa.Table.from_pandas(source, preserve_index=False)))
            except (pa.ArrowException, TypeError) as error:
                raise Bad(f"{' '.join(map(str, error.args))}: give the column one type") from None
        if hasattr(source, "tolist"):  # a series or an array of names
            return Data.of(source.tolist())
        if isinstance(source, Sequence) and source and all(isinstance(s, str) for s in source):
            return Data(pa.table({"text": pa.array(source, pa.large_string())}))
        if isinstance(source, Sequence) and source and all(isinstance(s, Mapping) for s in source):
            names = dict.fromkeys(k for s in source for k in s)
            return Data(plain(pa.table({k: column_of(k, [s.get(k) for s in source]) for k in names})))
        what = (
            f"an empty {type(source).__name__}"
            if isinstance(source, Sequence) and not source
            else type(source).__name__
        )
        raise Bad(f"cannot make data from {what}; give a path, a list of str or dict, a table or a frame")

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
        return self._at(name, self.rows)

    def _at(self, name: str, rows: np.ndarray | None) -> Any:
        """The column at these rows of the table. Raises Bad where a whole number or a list of numbers is missing."""
        whole = self._whole(name)
        if (missing := self._memo.get(("missing", name))) is not None:
            ids = self.whole().ids if rows is None else self.whole().ids[rows]
            if (gone := missing if rows is None else missing[rows]).any():
                shown = ", ".join(map(str, ids[gone][:5])) + (", ..." if gone.sum() > 5 else "")
                many = f"{gone.sum():,} rows" if gone.sum() > 1 else "a row"
                raise Bad(
                    f"column {name!r} has no value in {many} ({shown}): fill it, drop the rows or drop the column"
                )
        if rows is None:
            return whole
        return whole[rows] if isinstance(whole, np.ndarray) else gathered(whole, rows)

    def _whole(self, name: str) -> Any:
        """The column over all rows of the table: numpy where it can be, Arrow where not. Made once."""
        self.need_column(name)
        if ("whole", name) not in self._memo:
            column = self.table[name]
            kind = column.type
            value: Any = column
            if pa.types.is_fixed_size_list(kind) or (name in DENSE and listed(kind)):
                value = dense(column)
            elif pa.types.is_floating(kind):
                value = column.to_numpy()
            elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
                value = (pc.fill_null(column, pa.array([0]).cast(kind)[0]) if column.null_count else column).to_numpy()
            if isinstance(value, np.ndarray) and column.null_count and not pa.types.is_floating(kind):
                self._memo["missing", name] = column.is_null().to_numpy()
            self._memo["whole", name] = column if value is None else value
        return self._memo["whole", name]

    def groups(self, *names: str) -> dict[str, list[str]]:
        """The columns of these that there are, as one name a row: what a Report is grouped by."""
        return {n: np.asarray(self[n]).astype(str).tolist() for n in names if n in self.columns}

    def _gaps(self, name: str) -> bool:
        """Whether a row in play has no value in a column of whole numbers or their lists; fractions are NaN there."""
        held = self._memo.get(("gaps", name))
        if held is None or held[0] is not self.rows:
            whole = self._whole(name)
            missing = self._memo.get(("missing", name))
            if missing is not None:
                found = bool((missing if self.rows is None else missing[self.rows]).any())
            else:
                found = not isinstance(whole, np.ndarray) and holed(self.table[name])
            held = self._memo["gaps", name] = self.rows, found
        return held[1]

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
            part = column.slice(at, CHUNK) if self.rows is None else gathered(column, self.rows[at : at + CHUNK])
            yield from (s or "" for s in part.to_pylist())

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A list column as (values (sum of lengths,), offsets int64 (N+1,))."""
        if isinstance(self._whole(name), np.ndarray):
            mine = self._at(name, self.rows)
            if mine.ndim != 2:
                raise Bad(f"column {name!r} holds {'single values' if mine.ndim == 1 else 'arrays'}, not lists")
            return mine.reshape(-1), np.arange(len(mine) + 1, dtype=np.int64) * mine.shape[1]
        values, offsets = self._ragged(name)
        if self.rows is None:
            return values, offsets
        start, length = offsets[self.rows], offsets[self.rows + 1] - offsets[self.rows]
        out = np.concatenate([[0], np.cumsum(length)])
        return values[np.repeat(start - out[:-1], length) + np.arange(out[-1])], out

    def _ragged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if ("ragged", name) not in self._memo:
            column = one(self.table[name])
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                raise Bad(f"column {name!r} holds {column.type}, not lists")
            length = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            offsets = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
            flat = column.flatten()
            if flat.null_count and not pa.types.is_floating(flat.type):
                inside = (
                    np.searchsorted(offsets, np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False)), "right") - 1
                )
                raise Bad(
                    f"column {name!r} has lists with a value missing, the first in row {self.whole().ids[inside[0]]}"
                )
            self._memo["ragged", name] = flat.to_numpy(zero_copy_only=False), offsets
        return self._memo["ragged", name]

    @property
    def kinds(self) -> dict[str, str]:
        """What each batch column will hold, in the words that parts' `needs` and `gives` are written in."""

        def kind(name: str, t: pa.DataType) -> str:
            if name not in READ and numeric(t) and self._gaps(name):
                return GAPS
            if listed(t):
                if name in DENSE or pa.types.is_floating(leaf(t)):
                    return "shares" if name == "labels" else "numbers"
                return "tokens" if numeric(t) else "text"
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
        if positions.ndim != 1 or (positions.dtype.kind not in "iu" and positions.size):
            raise ValueError(f"positions are whole numbers (N,), not {positions.dtype} {positions.shape}")
        positions = positions.astype(np.int64)
        if positions.size and not -len(self) <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions from {positions.min()} to {positions.max()} of {len(self)} rows")
        positions = np.where(positions < 0, positions + len(self), positions)
        return dataclasses.replace(self, rows=positions if self.rows is None else self.rows[positions])

    def where(self, keep: Any) -> Data:
        """The rows where the mask (N,) is true, in order."""
        keep = np.asarray(keep)
        if keep.shape != (len(self),):
            raise ValueError(f"a mask of {keep.shape} over {len(self)} rows")
        return self.take(np.flatnonzero(keep))

    def with_(self, **columns: Any) -> Data:
        """The same rows with these columns added or replaced; rows out of play keep what they had, or get null."""
        table, memo = self.table, dict(self._memo)
        where = None
        if self.rows is not None:
            where = np.full(self.table.num_rows, -1, np.int64)
            where[self.rows] = np.arange(len(self.rows))
            if not np.array_equal(
                where[self.rows], np.arange(len(self.rows))
            ):  # a row taken twice may differ from itself
                return dataclasses.replace(self, table=self.arrow(), rows=None, base_ids=self.ids, _memo={}).with_(
                    **columns
                )
        for name, value in columns.items():
            array = column_of(name, value)
            if len(array) != len(self):
                raise ValueError(f"column {name!r} has {len(array)} values for {len(self)} rows")
            if where is not None:
                array = array.take(pa.array(where, mask=where < 0)) if len(self) else pa.nulls(len(where), array.type)
                if name in table.column_names and table[name].type == array.type:  # out of play nothing changes
                    array = pc.if_else(pa.array(where >= 0), array, table[name])
            at = table.schema.get_field_index(name)
            table = table.append_column(name, array) if at < 0 else table.set_column(at, name, array)
            for key in ("whole", "missing", "gaps", "ragged", "hash"):
                memo.pop((key, name), None)
        return dataclasses.replace(self, table=table, _memo=memo)

    def without(self, *names: str) -> Data:
        """The same rows without these columns."""
        return dataclasses.replace(self, table=self.table.drop_columns([n for n in names if n in self.columns]))

    def new(self, columns: Mapping[str, Any], parents: Any = None) -> Data:
        """New rows made from these. `parents`: the id of each new row's origin (N,), or a list of ids for each."""
        made = {k: column_of(k, v) for k, v in columns.items()}
        if parents is not None:
            made["parents"] = array_of(parents)
        return Data(pa.table(made), trail=self.trail)

    def join(self, other: Data) -> Data:
        """The rows of both, with the columns they share; ids are made anew."""
        shared = [c for c in self.columns if c in other.columns and c != "parents"]
        if not shared:
            raise Bad(f"no column is in both: {', '.join(self.columns)} and {', '.join(other.columns)}")
        tables = [d.arrow().select(shared) for d in (self, other)]
        try:
            both = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise Bad(f"the rows do not go together: {error}") from None
        return Data(both, trail=(*self.trail, *other.trail))

    def whole(self) -> Data:
        """All rows of the table, in play or not."""
        return self if self.rows is None else dataclasses.replace(self, rows=None)

    def dropped(self) -> Data:
        """The rows of the table that are not in play."""
        rows = np.arange(0) if self.rows is None else np.setdiff1d(np.arange(self.table.num_rows), self.rows)
        return dataclasses.replace(self, rows=rows)

    def arrow(self) -> pa.Table:
        """The rows in play as one Arrow table."""
        return self.table if self.rows is None else gathered_table(self.table, self.rows)

    def hf(self) -> datasets.Dataset:
        """The rows in play as a `datasets.Dataset`."""
        import datasets

        return datasets.Dataset(self.arrow())

    # ---- feeding a network

    def batch(self, positions: Any, model: Model | None = None) -> Batch:
        """These rows as torch tensors, ragged lists padded on the right to a multiple of 8.

        `row` holds the positions; `attention_mask` is 1 on real tokens; text stays behind, and so do whole numbers that
        some row in play lacks, unless it is what the network reads or learns: that is an error.
        """
        import torch

        positions = np.asarray(positions).astype(np.int64)
        rows = positions if self.rows is None else self.rows[positions]
        batch: Batch = {"row": torch.from_numpy(positions)}
        for name, t in zip(self.table.column_names, self.table.schema.types, strict=True):
            ragged = listed(t) and not isinstance(self._whole(name), np.ndarray)
            if not numeric(t) or (ragged and (name == "parents" or listed(t.value_type))):
                continue
            if name not in READ and not name.endswith("input_ids") and self._gaps(name):
                continue
            if ragged:
                batch[name] = _padded(*self._ragged(name), rows, _pad(name, model))
                if name.endswith("input_ids"):
                    _, offsets = self._ragged(name)
                    length = torch.from_numpy(offsets[rows + 1] - offsets[rows])
                    mask = (torch.arange(batch[name].shape[1])[None] < length[:, None]).long()
                    batch[name.removesuffix("input_ids") + "attention_mask"] = mask
            else:
                value = self._at(name, rows)
                whole = value.dtype.kind in "biu" and name not in DENSE
                batch[name] = torch.from_numpy(value.astype(np.int64 if whole else np.float32))
        if "label" in batch and "labels" not in batch:
            batch["labels"] = batch.pop("label")
        return batch

    # ---- keeping it

    def hashes(self) -> dict[str, str]:
        """The content hash of every column over the whole table, made once a column."""
        for name in self.columns:
            if ("hash", name) not in self._memo:
                self._memo["hash", name] = hash_of(self.table[name])
        return {name: self._memo["hash", name] for name in self.columns}

    @property
    def fingerprint(self) -> str:
        """The content hash of columns, rows in play and ids."""
        digest = hashlib.blake2b(repr(sorted(self.hashes().items())).encode(), digest_size=16)
        for array in (self.rows, self.base_ids):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


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
