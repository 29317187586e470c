"""What a step that narrows its data did, in numbers small enough for a run's record: the report and `prepare` draw them.

columns   which rows were in play, which columns are new, what they and the rows say
scores    where a score parts kept from dropped rows
drops     reasons, domains, copies, examples
maps      the rows on a plane
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.looking.columns import SAID, changed, coded, numbers, pieces, sides, worded
from trainlore.looking.drops import copies, domains, examples, reasons
from trainlore.looking.maps import mapped
from trainlore.looking.scores import histogram, oriented
from trainlore.nouns import Data

SCORES = 3  # told of a step
MANY = 100  # different words in a column of text beyond which it is no reason


def look(given: Data, out: Data) -> dict[str, Any]:
    """Scores, reasons, domains, copies, examples and a map of what this step kept and dropped; {} where it dropped nothing.

    What it dropped are the rows in play before it and not after it, not all that are out of play; of a step that `made` rows,
    those of its own that it dropped.
    """
    made = pieces(given, out)
    seen = made or sides(given, out)
    if seen is None or seen[1].all():
        return {}
    pool, kept = seen
    new = [c for c in changed(given, pool) if c not in given.columns or c not in SAID]
    scores = sorted(
        (s for c in new if (s := histogram(pool, c, kept)) is not None), key=lambda s: -(s["right"] or 0.0)
    )[:SCORES]
    edge = oriented(pool, scores[0]) if scores else None
    reason = next((c for c in new if c not in SAID and worded(pool, c) and len(coded(pool, c)[1]) <= MANY), None)
    return {
        "rows": len(pool),
        "kept": int(kept.sum()),
        "made": made is not None,
        "columns": new,
        "scores": scores,
        "reasons": reasons(pool, reason, kept) if reason else {},
        "domains": domains(pool, kept),
        "copies": copies(pool, kept, new),
        "examples": examples(pool, kept, edge, coded(pool, reason)[0] if reason else None, new),
        "map": mapped(pool, kept, numbers(pool, scores[0]["name"]) if scores else None),
    }


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
