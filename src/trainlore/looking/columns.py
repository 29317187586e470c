"""Rows and columns as they can be looked at: which were in play, which are new, what they say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.nouns import Data
from trainlore.nouns.columns import gathered

LETTERS = 320  # of a text that is shown
TEXTS = ("text",), ("prompt", "completion"), ("prompt", "chosen"), ("prompt",), ("messages",)
SAID = {
    "domain",
    "label",
    "parents",
    *(n for names in TEXTS for n in names),
}  # no score or reason, though a step writes them anew


def sides(given: Data, out: Data) -> tuple[Data, np.ndarray] | None:
    """The rows that were in play before the step, with the columns it added, and which of them it kept (N,).

    None where the step made other rows, so that no row of the one is a row of the other."""
    whole = out.whole()
    if out.table.num_rows == given.table.num_rows and np.array_equal(whole.ids, given.whole().ids):
        pool = dataclasses.replace(out, rows=given.rows)
    elif out.table.num_rows == len(given) and np.array_equal(whole.ids, given.ids):
        pool = whole  # the step wrote a row that it was given twice
    else:
        return None
    if any(c not in out.columns for c in given.columns) or ("parents" in out.columns) != ("parents" in given.columns):
        return None
    if out.rows is None:
        return pool, np.ones(len(pool), bool)
    rows = np.arange(len(pool)) if pool.rows is None else pool.rows
    return pool, np.isin(rows, out.rows)


def pieces(given: Data, out: Data) -> tuple[Data, np.ndarray] | None:
    """The rows that the step made of those given, where it dropped some of them at once, and which it kept (N,)."""
    if out.rows is None or "parents" not in out.columns or out.table.num_rows == len(out.rows):
        return None
    if "parents" in given.columns and out.table["parents"].equals(given.table["parents"]):
        return None
    whole = out.whole()
    return whole, np.isin(np.arange(len(whole)), out.rows)


def changed(given: Data, pool: Data) -> list[str]:
    """The columns that the step added or wrote anew."""
    same = given.hashes() if given.table.num_rows == pool.table.num_rows else {}
    mine = pool.hashes() if same else {}
    return [c for c in pool.columns if c not in given.columns or (same and mine[c] != same[c])]


def numbers(data: Data, name: str) -> np.ndarray | None:
    """A column as float64 (N,), NaN where it says nothing; None where it does not hold numbers."""
    kind = data.table.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    values = data.table[name].cast(pa.float64(), safe=False).to_numpy()
    values = values if data.rows is None else values[data.rows]
    return np.where(np.isfinite(values), values, np.nan)


def coded(data: Data, name: str) -> tuple[np.ndarray, list[str]]:
    """A column as places (N,) in the list of its different values, the most frequent first."""
    column = data.table[name] if data.rows is None else gathered(data.table[name], data.rows)
    found = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks().dictionary_encode()
    codes = found.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(-np.bincount(codes, minlength=len(found.dictionary)), kind="stable")
    return np.argsort(order)[codes], found.dictionary.take(pa.array(order)).to_pylist()


def worded(data: Data, name: str) -> bool:
    kind = data.table.schema.field(name).type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def grouped(pool: Data) -> str | None:
    """The column that says of what kind a row is: its domain, else its class."""
    for name in ("domain", "label"):
        if name in pool.columns:
            kind = pool.table.schema.field(name).type
            if pa.types.is_integer(kind) or worded(pool, name):
                return name
    return None


def texts(pool: Data, at: np.ndarray) -> list[str]:
    """What these few rows say: their text, their prompt and answer, their messages or tokens; else nothing."""
    rows = pa.array(at if pool.rows is None else pool.rows[at], pa.int64())
    for names in TEXTS:
        if all(n in pool.columns for n in names):
            parts = [[_said(v) for v in pool.table[n].take(rows).to_pylist()] for n in names]
            return [" → ".join(p) for p in zip(*parts, strict=True)]
    if "input_ids" in pool.columns:
        return [" ".join(map(str, v or ())) for v in pool.table["input_ids"].take(rows).to_pylist()]
    return [""] * len(at)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(m.get("content") or "") if isinstance(m, dict) else str(m) for m in value)
    return str(value or "")


def short(text: str, at: int = 0) -> str:
    """The beginning of a text, or the part of it around a place further on."""
    start = max(0, at - LETTERS // 4) if at > LETTERS // 2 else 0
    end = start + LETTERS
    return ("… " if start else "") + text[start:end].strip() + (" …" if end < len(text) else "")
