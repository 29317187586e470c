from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.domains import domain_losses, domains, mixed_rows, named_shares, row_odds
from trainlore.primitives.probes import best_mixture, fit_mixing_law, tried_mixtures
from trainlore.verbs import Part, method


@method(
    name="mixing_laws",
    title="Data mixing laws",
    paper="arXiv:2403.16952",
    lit=["p487", "p202"],
    family="data/mix",
    year=2024,
    tier="core",
    status="stable",
    code="yegcjs/mixinglaws",
)
class MixingLaws(Part):
    """Draw domains by the mixture that a law fitted to small trainings predicts to be the best.

    ## What it does
    Trains small models on `mixtures` different mixtures and measures the loss of every held-out domain i; or takes
    what such trainings gave, as `runs`. Fits each loss as a function of the shares r, and draws by the lowest point.

        L_i(r) = c_i + k_i exp(sum_j t_ij r_j)            Huber loss, many starts
        r* = argmin over shares of sum_i w_i L_i(r)

    The model's `about["mixing_laws"]` holds the shares, the laws and the trainings they come from.

    ## Claim
    1B model, 100B tokens of RedPajama: the mixture found from small trainings equals the default mixture trained on 48%
    more steps. In continued pretraining it finds the share of the new domain at which the old one is not forgotten.

    ## Cost
    `mixtures` trainings of `steps` steps each, and a pass of each over `held_out`. `runs` costs nothing.

    ## Fields worth tuning
    `mixtures`: a law has as many unknowns as there are domains and one; the authors fit five domains to 20 trainings.

    ## Watch out
    One held-out domain alone is always best served by a single training domain, says this law: t . r is lowest in a
    corner. Only several held-out domains, weighed against each other, give a mixture.
    The law holds at the size and length of the small trainings, and too short ones mislead: six of 10 steps each, on
    texts of two domains and junk, gave a mixture no better than the even one after 60 (n = 5). What helps a small model
    short of data can harm it later: other languages' text helps a low-resource language, most if of similar syntax, and
    harms as data grows against capacity (When Is Multilinguality a Curse, arXiv:2311.09205). A share may ask for more
    rows than a domain has: count the passes.

    ## Differs from the paper
    There the small trainings' losses are first carried on to the full number of steps and size by power laws; here they
    are taken as they are (`power_law` carries on). The paper bounds shares by the data there are. It also fits held-out
    sets of unknown parts, as a sum of laws with learned weights. The search is exact instead of a grid.

    ## See also
    `uniform_mixture`, its rival; `merged_ablation` to compare mixtures with fewer trainings; `aioli`.
    """

    held_out: Data | None = None
    """Rows whose domains' losses count, never trained on; needed unless `runs` is given."""
    runs: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    """Trainings there already are: (shares of the sorted domains, losses of the sorted held-out domains) each."""
    weights: Mapping[str, float] | None = None
    """How much each held-out domain counts, by its name (its number in `runs` without `held_out`); alike when left out."""
    mixtures: int = 20
    """Number of small trainings."""
    steps: int = 100
    """Steps of each of them."""
    proxy: Model | None = None
    """The model they start from; the model itself when left out."""
    lr: float = 1e-3
    """Their learning rate."""
    by: str = "domain"
    """Column that names a row's domain."""

    null = None  # whatever it predicts, it does not draw the data's own mixture
    tiny = {"world": "text", "held_out": "$held_out", "mixtures": 3, "steps": 3, "lr": 3e-3}

    def start(self, loop) -> dict:
        names, code = domains(loop.data, self.by, "mixing_laws")
        shares, losses, wanted = self._table(loop, names, code)
        laws = [fit_mixing_law(shares, losses[:, i]) for i in range(len(wanted))]
        best = best_mixture(laws, self._weights(wanted))
        told = {
            n: {"c": c, "k": k, "t": dict(zip(names, t.tolist(), strict=True))}
            for n, (c, k, t) in zip(wanted, laws, strict=True)
        }
        loop.model.about["mixing_laws"] = {
            "shares": dict(zip(names, best.tolist(), strict=True)),
            "laws": told,
            "runs": [[r.tolist(), y.tolist()] for r, y in zip(shares, losses, strict=True)],
        }
        return {"odds": row_odds(torch.from_numpy(code), torch.from_numpy(best))}

    def odds(self, loop, s) -> Tensor:
        return s["odds"]

    def _weights(self, wanted: list[str]) -> np.ndarray:
        """How much each held-out domain counts, (M,); they sum to 1."""
        weights = dict.fromkeys(wanted, 1.0) if self.weights is None else self.weights
        if (total := sum(weights.values())) <= 0 or min(weights.values()) < 0:
            raise Bad("mixing_laws: weights must be at least 0 and not all 0")
        share = {n: w / total for n, w in weights.items()} | {n: 0.0 for n in wanted if n not in weights}
        return named_shares(wanted, share, np.ones(len(wanted)), "mixing_laws: weights as")

    def _table(self, loop: Any, names: list[str], code: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Shares (R, K) and losses (R, M) of the trainings, and the names of the M held-out domains."""
        wanted: list[str] = []
        if self.held_out is not None:
            wanted, group = domains(self.held_out, self.by, "mixing_laws' held_out")
        if self.runs:
            shares, losses = (np.array(column, np.float64) for column in zip(*self.runs, strict=True))
            wanted = wanted or [str(i) for i in range(losses.shape[1])]
            if shares.shape[1:] != (len(names),) or losses.shape[1:] != (len(wanted),):
                raise Bad(
                    f"mixing_laws: runs hold {shares.shape[1]} shares and {losses.shape[1]} losses each; the domains are "
                    f"{', '.join(names)}, the held-out ones {', '.join(wanted)}"
                )
            return shares, losses, wanted
        if self.held_out is None:
            raise Bad("mixing_laws needs `held_out` rows, or the `runs` of trainings there already are")
        if self.mixtures <= len(names) or self.steps < 1:  # said before the trainings, not after
            raise Bad(
                f"mixing_laws: {len(names)} domains need mixtures of at least {len(names) + 1}, and steps of 1; "
                f"got {self.mixtures}, {self.steps}"
            )
        self._weights(wanted)  # so is a wrong name
        run, rng, proxy = loop.run, loop.run.numpy("mixing_laws"), self.proxy or loop.model
        shares, found = tried_mixtures(len(names), self.mixtures, rng), []
        for r in shares:
            rows = loop.data.take(mixed_rows(code, r, self.steps * loop.size, rng))
            small = run.fit(proxy.copy(), rows, steps=self.steps, batch_size=loop.size, lr=self.lr)
            found.append(domain_losses(run, small, self.held_out, group, len(wanted)).numpy())
        return shares, np.stack(found), wanted
