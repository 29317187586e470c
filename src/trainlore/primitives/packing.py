"""Packing: which piece of which document goes where in rows of one length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model


@dataclass(frozen=True)
class Packing:
    """Pieces of documents and their places; all arrays int64 (P,).

    Piece p is `size[p]` tokens of document `doc[p]` from its token `start[p]` on; it lies in row `row[p]` at `at[p]`.
    """

    doc: np.ndarray
    start: np.ndarray
    size: np.ndarray
    row: np.ndarray
    at: np.ndarray
    rows: int
    length: int

    @property
    def cut(self) -> np.ndarray:
        """Ids of the documents that lie in more than one piece (C,)."""
        doc, pieces = np.unique(self.doc, return_counts=True)
        return doc[pieces > 1]

    @property
    def padding(self) -> float:
        """The share of the rows' tokens that nothing fills."""
        return 1.0 - float(self.size.sum()) / max(1, self.rows * self.length)


def split(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents of sizes (N,) as pieces of at most `length`: (doc, start, size), int64 (P,) each; empty ones vanish."""
    sizes = np.asarray(sizes, np.int64)
    pieces = -(-sizes // length)
    doc = np.repeat(np.arange(len(sizes)), pieces)
    start = (np.arange(len(doc)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * length
    return doc, start, np.minimum(length, sizes[doc] - start)


def best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Best-fit decreasing: (row, at) int64 (P,) for pieces of sizes (P,) in 1..length, and the number of rows.

    Longest piece first, into the row with the least room that still holds it, into a new row when none does. Sizes
    are whole numbers, so pieces of one size and rows of one room are moved in one stroke: a row with room c takes
    c // size pieces before any roomier row gets one, for after each piece it is the tightest row that still fits.
    """
    sizes = np.asarray(sizes, np.int64)
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= length:
        raise ValueError(f"sizes must lie in 1..{length}, got {sizes.min()}..{sizes.max()}; cut longer documents first")
    order = np.argsort(-sizes, kind="stable")
    row, at, rows = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64), 0
    pool: list[list[np.ndarray]] = [[] for _ in range(length + 1)]  # rows by the room they have left
    rooms = 0  # bit c is set when some row has room c: the tightest fit is one shift and one lowest bit away
    ends = np.flatnonzero(np.diff(sizes[order], append=0)) + 1
    for first, end in zip(np.r_[0, ends][:-1], ends, strict=True):
        size, done = int(sizes[order[first]]), int(first)
        while done < end:
            fits = rooms >> size
            room = size + (fits & -fits).bit_length() - 1 if fits else length
            each = room // size
            wanted = -(-(int(end) - done) // each)
            if fits:
                taken = _take(pool[room], wanted)
                if not pool[room]:
                    rooms ^= 1 << room
            else:
                taken = np.arange(rows, rows + wanted)
                rows += wanted
            n = min(int(end) - done, len(taken) * each)
            some, step = order[done : done + n], np.arange(n)
            row[some] = taken[step // each]
            at[some] = length - room + step % each * size
            full, rest = divmod(n, each)
            for left, which in ((room - each * size, taken[:full]), (room - rest * size, taken[full:])):
                if left and len(which):
                    pool[left].append(which)
                    rooms |= 1 << left
            done += n
    return row, at, rows


def _take(stack: list[np.ndarray], n: int) -> np.ndarray:
    """Up to n rows off the end of a stack of arrays."""
    taken: list[np.ndarray] = []
    while stack and n:
        top = stack.pop()
        if len(top) > n:
            stack.append(top[n:])
            top = top[:n]
        taken.append(top)
        n -= len(top)
    return np.concatenate(taken)


def pack_best_fit(sizes: np.ndarray, length: int) -> Packing:
    """Documents of sizes (N,) packed so that only those longer than `length` are cut."""
    doc, start, size = split(sizes, length)
    row, at, rows = best_fit(size, length)
    return Packing(doc, start, size, row, at, rows, length)


def pack_concat(sizes: np.ndarray, length: int) -> Packing:
    """Documents of sizes (N,) joined in order and cut every `length` tokens; the last row may be short."""
    sizes = np.asarray(sizes, np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    begin = np.unique(np.r_[(ends - sizes)[sizes > 0], np.arange(0, total, length)]).astype(np.int64)
    doc = np.searchsorted(ends, begin, side="right")
    size = np.diff(begin, append=total)
    return Packing(doc, begin - (ends - sizes)[doc], size, begin // length, begin % length, -(-total // length), length)


def lay_out(
    packing: Packing, tokens: np.ndarray, offsets: np.ndarray, pad: int = 0, labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The rows of a packing, int32 (rows, length) each: input_ids, labels, segment_ids, position_ids.

    `tokens` (T,) and `offsets` (N + 1,) are the documents' buffer; `labels` (T,) replaces the tokens as what is
    predicted. Segments count from 0 along a row and are -1 at padding; positions start anew in each segment; labels
    are -100 at padding and at the first token of a segment, which nothing before it could predict.
    """
    length, blank = (
        packing.length,
        packing.length - np.bincount(packing.row, packing.size, packing.rows).astype(np.int64),
    )
    short = np.flatnonzero(blank)  # rows with room left: a piece of padding fills each up
    row, at = np.r_[packing.row, short], np.r_[packing.at, length - blank[short]]
    order = np.lexsort((at, row))
    size = np.r_[packing.size, blank[short]][order]
    real = order < len(packing.size)
    first = np.r_[True, np.diff(row[order]) > 0][: len(order)]
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    start = np.where(real, np.r_[offsets[packing.doc] + packing.start, np.zeros(len(short), np.int64)][order], 0)

    def laid(buffer: np.ndarray, begin: np.ndarray, filling: int) -> np.ndarray:
        """Pieces of a buffer one after the other, each copied whole, the filling where there is no document."""
        empty, buffer = np.full(length, filling, np.int32), np.asarray(buffer, np.int32)
        pieces = zip(real.tolist(), begin.tolist(), (begin + size).tolist(), strict=True)
        return np.concatenate([buffer[a:b] if there else empty[: b - a] for there, a, b in pieces])

    out = {"input_ids": laid(tokens, start, pad)}
    out["labels"] = laid(tokens if labels is None else labels, start, -100)
    out["labels"][(row * length + at)[order][real]] = -100
    out["segment_ids"] = np.repeat(np.where(real, rank, -1).astype(np.int32), size)
    out["position_ids"] = laid(np.arange(length), np.zeros_like(start), 0)
    return {name: column.reshape(packing.rows, length) for name, column in out.items()}


def pack_rows(
    data: Data,
    length: int,
    pack: Callable[[np.ndarray, int], Packing],
    model: Model | None = None,
    within: str | None = None,
    cross: bool = False,
) -> Data:
    """New rows of `length` tokens made of the documents in `data` by `pack(sizes, length)`; their ids are `parents`.

    `model` encodes the text where there are no `input_ids` and gives the padding. With `within`, documents that differ
    in that column share no row, and rows keep it. With `cross`, a row is one segment: tokens see, and predict, across
    documents.
    """
    if length < 2:
        raise Bad(f"length must be at least 2 tokens, got {length}")
    if "segment_ids" in data.columns:
        raise Bad("the rows are packed already")
    if "input_ids" not in data.columns:
        if model is None:
            raise Bad("packing needs a column 'input_ids', or a `model` whose tokenizer encodes the text")
        data = model.encode(data, window=1 << 40)
    data.need("input_ids", *([within] if within else []), who="packing")
    tokens, offsets = data.lists("input_ids")
    labels = _labels(data, offsets)
    pad = 0 if model is None or model.tokenizer is None else int(model.tokenizer.pad_token_id or 0)
    sizes = np.diff(offsets)
    column = np.asarray(data[within]) if within else np.zeros(len(data), np.int8)
    names, group = np.unique(column, return_inverse=True)
    made, kinds = [], []
    for k in range(len(names)):
        rows = np.flatnonzero(group == k)
        packing = pack(sizes[rows], length)
        made.append((rows[packing.doc], packing))
        kinds.append(np.full(packing.rows, k))
    start = np.concatenate([[0], np.cumsum([p.rows for _, p in made])])
    whole = Packing(
        doc=np.concatenate([doc for doc, _ in made]),
        start=np.concatenate([p.start for _, p in made]),
        size=np.concatenate([p.size for _, p in made]),
        row=np.concatenate([p.row + at for (_, p), at in zip(made, start[:-1], strict=True)]),
        at=np.concatenate([p.at for _, p in made]),
        rows=int(start[-1]),
        length=length,
    )
    if not whole.rows:
        raise Bad("no document has a token to pack")
    columns = lay_out(whole, tokens, offsets, pad, labels)
    if cross:
        real = columns["segment_ids"] >= 0
        target = columns["input_ids"] if labels is None else _uncut(whole, labels, offsets)
        columns["labels"] = np.where(real, target, -100)
        columns["segment_ids"] = np.where(real, 0, -1).astype(np.int32)
        columns["position_ids"] = np.where(real, np.arange(length), 0).astype(np.int32)
    if within:
        columns[within] = pa.array(names[np.concatenate(kinds)])
    order = np.lexsort((whole.at, whole.row))
    ends = np.concatenate([[0], np.cumsum(np.bincount(whole.row, minlength=whole.rows))])
    return data.new(columns, parents=pa.LargeListArray.from_arrays(ends, data.ids[whole.doc[order]]))


def _labels(data: Data, offsets: np.ndarray) -> np.ndarray | None:
    if "labels" not in data.columns:
        return None
    labels, at = data.lists("labels")
    if not np.array_equal(at, offsets):
        raise Bad(
            "packing needs one label a token, but `labels` and `input_ids` differ in length: pack before labelling rows"
        )
    return labels


def _uncut(packing: Packing, labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return lay_out(packing, labels, offsets, -100)["input_ids"]
