"""How many rows a selector may keep: a share of the rows, or a budget of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data

__all__ = ["row_lengths", "take_below", "take_budget", "take_within"]


def take_budget(
    score: np.ndarray,
    keep: float,
    tokens: float | None = None,
    lengths: np.ndarray | None = None,
    otherwise: str = "loosen the filter",
) -> np.ndarray:
    """Positions, ascending, of the rows with the highest `score` (N,) that a budget pays for.

    Without `tokens`: the best `round(keep * N)` rows, at least one. With `tokens`: rows are taken from the best down until
    the next one would not fit; `tokens` above 1 is a number of tokens, at most 1 a share of `lengths.sum()`, and `lengths`
    (N,) says what each row costs. At least one row is kept. A score of -inf is never taken: fewer rows left than the
    budget pays for is an error, because the arms of a race would then differ in size unseen; `otherwise` is its way out.
    """
    score = np.asarray(score)
    n = len(score)
    if n == 0:
        raise Bad("there are no rows to choose from; check the step that made this data")
    if np.isnan(score).any():
        raise Bad(
            f"{int(np.isnan(score).sum())} of {n} scores are not a number; check the model or column they came from"
        )
    allowed = int(np.sum(score > -np.inf))
    # Ties go to the earlier row, so the same scores give the same rows on every machine.
    best = np.argsort(-score, kind="stable")[:allowed]
    if tokens is None:
        if not 0 < keep <= 1:
            raise Bad(f"keep={keep}: give a share of the rows, above 0 and at most 1")
        count = max(round(keep * n), 1)
        if count > allowed:
            raise Bad(
                f"keep={keep} asks for {count} of {n} rows and only {allowed} may be taken; lower keep or {otherwise}"
            )
        return np.sort(best[:count])
    if lengths is None or len(lengths) != n:
        raise Bad(f"a budget of tokens={tokens} needs the length of each of the {n} rows")
    if not (tokens > 0 and np.isfinite(tokens)):
        raise Bad(f"tokens={tokens}: give a share of all tokens (at most 1) or a number of them (above 1)")
    lengths = np.asarray(lengths, dtype=np.int64)
    limit = tokens if tokens > 1 else tokens * int(lengths.sum())
    spent = np.cumsum(lengths[best])
    if allowed < n and (allowed == 0 or spent[-1] < min(limit, int(lengths.sum())) * (1 - 1e-9)):
        have = int(spent[-1]) if allowed else 0
        raise Bad(
            f"tokens={tokens} asks for {int(limit)} tokens and the {allowed} rows that may be taken hold {have}; lower tokens or {otherwise}"
        )
    # A relative hair of slack: a share times a sum must not lose a row to rounding.
    return np.sort(best[: max(int(np.searchsorted(spent, limit * (1 + 1e-12), side="right")), 1)])


def take_below(score: np.ndarray, keep: float, skip: float) -> np.ndarray:
    """As `take_budget`, passing over the share `skip` of all rows that score highest: likely wrong labels."""
    left = np.array(score)
    left[np.argsort(-left, kind="stable")[: round(skip * len(left))]] = -np.inf
    return take_budget(left, keep)


def row_lengths(data: Data) -> np.ndarray:
    """What each row costs, (N,) int64: tokens where the data is encoded, else words (by white space) of its text."""
    if "input_ids" in data.columns:
        return np.diff(data.lists("input_ids")[1])
    names = [c for c in ("text", "prompt", "completion") if c in data.columns]
    if not names:
        raise Bad(
            f"a budget of tokens needs a column input_ids, text or prompt and completion; there are {', '.join(data.columns)}. Give keep instead"
        )
    total = np.zeros(len(data), np.int64)
    for name in names:
        total += np.fromiter((len(s.split()) for s in data.text(name)), np.int64, len(data))
    return total


def take_within(
    score: np.ndarray, group: np.ndarray, keep: float, tokens: float | None = None, lengths: np.ndarray | None = None
) -> np.ndarray:
    """As `take_budget`, each group apart from the others: of each of `group` (N,), from 0, its own part of the budget."""
    if tokens is not None and lengths is not None and tokens > 1:
        tokens = min(1.0, tokens / max(1, int(lengths.sum())))
    order = np.argsort(group, kind="stable")
    taken = []
    for mine in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        its = None if lengths is None else lengths[mine]
        taken.append(mine[take_budget(score[mine], keep, tokens, its)])
    return np.sort(np.concatenate(taken))
