from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.curves import least_squares
from trainlore.primitives.domains import domain_losses, domains, mixed_rows, named_shares, row_odds
from trainlore.verbs import Part, method

FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995)  # of the lowest loss seen: where the search for c starts
STEEP = 30.0  # no t is beyond it: a share of one tenth would multiply the loss by 20
Law = tuple[float, float, np.ndarray]


def law(shares: np.ndarray, c: float, k: float, t: np.ndarray) -> np.ndarray:
    """Losses (...) at shares (..., K): c + k * exp(sum_j t_j r_j), with t (K,)."""
    return c + k * np.exp(np.asarray(shares, np.float64) @ np.asarray(t, np.float64))


def fit_law(shares: np.ndarray, losses: np.ndarray, huber: float = 0.02) -> Law:
    """c, k and t (K,) of one held-out loss from trainings: shares (R, K), losses (R,); c from 0 to the lowest loss.

    Shares sum to 1, so adding a number to every t_j and dividing k by its exponential changes nothing: the t given
    sum to 0. Given c, log(L - c) is linear in the shares; the best of several c starts the descent.
    """
    x, y = np.asarray(shares, np.float64), np.asarray(losses, np.float64)
    r, k = x.shape
    if y.shape != (r,) or not np.isfinite(y).all() or (y <= 0).any():
        raise Bad(f"a mixing law needs a loss above 0 for each of {r} mixtures; there are {y.shape}, from {y.min():g}")
    if np.linalg.matrix_rank(x) < k or r < k + 1:
        raise Bad(f"a mixing law of {k} domains needs {k + 1} trainings on different mixtures or more, not {r}")
    starts = [[f * y.min(), *np.linalg.lstsq(x, np.log(y - f * y.min()), rcond=None)[0]] for f in FLOORS]
    starts.sort(key=lambda p: np.abs(law(x, p[0], 1.0, np.array(p[1:])) - y).sum())
    low, high = [0.0, *[-STEEP] * k], [y.min() * (1 - 1e-9), *[STEEP] * k]
    c, *t = least_squares(lambda p: law(x, p[0], 1.0, p[1:]), starts[:3], y, low, high, huber=huber)
    return float(c), float(np.exp(np.mean(t))), np.array(t) - np.mean(t)


def best_mixture(laws: Sequence[Law], weights: Sequence[float]) -> np.ndarray:
    """The shares (K,) where the laws' weighted sum is lowest. It is convex, so there is one lowest value."""
    from scipy.optimize import minimize

    t, scale = np.stack([t for _, _, t in laws]), np.asarray(weights) * [k for _, k, _ in laws]
    size = max(float(scale.sum()), 1e-12)
    found = minimize(
        lambda r: scale @ np.exp(t @ r) / size,
        np.full(t.shape[1], 1 / t.shape[1]),
        jac=lambda r: (scale * np.exp(t @ r)) @ t / size,
        bounds=[(0.0, 1.0)] * t.shape[1],
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    shares = found.x.clip(min=0)
    return shares / shares.sum()


def tried(k: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """n mixtures (n, k) to train on: the even one; each domain 16 times the others; then random ones.

    In those each domain has one of 1, 1/2, ... 1/16 before they are made to sum to 1.
    """
    raw = 2.0 ** -generator.integers(0, 5, (n, k))
    lead = np.concatenate([np.ones((1, k)), np.where(np.eye(k, dtype=bool), 1.0, 1 / 16)])[:n]
    raw[: len(lead)] = lead
    return raw / raw.sum(1, keepdims=True)


@method(
    name="mixing_laws",
    title="Data mixing laws",
    paper="arXiv:2403.16952",
    lit="p487",
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
        laws = [fit_law(shares, losses[:, i]) for i in range(len(wanted))]
        weights = dict.fromkeys(wanted, 1.0) if self.weights is None else self.weights
        if (total := sum(weights.values())) <= 0 or min(weights.values()) < 0:
            raise Bad("mixing_laws: weights must be at least 0 and not all 0")
        share = {n: w / total for n, w in weights.items()} | {n: 0.0 for n in wanted if n not in weights}
        best = best_mixture(laws, named_shares(wanted, share, np.ones(len(wanted)), "mixing_laws: weights as"))
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

    def _table(self, loop: Any, names: list[str], code: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Shares (R, K) and losses (R, M) of the trainings, and the names of the M held-out domains."""
        wanted, group = domains(self.held_out, self.by, "mixing_laws' held_out") if self.held_out else ([], np.zeros(0))
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
        if min(self.mixtures, self.steps) < 1:
            raise Bad(f"mixing_laws: mixtures and steps must be at least 1, got {self.mixtures}, {self.steps}")
        run, rng, proxy = loop.run, loop.run.numpy("mixing_laws"), self.proxy or loop.model
        shares, found = tried(len(names), self.mixtures, rng), []
        for r in shares:
            rows = loop.data.take(mixed_rows(code, r, self.steps * loop.size, rng))
            small = run.fit(proxy.copy(), rows, steps=self.steps, batch_size=loop.size, lr=self.lr)
            found.append(domain_losses(run, small, self.held_out, group, len(wanted)).numpy())
        return shares, np.stack(found), wanted
