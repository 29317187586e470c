"""The rows on a plane, near each other where they are alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.looking.columns import TEXTS, coded, grouped, texts
from trainlore.looking.drops import DOMAINS
from trainlore.nouns import Data

POOL, MORE = 1600, 400  # rows of the map: of the pool, and of the kept ones where they are few among those
BUCKETS, READ = 1024, 2000  # of words and pairs of words, and letters of a text, that the map goes by
WIDE, HIGH = 1000, 750  # places on the map


def mapped(pool: Data, kept: np.ndarray, score: np.ndarray | None) -> dict[str, Any]:
    """A sample of the pool on a plane (PCA), the same for every step that chose from it, and kept rows more where those are
    few. Numbers are written as words in one string: x, y, kept, the rank of the score (0 to 99, low to high, -1 unknown), the
    domain."""
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
    group = grouped(pool)
    out = {
        "by": by,
        "pool": len(at),
        "more": len(more),
        "x": _words(place[:, 0]),
        "y": _words(place[:, 1]),
        "kept": _words(kept[where]),
    }
    if score is not None:
        known = np.isfinite(score)
        rank = np.full(len(pool), -1.0)
        rank[known] = np.argsort(np.argsort(score[known], kind="stable")) * 99 // max(1, int(known.sum()) - 1)
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
