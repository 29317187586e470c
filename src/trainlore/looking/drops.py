"""What was dropped and why: reasons, domains, copies, and rows of both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from trainlore.looking.columns import SAID, coded, grouped, numbers, short, texts
from trainlore.nouns import Data
from trainlore.nouns.columns import gathered_table

EXAMPLES, PAIRS = 6, 5  # rows shown of each side, and copies beside what they copy
DOMAINS, REASONS = 10, 12  # told apart; the rest of the domains are others


def reasons(pool: Data, name: str, kept: np.ndarray) -> dict[str, Any]:
    """How many rows were dropped and kept under each word of a column."""
    codes, words = coded(pool, name)
    lost, held = (np.bincount(codes[side], minlength=len(words)) for side in (~kept, kept))
    top = [i for i in np.argsort(-lost, kind="stable")[:REASONS] if lost[i]]
    return {"column": name, "counts": [[words[i][:60], int(lost[i]), int(held[i])] for i in top]}


def domains(pool: Data, kept: np.ndarray) -> dict[str, Any]:
    """Rows of each domain (or class) before and after the step."""
    name = grouped(pool)
    if name is None:
        return {}
    codes, names = coded(pool, name)
    if len(names) < 2:
        return {}
    codes, names = np.minimum(codes, DOMAINS), names[:DOMAINS] + (["others"] if len(names) > DOMAINS else [])
    before, after = (np.bincount(c, minlength=len(names)) for c in (codes, codes[kept]))
    rows = [{"name": n[:60], "before": int(b), "after": int(a)} for n, b, a in zip(names, before, after, strict=True)]
    return {"column": name, "rows": rows}


def copies(pool: Data, kept: np.ndarray, columns: list[str]) -> dict[str, Any]:
    """Dropped rows beside the rows that they copy: by a column that ends in `_of` (or `alike`) and holds ids."""
    for name in columns:
        of = numbers(pool, name) if name.endswith("_of") or name == "alike" else None
        if of is None:
            continue
        lost, ids = np.flatnonzero(~kept & (of >= 0)), pool.ids
        order = np.argsort(ids, kind="stable")
        place = np.searchsorted(ids, of[lost], sorter=order)
        first = order[np.minimum(place, len(ids) - 1)]
        there = ids[first] == of[lost]
        lost, first = lost[there], first[there]
        if not len(lost):
            continue
        sizes = np.unique(first, return_counts=True)[1]
        shown = _spread(len(lost), PAIRS)
        pairs = []
        for row, one, source, other in zip(
            lost[shown], texts(pool, lost[shown]), first[shown], texts(pool, first[shown]), strict=True
        ):
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            pairs.append(
                {"row": int(ids[row]), "text": short(one, at), "of": int(ids[source]), "text_of": short(other, at)}
            )
        return {
            "column": name,
            "rows": len(lost),
            "groups": len(sizes),
            "largest": int(sizes.max()) + 1,
            "pairs": pairs,
        }
    return {}


def examples(
    pool: Data, kept: np.ndarray, edge: np.ndarray | None, reason: np.ndarray | None, columns: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """A few kept and dropped rows. With a score, from those nearest to the cut to the farthest; with reasons, by turns."""
    found = {}
    for side, word in ((True, "kept"), (False, "dropped")):
        where = np.flatnonzero(kept == side)
        if reason is not None and not side:
            where = where[_turns(reason[where])][:EXAMPLES]
        else:
            if edge is not None:
                where = where[np.argsort(edge[where] if side else -edge[where], kind="stable")]
            where = where[_spread(len(where), EXAMPLES)]
        found[word] = _told(pool, where, columns)
    return found


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` positions of n, evenly apart, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)) if n else np.arange(0)


def _turns(code: np.ndarray) -> np.ndarray:
    """An order of the rows (N,) in which each code has its turn before any has its second."""
    order = np.argsort(code, kind="stable")
    turn = np.empty(len(code), np.int64)
    turn[order] = np.arange(len(code)) - np.searchsorted(code[order], code[order])
    return np.lexsort((code, turn))


def _told(pool: Data, at: np.ndarray, columns: list[str]) -> list[dict[str, Any]]:
    some, group = pool.take(at), grouped(pool)
    plain = [c for c in columns if c not in SAID and not pa.types.is_nested(pool.table.schema.field(c).type)]
    wanted = [*plain, *([group] if group and group not in plain else [])]
    where = at if pool.rows is None else pool.rows[at]
    rows = gathered_table(pool.table.select(wanted), where).to_pylist() if wanted else [{}] * len(some)
    out = []
    for id, text, row in zip(some.ids.tolist(), texts(pool, at), rows, strict=True):
        said = {
            k: _plain(v) for k, v in row.items() if v is not None and not (isinstance(v, float) and not np.isfinite(v))
        }
        scores = {k: v for k in plain if (v := said.get(k, "")) != "" and not (isinstance(v, int) and v == -1)}
        kind = f"label {said[group]}" if group == "label" and group in said else str(said.get(group, ""))
        out.append({"row": id, "text": short(text), "scores": scores, "domain": kind})
    return out


def _plain(value: Any) -> Any:
    """A value as JSON has a word for it, and short."""
    return value if isinstance(value, bool | int | float) else str(value)[:60]
