from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.sampling import gumbel
from trainlore.verbs import Part, method

NEXT, REST = 1e-6, 1e-9  # odds of rows of the next round, and of rows of neither: taken only when there is nothing else


def cycle(begin: float, end: float, factor: float, n: int) -> list[float]:
    """The share of the rows in each of the first n rounds: from `begin` up to `end` by steps of 1 / factor, and down again."""
    sizes, rises = [begin], True
    while len(sizes) < n:
        rises = True if sizes[-1] == begin else rises and sizes[-1] != end
        sizes.append(min(sizes[-1] / factor, end) if rises else max(sizes[-1] * factor, begin))
    return sizes


def sampled(scores: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Positions int64 (size,) drawn without replacement in proportion to scores (N,) above 0."""
    return (scores.double().log() + gumbel(len(scores), generator)).topk(size).indices


@method(
    name="cyclical_curriculum",
    title="CCL (cyclical curriculum learning)",
    paper="arXiv:2202.05531",
    lit="p251",
    family="data/order",
    year=2022,
    tier="core",
    status="stable",
    code="CyclicalCurriculum/Cyclical-Curriculum",
)
class CyclicalCurriculum(Part):
    """Train on subsets of mostly easy rows whose size grows to all rows and shrinks again, over and over.

    ## What it does
    A round is one pass over a subset; its size goes up by 1 / factor a round from `begin` to `end` of the rows and down
    again. The subset is drawn anew each round, without replacement, in proportion to how easy the rows are.

        sizes  1/4, 1/2, 1, 1/2, 1/4, 1/2, 1, ...
        P(row) ~ 1 / loss of the row under a trained model        (order hard: loss; random: 1)

    ## Claim
    18 sets of images and texts, 15 architectures, equal numbers of rows seen: better than no curriculum and than growing,
    shrinking and self-paced ones. The authors' example on CIFAR-10: 74.1% at best against 70.3%.

    ## Cost
    One pass of `scorer`, whose training is the real price: the paper trains the same network once before. The odds
    change with every step, which costs one pass over N numbers.

    ## Fields worth tuning
    `begin`, and `order: random`, the control that tells whether ease matters or only the changing size.

    ## Watch out
    The paper compares best accuracies over the epochs of training on the test set, which favours what goes up and down.
    1 / loss is steep: a row learned to a loss of 0.001 is a thousand times likelier than one at 1, so small subsets are
    nearly the same rows every time. On digits at equal steps it cost 5 points of accuracy here (n = 10). Training may end
    in the middle of a cycle.

    ## Differs from the paper
    As its code, but a pass's last step is filled up from the next subset instead of making a short batch.

    ## See also
    `curriculum`, which only grows; `rs2`, random subsets of one size.
    """

    scorer: Model | None = None
    """A trained model whose losses say how hard the rows are."""
    by: str | None = None
    """Or a column of such losses."""
    begin: float = 0.25
    """Share of the rows in the smallest subset, and in the first."""
    end: float = 1.0
    """Share of the rows in the largest."""
    factor: float = 0.5
    """How much smaller than the next a subset is on the way up."""
    order: Literal["easy", "hard", "random"] = "easy"
    """Which rows are likelier in a subset."""

    null = {"begin": 1.0}
    tiny = {"world": "digits", "scorer": "$teacher"}

    def start(self, loop) -> dict:
        if not 0 < self.begin <= self.end <= 1 or not 0 < self.factor < 1:
            raise Bad(
                "cyclical_curriculum: need 0 < begin <= end <= 1 and 0 < factor < 1, "
                f"got {self.begin}, {self.end}, {self.factor}"
            )
        if self._off():
            return {}
        scores = self._scores(loop)
        s = {"scores": scores, "round": 0, "left": torch.zeros(0, dtype=torch.bool)}
        return {**s, "left": self._round(loop, s, 0), "next": self._round(loop, s, 1)}

    def odds(self, loop, s) -> Tensor | None:
        if self._off():
            return None
        if not s["left"].any():
            s["round"] += 1
            s["left"], s["next"] = s["next"], self._round(loop, s, s["round"] + 1)
        return torch.where(s["left"], 1.0, torch.where(s["next"], NEXT, REST))

    def batch(self, loop, s, batch) -> dict:
        if not self._off():
            drawn = batch["row"].cpu()
            drawn = drawn[drawn >= 0]
            early = drawn[~s["left"][drawn]]
            s["left"] = s["left"].index_fill(0, drawn, False)
            s["next"] = s["next"].index_fill(0, early, False)
        return batch

    def _off(self) -> bool:
        return self.begin == self.end == 1

    def _scores(self, loop) -> Tensor:
        """How likely each row is, float64 (N,), above 0."""
        n = len(loop.data)
        if self.order == "random":
            return torch.ones(n, dtype=torch.float64)
        if (self.scorer is None) == (self.by is None):
            raise Bad("cyclical_curriculum: give a trained `scorer`, or `by`, a column of losses, and not both")
        if self.scorer is not None:
            kind = self.scorer.kind
            hard = loop.run.infer(
                self.scorer, loop.data, lambda b, out: per_row(rowwise(kind, b, out), b, kind)
            ).double()
        else:
            loop.data.need(self.by, who="cyclical_curriculum")
            hard = torch.from_numpy(np.array(loop.data[self.by], np.float64))
        if hard.dim() != 1 or not hard.isfinite().all() or (hard < 0).any():
            raise Bad("cyclical_curriculum: how hard a row is must be one finite number of at least 0 a row")
        hard = hard.clamp(min=1e-8)
        return hard if self.order == "hard" else 1 / hard

    def _round(self, loop, s: dict, round_: int) -> Tensor:
        """The rows of a round as bool (N,)."""
        n = len(loop.data)
        size = max(1, int(cycle(self.begin, self.end, self.factor, round_ + 1)[-1] * n))
        rows = sampled(s["scores"], size, loop.rng("cyclical_curriculum", round_))
        return torch.zeros(n, dtype=torch.bool).index_fill(0, rows, True)
