from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def cycle(start: float, end: float, factor: float) -> list[float]:
    """Shares of the rows in one round of the cycle: from `start` to `end` by 1/factor, and down to before start.

    0.25, 1, 0.5 -> [0.25, 0.5, 1.0, 0.5]; then it begins again.
    """
    up = [start]
    while up[-1] < end:
        up.append(min(up[-1] / factor, end))
    down = [up[-1]]
    while down[-1] > start:
        down.append(max(down[-1] * factor, start))
    return up + down[1:-1]


def phase(t: int, lengths: np.ndarray) -> int:
    """Which phase step t is in, counted on through the rounds: lengths (P,) steps of each phase of a round."""
    whole, rest = divmod(t, int(lengths.sum()))
    return whole * len(lengths) + int(np.searchsorted(np.cumsum(lengths), rest, side="right"))


def subset(late: Tensor, ease: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """1 for the rows of a phase, else 0: float32 (N,).

    late: bool (N,), rows that come in after all others; ease: log odds (N,) of the draw among rows that come together.
    """
    luck = torch.rand(len(late), generator=rng, dtype=torch.float64).clamp(min=1e-300)
    key = ease - torch.log(-torch.log(luck))  # the largest are a draw without replacement in proportion to exp(ease)
    order = np.lexsort((-key.numpy(), late.numpy()))
    return torch.zeros(len(late)).index_fill(0, torch.from_numpy(order[: max(1, round(share * len(late)))].copy()), 1.0)


@method(
    name="augment_curriculum",
    title="MCCL (modified cyclical curriculum learning)",
    paper="arXiv:2402.09141",
    lit="p039",
    family="data/augment",
    year=2024,
    tier="core",
    status="stable",
    code="CyclicalCurriculum/Cyclical-Curriculum",
)
class AugmentCurriculum(Part):
    """Widen and narrow the rows in cycles, from the real ones to all with their augmented copies and back.

    ## What it does
    Training goes in phases. A phase shows one subset, for as many steps as one pass over it takes; the share of the
    rows in it rises from `narrow` to 1 and falls back, in cycles:

        n_0 = narrow      n_{k+1} = min(n_k / factor, 1) on the way up,  max(n_k * factor, narrow) on the way down

    The real rows come into a phase before any augmented one. Among the rows of one kind those are drawn, without
    replacement, by how easy they are: p proportional to 1 / loss where a column of losses is given, else evenly.

    ## Claim
    On ten sets for topic, sentiment and offensive language with BERT features, augmented rows (word edits,
    back-translation, replacement by embeddings and language models) help more with this order than shuffled.

    ## Cost
    None to speak of; the column of losses is the caller's.

    ## Fields worth tuning
    `first`: the order studied; "any" is the plain cyclical curriculum, in which real and augmented rows are alike.

    ## Watch out
    Real rows are seen more often than augmented ones, the more the smaller `narrow`. Training can end in a narrow
    phase: the widest has the longest time, but where a cycle stops is up to the steps. Not reproduced here: on edited
    copies of 40 rows it was level with shuffling (n = 10), and in trials so were the other two orders.

    ## Differs from the paper
    Its text was not to be had beyond the abstract: cycle, factor, shares and sampling are those of the authors' code
    for the cyclical curriculum (0.25, 0.5, 1 / loss), and how real and augmented rows enter is our reading of "the
    strategic order in which real and augmented instances are introduced". Without `narrow` a cycle starts from the real
    rows alone. A phase draws evenly from its subset; the authors pass over it once, row by row.

    ## See also
    `curriculum`, `rs2`; `eda` makes the column `augmented`.
    """

    column: str = "augmented"
    """Column that is 0 in real rows."""
    narrow: float | None = None
    """Share of the rows in the narrowest phase; none: the share of those that come first."""
    factor: float = 0.5
    """What the share is divided by on the way up, and multiplied with on the way down."""
    first: Literal["real", "augmented", "any"] = "real"
    """Which rows fill a phase before the others come in."""
    difficulty: str | None = None
    """Column of losses above 0 that says how easy a row is; none: all alike."""

    null = {"narrow": 1.0}
    tiny = {"world": "digits", "column": "label", "narrow": 0.2}

    def start(self, loop: Any) -> dict[str, Any]:
        if not 0 < self.factor < 1:
            raise Bad(f"factor={self.factor}: above 0 and below 1")
        if self.narrow is not None and not 0 < self.narrow <= 1:
            raise Bad(f"narrow={self.narrow}: a share of the rows, above 0 and at most 1, which changes nothing")
        if self.first not in ("real", "augmented", "any"):
            raise Bad(f"first={self.first!r}: real, augmented or any")
        loop.data.need(self.column, *([self.difficulty] if self.difficulty else []), who="augment_curriculum")
        late = np.asarray(loop.data[self.column])
        if late.ndim != 1 or late.dtype.kind not in "biuf":
            raise Bad(f"column {self.column!r} holds no numbers: it must be 0 in real rows")
        if self.first == "any" and self.narrow is None:
            raise Bad("first='any' needs narrow, the share of the rows in the narrowest phase, such as 0.25")
        late = late != 0
        late = ~late if self.first == "augmented" else late & (self.first == "real")
        ease = np.zeros(len(late))
        if self.difficulty:
            losses = np.asarray(loop.data[self.difficulty], np.float64)
            if not (losses > 0).all():
                raise Bad(
                    f"column {self.difficulty!r} must be above 0 in every row: it is a loss, and easy is 1 / loss"
                )
            ease = -np.log(losses)
        narrow = self.narrow if self.narrow is not None else float((~late).mean()) or 1.0
        shares = np.array(cycle(narrow, 1.0, self.factor))
        steps = np.maximum(1, np.round(shares * len(late) / loop.size)).astype(np.int64)
        return {
            "late": torch.from_numpy(late),
            "ease": torch.from_numpy(ease),
            "shares": shares.tolist(),
            "steps": steps.tolist(),
            "phase": -1,
            "odds": None,
        }

    def odds(self, loop: Any, s: dict[str, Any]) -> Tensor | None:
        now = phase(loop.t, np.array(s["steps"]))
        if now != s["phase"]:
            share = s["shares"][now % len(s["shares"])]
            s["phase"] = now
            s["odds"] = None if share >= 1 else subset(s["late"], s["ease"], share, loop.rng("augment_curriculum", now))
        return s["odds"]
