from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.primitives.domains import domains, row_odds
from trainlore.verbs import Part, method


def even(code: np.ndarray) -> np.ndarray:
    """Odds float64 (N,) that give every value of `code` int (N,) the same sum, 1 in all."""
    there = np.bincount(code) > 0
    return row_odds(torch.from_numpy(code), torch.from_numpy(there / there.sum())).numpy()


@method(
    name="uniform_mixture",
    title="Uniform mixture",
    family="data/mix",
    year=2017,
    tier="core",
    status="stable",
)
class UniformMixture(Part):
    """Draw from every domain equally often, whatever its size.

    ## What it does
    Gives each row the odds of its domain's equal share over the domain's rows.

        odds(row) = 1 / (number of domains * rows of its domain)

    ## Claim
    None of its own: the trivial baseline every way of mixing is held against. On domains of unlike size it often
    beats the natural mixture for the mean over domains.

    ## Cost
    None.

    ## Watch out
    Small domains repeat: a domain of one thousandth of the rows among ten is seen a hundred times as often as a row of
    the largest. With domains of one size it changes nothing but the order.

    ## See also
    `online_data_mixing`, `skill_it`, `domain_upsampling`.
    """

    by: str = "domain"
    """Column that names a row's domain."""

    null = None  # even odds over domains of one size still draw in another order than none at all
    tiny = {"world": "digits", "by": "label"}

    def start(self, loop) -> dict:
        _, code = domains(loop.data, self.by, "uniform_mixture")
        return {"odds": torch.from_numpy(even(code))}

    def odds(self, loop, s) -> Tensor:
        return s["odds"]
