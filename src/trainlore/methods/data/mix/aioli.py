from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.domains import domain_losses, domains, exponentiated, named_shares, row_odds
from trainlore.verbs import Part, method


def probes(k: int, own: float) -> Tensor:
    """The k mixtures (k, k) tried in a sweep: `own` of one domain each, the rest even."""
    rest = (1 - own) / max(1, k - 1)
    return torch.full((k, k), rest, dtype=torch.float64).fill_diagonal_(own)


def law_matrix(drops: Tensor, own: float) -> Tensor:
    """A (M, K), A_ij how much training on domain j lowers held-out loss i: solves drops (M, K) = A @ probes(K, own)."""
    return torch.linalg.solve(probes(drops.shape[1], own), drops.double().T).T


def positive(matrix: Tensor) -> Tensor:
    """The matrix (M, K) moved up until nothing is below 0, and divided by its sum; even where all entries are equal to 0."""
    up = matrix - matrix.min().clamp(max=0)
    total = up.sum()
    return up / total if total > 0 else torch.full_like(up, 1 / up.numel())


@method(
    name="aioli",
    title="Aioli",
    paper="arXiv:2411.05735",
    lit="p453",
    family="data/mix",
    year=2024,
    tier="core",
    status="stable",
    code="HazyResearch/aioli",
)
class Aioli(Part):
    """Try a few lopsided mixtures in turn, measure what each teaches, and shift the mixture by it.

    ## What it does
    Takes held-out losses to fall linearly in the mixture, L_i(next) = L_i - sum_j A_ij p_j. A round of `every` steps begins
    with `sweeps` sweeps over K mixtures, in random order, `probe` steps each; mixture j draws the share `own` from
    domain j and the others evenly. The drop of every held-out loss is measured after each.

        drop_i = P A_i,   P the K mixtures in rows         solved for A, drops averaged over the sweeps
        A <- (A - min(A, 0)) / sum of it
        p_j <- p_j * exp(eta * sum_i A_ij) / normalizer    for the rest of the round

    With `ema`, M <- ema * M + (1 - ema) * A over the rounds and p_j ~ exp(eta * sum_i M_ij), from even shares every round.
    `shares` are drawn over the first `prior` of training and then adjusted: the paper's repair of mixtures of shorter runs.

    ## Claim
    160M models on six sets of SlimPajama sources: lower perplexity than stratified sampling on 6 of 6, by 0.27 on
    average, where other ways of mixing are up to 6.9 worse; up to 12.0 gained on mixtures learned on short runs.

    ## Cost
    sweeps * K + 1 passes over `held_out` a round. The trial steps are real training, on mixtures nobody wanted.

    ## Fields worth tuning
    `eta` (0.1, 0.2, 0.5; 1 for seven sources), `sweeps` 4 to 6. Keep sweeps * K * probe well below `every`.

    ## Watch out
    A sums to 1 over all its entries, so with `ema` no share exceeds another more than exp(eta) times: at 0.2 the mixture
    hardly leaves the even one; without, the shares go on drifting. A drop over `probe` steps is noisy, and losses fall
    fastest early: early trials of a sweep look better. On two domains and their blend it is no better than even (n = 10).

    ## Differs from the paper
    As the authors' code, but without `ema` the step starts from the mixture in force, also when that is `shares`, which the
    code forgets at the first update. `held_out` may have other domains than the data.

    ## See also
    `uniform_mixture`, its rival; `skill_it`, whose matrix is fixed; `mixing_laws`, which asks whole trainings.
    """

    held_out: Data
    """Rows never trained on, with the same column, whose losses steer."""
    eta: float = 0.2
    """Size of the step the shares take."""
    every: int = 250
    """Steps in a round, trials included."""
    sweeps: int = 4
    """How often each mixture is tried in a round."""
    probe: int = 4
    """Steps of each trial."""
    own: float = 0.625
    """The share of one domain in its trial mixture; 1 trains on it alone."""
    ema: float | None = None
    """How much of the earlier matrices to keep; none: only the newest, and shares accumulate."""
    shares: Mapping[str, float] | None = None
    """The mixture to begin with; even when left out."""
    prior: float = 0.0
    """Share of training under `shares` before the first trial."""
    by: str = "domain"
    """Column that names a row's domain."""

    null = None  # it never draws the data's own mixture
    tiny = {"world": "text", "held_out": "$held_out", "every": 6, "sweeps": 1, "probe": 1}

    def start(self, loop) -> dict:
        names, code = domains(loop.data, self.by, "aioli")
        wanted, k = domains(self.held_out, self.by, "aioli's held_out"), len(names)
        if k < 2:
            raise Bad(f"aioli: column {self.by!r} has one domain, {names[0]}: there is nothing to mix")
        if min(self.sweeps, self.probe) < 1 or self.sweeps * self.probe * k >= self.every:
            trials = f"sweeps * domains * probe = {self.sweeps} * {k} * {self.probe}"
            raise Bad(f"aioli: every={self.every} must exceed the trials' {trials} steps, and these be at least 1")
        if not 1 / k < self.own <= 1 or not (self.ema is None or 0 <= self.ema < 1):
            raise Bad(f"aioli: own={self.own} must be above 1 / {k} and at most 1, ema={self.ema} from 0 to below 1")
        if not 0 <= self.prior <= 1 or (self.prior and self.shares is None):
            raise Bad(f"aioli: prior={self.prior} must lie in 0..1 and needs the `shares` to begin with")
        count = np.bincount(code)
        share = np.full(k, 1 / k) if self.shares is None else named_shares(names, self.shares, count, "aioli")
        s: dict = {"code": torch.from_numpy(code), "count": torch.from_numpy(count), "share": torch.from_numpy(share)}
        s |= {"group": torch.from_numpy(wanted[1]), "groups": len(wanted[0]), "since": -1, "matrix": None}
        return {**s, "before": None, "drops": None, "odds": row_odds(s["code"], s["share"], s["count"])}

    def odds(self, loop, s) -> Tensor:
        if loop.done < self.prior:
            return s["odds"]
        if s["since"] < 0:
            s["since"] = loop.t
        round_, at = divmod(loop.t - s["since"], self.every)
        k, (trial, within) = len(s["share"]), divmod(at, self.probe)
        if within or trial > self.sweeps * k:
            return s["odds"]
        order = torch.cat([torch.randperm(k, generator=loop.rng("aioli", round_, i)) for i in range(self.sweeps)])
        now = domain_losses(loop.run, loop.model, self.held_out, s["group"].numpy(), s["groups"])
        if trial == 0:
            s["drops"] = torch.zeros(s["groups"], k, dtype=torch.float64)
        else:
            s["drops"] = s["drops"].index_add(1, order[trial - 1 : trial], (s["before"] - now)[:, None])
        s["before"] = now
        if trial == len(order):
            s["share"] = self._mixture(s, positive(law_matrix(s["drops"] / self.sweeps, self.own)))
        share = s["share"] if trial == len(order) else probes(k, self.own)[order[trial]]
        s["odds"] = row_odds(s["code"], share, s["count"])
        return s["odds"]

    def _mixture(self, s: dict, matrix: Tensor) -> Tensor:
        if self.ema is None:
            return exponentiated(s["share"], matrix.sum(0), self.eta)
        s["matrix"] = matrix if s["matrix"] is None else self.ema * s["matrix"] + (1 - self.ema) * matrix
        return exponentiated(torch.ones_like(s["share"]), s["matrix"].sum(0), self.eta)
