"""Votes of labelling functions: what they cover, where they clash, and what they say together.

Votes are whole numbers (N, F), a row of the data and a function each; -1 abstains. Rows on which every function abstains
are defined everywhere: their shares are even, their label is -1, and `covered` is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data
    from trainlore.runs import Run
    from trainlore.verbs import Curate

ABSTAIN = -1
Ties = Literal["lowest", "random", "abstain"]


def checked(votes: Any) -> np.ndarray:
    """The votes as int64 (N, F). Raises Bad unless they are whole numbers of at least -1, a column a function."""
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.dtype.kind not in "iu" or not votes.shape[1]:
        raise Bad(f"votes are whole numbers (rows, functions), not {votes.dtype} {votes.shape}: -1 where one abstains")
    if votes.size and votes.min() < ABSTAIN:
        raise Bad(f"votes run from {votes.min()}: classes count from 0, and -1 abstains")
    return votes.astype(np.int64)


def count_classes(votes: np.ndarray, classes: int | None, who: str) -> int:
    """How many classes there are: `classes`, else the largest vote + 1. Raises Bad where that is no choice."""
    highest = int(votes.max(initial=ABSTAIN))
    if highest == ABSTAIN:
        raise Bad(f"{who}: no function votes on any row; loosen the rules or add some")
    if classes is None:
        classes = highest + 1
        if classes < 2:
            raise Bad(f"{who}: all votes are for class 0; say how many classes there are: classes=2")
    if classes < 2 or highest >= classes:
        raise Bad(f"classes={classes}: give at least 2, and more than the highest vote, {highest}")
    return classes


def tally(votes: np.ndarray, classes: int) -> np.ndarray:
    """How many functions vote for each class: votes (N, F) -> int64 (N, K)."""
    row, column = np.nonzero(votes >= 0)
    return np.bincount(row * classes + votes[row, column], minlength=len(votes) * classes).reshape(len(votes), classes)


def majority(
    votes: np.ndarray, classes: int, ties: Ties = "lowest", luck: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the votes, float64 (N, K), and the class with most of them, int64 (N,), -1 where nobody votes.

    A tie goes to the lowest class, by `luck` (N,) in [0, 1) evenly to one of the tied, or gives -1.
    """
    count = tally(votes, classes)
    total = count.sum(1, keepdims=True)
    shares = np.where(total > 0, count / np.maximum(total, 1), 1 / classes)
    tied = count == count.max(1, keepdims=True)
    label = tied.argmax(1)
    if ties == "random":
        if luck is None:
            raise Bad("ties by chance need luck: numbers in [0, 1), one a row")
        label = (tied.cumsum(1) > (luck * tied.sum(1)).astype(np.int64)[:, None]).argmax(1)
    elif ties == "abstain":
        label = np.where(tied.sum(1) > 1, ABSTAIN, label)
    return shares, np.where(total[:, 0] > 0, label, ABSTAIN).astype(np.int64)


def table(votes: np.ndarray, truth: np.ndarray | None = None, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What each function does, as a list of F objects that JSON can hold.

    classes: those it ever votes for; coverage: share of the rows it votes on; overlap: on which another votes too; conflict:
    on which another votes for another class; accuracy: share of its votes that are right where truth (N,) is known (not
    negative), None where there is nothing to go by.
    """
    n, f = votes.shape
    if names and len(names) != f:
        raise Bad(f"names={tuple(names)}: {len(names)} names for {f} functions")
    voted = votes >= 0
    total = voted.sum(1, keepdims=True)
    count = tally(votes, int(votes.max(initial=0)) + 1)
    alike = np.take_along_axis(count, np.maximum(votes, 0), axis=1)
    shared, against = voted & (total > 1), voted & (total > alike)
    told = voted & (truth >= 0)[:, None] if truth is not None else np.zeros_like(voted)
    right = told & (votes == truth[:, None]) if truth is not None else told
    return [
        {
            "name": names[j] if names else str(j),
            "classes": np.unique(votes[voted[:, j], j]).tolist(),
            "coverage": float(voted[:, j].mean()) if n else 0.0,
            "overlap": float(shared[:, j].mean()) if n else 0.0,
            "conflict": float(against[:, j].mean()) if n else 0.0,
            "accuracy": float(right[:, j].sum() / told[:, j].sum()) if told[:, j].any() else None,
        }
        for j in range(f)
    ]


@dataclass(frozen=True)
class Fitted:
    """What EM found. shares (N, K); covered bool (N,); prior (K,); confusion (F, K, K): P(vote | class), where one votes;
    accuracy (F,): the chance that a vote is right; rounds: how many it took."""

    shares: np.ndarray
    covered: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    accuracy: np.ndarray
    rounds: int


def label_model(
    votes: np.ndarray,
    classes: int,
    full: bool = False,
    prior: Sequence[float] | None = None,
    rounds: int = 200,
    smoothing: float = 1.0,
    tolerance: float = 1e-6,
) -> Fitted:
    """Learn how often each function is right from votes (N, F) alone, by EM from the majority's shares.

    The functions err independently given the class, and whether one votes says nothing of it:

        P(class k | votes) ~ prior_k * prod_f P(vote_f | k)

    One coin a function: P(k | k) = a_f and (1 - a_f) / (K - 1) for each other class; with `full` all of P(l | k) is free.
    `smoothing` imaginary votes a function are spread evenly over its table. A given `prior` (K,) is kept as it is. Ends
    when no share moves by `tolerance`. Like rows are counted once, so a million rows of few patterns are cheap.
    """
    pattern, inverse, count = _patterns(votes, classes)
    covered = (pattern >= 0).any(1)
    shares = majority(pattern, classes)[0]
    ladder = np.vstack([np.eye(classes), np.zeros(classes)])  # the last row, which -1 picks, is for abstaining
    functions = range(votes.shape[1])
    off = ~np.eye(classes, dtype=bool)
    used = 0
    while used < rounds:
        used += 1
        mass = shares * (count * covered)[:, None]
        belief = (mass.sum(0) + smoothing / classes) / max(mass.sum() + smoothing, 1e-300)
        belief = belief if prior is None else np.asarray(prior)
        hits = np.stack([mass.T @ ladder[pattern[:, f]] for f in functions]) + smoothing / classes**2
        confusion = hits / np.maximum(hits.sum(2, keepdims=True), 1e-300)
        accuracy = np.trace(hits, axis1=1, axis2=2) / np.maximum(hits.sum((1, 2)), 1e-300)
        if not full:
            confusion = np.where(off, ((1 - accuracy) / (classes - 1))[:, None, None], accuracy[:, None, None])
        logs = np.log(np.maximum(confusion, 1e-12))
        score = np.log(np.maximum(belief, 1e-12)) + np.zeros((len(pattern), 1))
        for f in functions:
            score += np.vstack([logs[f].T, np.zeros(classes)])[pattern[:, f]]
        fresh = np.exp(score - score.max(1, keepdims=True))
        fresh /= fresh.sum(1, keepdims=True)
        moved = np.abs(fresh - shares)[covered].max(initial=0.0)
        shares = fresh
        if moved < tolerance:
            break
    shares = np.where(covered[:, None], shares, 1 / classes)
    return Fitted(shares[inverse], covered[inverse], belief, confusion, accuracy, used)


def _patterns(votes: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct rows of votes (P, F), which of them each row is (N,), and how often each occurs (P,)."""
    if votes.shape[1] * np.log2(classes + 1) < 62:  # a row fits into one number, which sorts ten times faster
        code = (votes + 1) @ (classes + 1) ** np.arange(votes.shape[1])
        _, first, inverse, count = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
        return votes[first], inverse, count
    pattern, inverse, count = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    return pattern, inverse.reshape(-1), count


# ---- as columns of data


def votes_of(run: Run, data: Data, labeller: Curate | None, who: str) -> tuple[Data, np.ndarray]:
    """The data with its votes int64 (N, F): of its column `votes`, made by `labeller` first where one is given."""
    data.need(who=who)
    if labeller is not None:
        data = run.step(labeller, data)
    if "votes" not in data.columns:
        raise Bad(
            f"{who} needs column 'votes'; there are {', '.join(data.columns)}: run label_votes first, or give a labeller"
        )
    return data, checked(data["votes"])


def labelled(data: Data, shares: np.ndarray, label: np.ndarray, uncovered: Literal["drop", "keep"], who: str) -> Data:
    """The data with `label`, `shares` (N, K) and `confidence`; rows without a label (-1) are dropped, or kept as they are."""
    data = data.with_(
        label=label.astype(np.int64),
        shares=shares.astype(np.float32),
        confidence=shares.max(1).astype(np.float32),
    )
    if uncovered == "keep":
        return data
    if not (label >= 0).any():
        raise Bad(f"{who}: no row is left with a label; loosen the rules or say uncovered='keep'")
    return data.where(label >= 0)
