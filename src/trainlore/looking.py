"""What a step that narrows its data did, in numbers small enough for a run's record: the report and `prepare` draw them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.nouns import Data

EXAMPLES, PAIRS = 6, 5  # rows shown of each side, and copies beside what they copy
LETTERS = 320  # of a text that is shown
DOMAINS, REASONS, SCORES = 10, 12, 3  # told apart; the rest of the domains are others
MANY = 100  # different words in a column of text beyond which it is no reason
POOL, MORE = 1600, 400  # rows of the map: of the pool, and of the kept ones where they are few among those
BUCKETS, READ = 1024, 2000  # of words and pairs of words, and letters of a text, that the map goes by
WIDE, HIGH = 1000, 750  # places on the map
CLEAR = 0.75  # from this share of the rows on its side on, a cut is one
TEXTS = ("text",), ("prompt", "completion"), ("prompt", "chosen"), ("prompt",), ("messages",)
SAID = {"domain", "label", *(n for names in TEXTS for n in names)}  # no score or reason, though a step writes them anew


def look(given: Data, out: Data) -> dict[str, Any]:
    """Scores, reasons, domains, copies, examples and a map of what this step kept and dropped; {} where it dropped nothing.

    What it dropped are the rows in play before it and not after it, not all that are out of play.
    """
    seen = sides(given, out)
    if seen is None or seen[1].all():
        return {}
    pool, kept = seen
    new = [c for c in changed(given, pool) if c not in given.columns or c not in SAID]
    scores = sorted(
        (s for c in new if (s := histogram(pool, c, kept)) is not None), key=lambda s: -(s["right"] or 0.0)
    )[:SCORES]
    edge = oriented(pool, scores[0]) if scores else None
    reason = next((c for c in new if c not in SAID and _worded(pool, c) and len(coded(pool, c)[1]) <= MANY), None)
    return {
        "rows": len(pool),
        "kept": int(kept.sum()),
        "columns": new,
        "scores": scores,
        "reasons": reasons(pool, reason, kept) if reason else {},
        "domains": domains(pool, kept),
        "copies": copies(pool, kept, new),
        "examples": examples(pool, kept, edge, coded(pool, reason)[0] if reason else None, new),
        "map": mapped(pool, kept, edge),
    }


# ---- which rows, which columns


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
    column = data.table[name] if data.rows is None else data.table[name].take(pa.array(data.rows))
    found = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks().dictionary_encode()
    codes = found.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(-np.bincount(codes, minlength=len(found.dictionary)), kind="stable")
    return np.argsort(order)[codes], found.dictionary.take(pa.array(order)).to_pylist()


def _worded(data: Data, name: str) -> bool:
    kind = data.table.schema.field(name).type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# ---- scores


def cut(score: np.ndarray, kept: np.ndarray) -> dict[str, Any] | None:
    """The place that best parts kept from dropped rows by a score (N,): `at`, whether the `higher` are kept, the share
    `right` of rows on their side (each side counts for half), and how many `kept` and `dropped` rows are on the other one."""
    known = np.isfinite(score)
    score, kept = score[known], kept[known]
    order = np.argsort(score, kind="stable")
    value, mine = score[order], kept[order]
    many, few = int(mine.sum()), int((~mine).sum())
    places = np.flatnonzero(value[1:] > value[:-1]) + 1
    if not (many and few and len(places)):
        return None
    low_kept, low_lost = (np.concatenate([[0], np.cumsum(side)])[places] for side in (mine, ~mine))
    right = (1 - low_kept / many + low_lost / few) / 2
    best = int(np.argmax(np.abs(right - 0.5)))
    higher = bool(right[best] >= 0.5)
    off = (
        (int(low_kept[best]), few - int(low_lost[best]))
        if higher
        else (many - int(low_kept[best]), int(low_lost[best]))
    )
    at = (value[places[best]] + value[places[best] - 1]) / 2
    return {
        "at": float(at),
        "higher": higher,
        "right": float(max(right[best], 1 - right[best])),
        "kept": off[0],
        "dropped": off[1],
    }


def histogram(pool: Data, name: str, kept: np.ndarray, bins: int = 40) -> dict[str, Any] | None:
    """A score among kept and among dropped rows, with the cut; None where the column is none (words, copies, places)."""
    score = numbers(pool, name)
    if score is None:
        return None
    known = np.isfinite(score)
    whole = pa.types.is_integer(pool.table.schema.field(name).type)
    inside, outside = score[known & kept], score[known & ~kept]
    if not len(inside) or not len(outside) or (whole and any((side == -1).all() for side in (inside, outside))):
        return None
    found = cut(score, kept)
    clear = found is not None and found["right"] >= CLEAR
    if whole and not clear:  # a number of a cluster
        return None
    low, high = np.quantile(score[known], [0.005, 0.995])
    if found is not None and clear:
        low, high = min(low, found["at"]), max(high, found["at"])
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    return {
        "name": name,
        "edges": edges.tolist(),
        "kept": np.histogram(np.clip(inside, low, high), edges)[0].tolist(),
        "dropped": np.histogram(np.clip(outside, low, high), edges)[0].tolist(),
        "right": found["right"] if found is not None else None,
        "higher": found is None or found["higher"],
        "cut": found if clear else None,
    }


def oriented(pool: Data, score: dict[str, Any]) -> np.ndarray:
    """The score (N,) with the sign under which kept rows have the higher ones."""
    values = numbers(pool, score["name"])
    assert values is not None
    return values if score["higher"] else -values


# ---- what was dropped, and why


def reasons(pool: Data, name: str, kept: np.ndarray) -> dict[str, Any]:
    """How many rows were dropped and kept under each word of a column."""
    codes, words = coded(pool, name)
    lost, held = (np.bincount(codes[side], minlength=len(words)) for side in (~kept, kept))
    top = [i for i in np.argsort(-lost, kind="stable")[:REASONS] if lost[i]]
    return {"column": name, "counts": [[words[i][:60], int(lost[i]), int(held[i])] for i in top]}


def _grouped(pool: Data) -> str | None:
    """The column that says of what kind a row is: its domain, else its class."""
    for name in ("domain", "label"):
        if name in pool.columns:
            kind = pool.table.schema.field(name).type
            if pa.types.is_integer(kind) or _worded(pool, name):
                return name
    return None


def domains(pool: Data, kept: np.ndarray) -> dict[str, Any]:
    """Rows of each domain (or class) before and after the step."""
    name = _grouped(pool)
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
    some, group = pool.take(at), _grouped(pool)
    plain = [c for c in columns if c not in SAID and not pa.types.is_nested(pool.table.schema.field(c).type)]
    wanted = [*plain, *([group] if group and group not in plain else [])]
    rows = some.table.select(wanted).take(pa.array(some.rows)).to_pylist() if wanted else [{}] * len(some)
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


# ---- the map


def mapped(pool: Data, kept: np.ndarray, edge: np.ndarray | None) -> dict[str, Any]:
    """A sample of the pool on a plane (PCA), the same for every step that chose from it, and kept rows more where those are
    few. Numbers are written as words in one string: x, y, kept, the rank of the score (0 to 99, -1 unknown), the domain."""
    order = np.random.default_rng(0).permutation(len(pool))
    at, rest = order[:POOL], order[POOL:]
    more = rest[kept[rest]][: max(0, MORE - int(kept[at].sum()))]
    where = np.concatenate([at, more])
    found = features(pool.take(where), len(at))
    if found is None or len(at) < 3:
        return {}
    x, by = found
    plane = (x - x[: len(at)].mean(0)) @ axes(x[: len(at)])
    # a few rows far from all others would take all the room: they are put at the rim
    low, high = np.quantile(plane[: len(at)], [0.02, 0.98], axis=0)
    place = np.clip(0.1 + 0.8 * (plane - low) / np.maximum(high - low, 1e-9), 0, 1) * [WIDE - 1, HIGH - 1]
    group = _grouped(pool)
    out = {
        "by": by,
        "pool": len(at),
        "more": len(more),
        "x": _words(place[:, 0]),
        "y": _words(place[:, 1]),
        "kept": _words(kept[where]),
    }
    if edge is not None:
        known = np.isfinite(edge)
        rank = np.full(len(pool), -1.0)
        rank[known] = np.argsort(np.argsort(edge[known], kind="stable")) * 99 // max(1, int(known.sum()) - 1)
        out["score"] = _words(rank[where])
    if group is not None:
        codes, names = coded(pool, group)
        out |= {"domain": _words(np.minimum(codes[where], DOMAINS)), "names": [n[:60] for n in names[:DOMAINS]]}
    return out


def axes(x: np.ndarray) -> np.ndarray:
    """The two directions (D, 2) in which the rows (N, D) spread the most, by subspace iteration: principal components without
    the second or more that it takes to load a library for them. Each points to where its largest weight is above 0."""
    x = x - x.mean(0)
    basis = np.random.default_rng(0).normal(size=(x.shape[1], min(10, x.shape[1]))).astype(x.dtype)
    for _ in range(8):
        basis = np.linalg.qr(x.T @ (x @ basis))[0]
    two = basis @ np.linalg.svd(x @ basis, full_matrices=False)[2][:2].T
    return two * np.where(two[np.abs(two).argmax(0), np.arange(two.shape[1])] < 0, -1, 1)


def _words(values: np.ndarray) -> str:
    return " ".join(map(str, np.round(values.astype(float)).astype(int).tolist()))


def features(data: Data, fitted: int) -> tuple[np.ndarray, str] | None:
    """What the rows are laid out by (N, D), and its name: an embedding or the inputs where a column holds them, else the
    words and pairs of words of the text, hashed and weighed by how rare they are among the first `fitted` rows."""
    for name in data.columns:
        if name in ("features", "pixel_values") or "embedding" in name:
            value = data[name]
            if isinstance(value, np.ndarray) and value.ndim > 1 and value.dtype.kind == "f" and value[0].size > 1:
                return value.reshape(len(value), -1).astype(np.float32), name
    if any(n in data.columns for (n, *_) in TEXTS):
        from trainlore.primitives.ngrams import Hasher

        cells, at = [np.zeros(0, np.int64)], 0
        pieces = (texts(data, np.arange(i, min(i + 256, len(data)))) for i in range(0, len(data), 256))
        for grams in Hasher(2, BUCKETS).grams(t[:READ] for piece in pieces for t in piece):
            cells.append((grams.row + at) * BUCKETS + grams.bucket)
            at += len(grams.words)
        cell, by = np.concatenate(cells), "words and pairs of words"
    elif "input_ids" in data.columns:
        values, offsets = data.lists("input_ids")
        cell, by = np.repeat(np.arange(len(data)), np.diff(offsets)) * BUCKETS + values % BUCKETS, "tokens"
    else:
        return None
    counts = np.bincount(cell, minlength=len(data) * BUCKETS).reshape(len(data), BUCKETS)
    rare = np.log((1 + fitted) / (1 + (counts[:fitted] > 0).sum(0)))
    x = (np.log1p(counts) * rare).astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9), by


# ---- several that chose from one pool


def agreement(pool: Data, chosen: list[tuple[str, Data, dict[str, Any]]]) -> list[dict[str, Any]]:
    """For every pair of steps (name, what it gave, its `look`) that chose from this pool: how many rows `both` keep, their
    `overlap` (share of the rows that either keeps) and what it would be by `chance`, and Spearman's `rank` correlation of the
    scores, each turned so that high means kept; None without two scores."""
    laid = []
    for name, out, seen in chosen:
        whole = sides(pool, out)
        if whole is not None:
            laid.append((name, whole[1], oriented(whole[0], seen["scores"][0]) if seen["scores"] else None))
    found = []
    for at, (one, mine, score) in enumerate(laid):
        for other, theirs, rival in laid[at + 1 :]:
            both, either = int((mine & theirs).sum()), int((mine | theirs).sum())
            luck = float(mine.sum()) * float(theirs.sum()) / max(1, len(pool))
            rank = None
            if score is not None and rival is not None:
                known = np.isfinite(score) & np.isfinite(rival)
                if known.sum() > 2 and np.ptp(score[known]) > 0 and np.ptp(rival[known]) > 0:
                    rank = float(np.corrcoef(_ranks(score[known]), _ranks(rival[known]))[0, 1])
            chance = luck / max(1e-9, float(mine.sum() + theirs.sum()) - luck)
            pair = {"one": one, "other": other, "both": both, "overlap": both / max(1, either)}
            found.append({**pair, "chance": chance, "rank": rank})
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value (N,) in their order; equal ones share the mean of their places."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
