"""Where a score parts the rows that were kept from those that were dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from trainlore.looking.columns import numbers
from trainlore.nouns import Data

CLEAR = 0.75  # from this share of the rows on its side on, a cut is one


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
        "beyond": int(((score[known] < low) | (score[known] > high)).sum()),  # counted in the first and the last bar
        "none": int((~known).sum()),
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
