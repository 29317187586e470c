from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.verbs import Part, method


def competence(done: float, begin: float, power: float = 2.0) -> float:
    """The share of the rows that is open when the share `done` (0..1) of the curriculum is over.

    (begin ** p + (1 - begin ** p) * done) ** (1 / p), at most 1. p = 1 opens evenly; p = 2 ever more slowly, so that
    a newly opened row is seen about equally often whenever it opens.
    """
    return min(1.0, (begin**power + (1 - begin**power) * min(1.0, done)) ** (1 / power))


def difficulty(data: Data, by: str) -> np.ndarray:
    """How hard each row is, float64 (N,): the column's number, or the length of its list; NaN is hardest."""
    data.need(by, who="curriculum")
    column = data[by]
    if isinstance(column, np.ndarray) and column.ndim == 1:
        return np.nan_to_num(column.astype(np.float64), nan=np.inf)
    if data.kinds[by] == "text":
        raise Bad(f"curriculum: column {by!r} holds text, which has no order of difficulty: give a column of numbers")
    return np.diff(data.lists(by)[1]).astype(np.float64)


@method(
    name="curriculum",
    title="Competence-based curriculum",
    paper="arXiv:1903.09848",
    family="data/order",
    year=2019,
    tier="core",
    status="stable",
)
class Curriculum(Part):
    """Open the rows from easy to hard, along a square root of the time.

    ## What it does
    Ranks the rows by a column and draws evenly from the easiest share c(t), which grows until all rows are open.

        c(t) = min(1, (begin ** p + (1 - begin ** p) * t / (until * T)) ** (1 / p))

    Rows as hard as the last open one are open too. A column of lists counts by length, so `by: input_ids` goes from
    short to long.

    ## Claim
    Neural machine translation by sentence length or word rarity: up to 70% less training time to the same quality and
    up to 2.2 BLEU more, mostly for transformers.

    ## Cost
    One sort at the start; while rows are being opened, a pass over N numbers a step.

    ## Fields worth tuning
    `until`: the share of training after which all is open; the paper takes the time a plain run needs to come near its
    end, which is longer than the default. `hardest_first` is the control every curriculum should be raced against.

    ## Watch out
    At most steps fewer rows are open than without it, so they repeat more: with little data that overfits. Any column
    serves as difficulty (`el2n`, a loss, a length), and most of the effect is in that column. Short to long was worse
    here than no order at equal steps (0.04 nats held out, n = 10), and long to short better: batches of long rows hold more
    tokens. On digits ordered by a teacher's loss it cost 17 points of accuracy at 40 steps (n = 6).

    ## Differs from the paper
    `begin` is 0.01 there and here, but at least one batch of rows is always open.

    ## See also
    `rs2` for random subsets, `skill_it` for an order found while training.
    """

    by: str
    """Column that says how hard a row is: a number, or a list whose length counts."""
    begin: float = 0.01
    """Share of the rows open at the start."""
    until: float = 0.5
    """Share of training after which all rows are open."""
    power: float = 2.0
    """1 opens evenly, 2 along a square root."""
    hardest_first: bool = False
    """Open from hard to easy."""

    null = {"begin": 1.0}
    tiny = {"world": "text", "by": "input_ids", "until": 0.8}

    def start(self, loop) -> dict:
        if not 0 < self.begin <= 1 or not 0 < self.until <= 1:
            raise Bad(f"curriculum: begin and until must be above 0 and at most 1, got {self.begin}, {self.until}")
        if self.power <= 0:
            raise Bad(f"curriculum: power must be above 0, got {self.power}")
        hard = difficulty(loop.data, self.by)
        hard = -hard if self.hardest_first else hard
        return {"hard": torch.from_numpy(hard), "sorted": torch.from_numpy(np.sort(hard)), "open": 0, "odds": None}

    def odds(self, loop, s) -> Tensor | None:
        n = len(s["hard"])
        count = max(min(n, loop.size), round(competence(loop.done / self.until, self.begin, self.power) * n))
        if count >= n:
            return None
        if count != s["open"]:
            s["open"], s["odds"] = count, (s["hard"] <= s["sorted"][count - 1]).float()
        return s["odds"]
