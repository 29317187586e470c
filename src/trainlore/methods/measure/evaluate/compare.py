from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.statistics import bootstrap_interval, detectable, holm, mcnemar, outcomes, sign_flip
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def paired(model, rival, better: str, generator: np.random.Generator, level: float = 0.05) -> dict[str, Any]:
    """What paired outcomes (N,) of two models on the same rows amount to: test, p, effect with interval, smallest effect findable.

    Outcomes of 0 and 1 go to McNemar's mid-p test, others to the sign-flip permutation test of the mean difference.
    """
    model, rival = np.asarray(model, dtype=np.float64), np.asarray(rival, dtype=np.float64)
    difference = (model - rival) * (1 if better == "higher" else -1)  # above 0: the model is better
    binary = bool(np.isin(model, (0, 1)).all() and np.isin(rival, (0, 1)).all())
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "test": "McNemar mid-p" if binary else "sign flip",
        "p": mcnemar(wins, losses) if binary else sign_flip(difference, generator, draws=20_000),
        "difference": float(difference.mean()),
        "interval": list(bootstrap_interval(difference, generator, level=1 - level, draws=2000)),
        "detectable": detectable(difference, level),
        "wins": wins,
        "losses": losses,
        "n": len(difference),
    }


def verdict(p: float, difference: float, level: float = 0.05) -> str:
    """better, worse, or cannot separate."""
    if p >= level or difference == 0:
        return "cannot separate"
    return "better" if difference > 0 else "worse"


@method(
    name="compare",
    title="Paired model comparison",
    paper="arXiv:1811.12808",
    lit="p235",
    family="measure/evaluate",
    year=2018,
    tier="core",
    status="stable",
)
class Compare(Measure):
    """Say whether a model beats a rival on the same rows, or that these rows cannot tell.

    ## What it does
    Both models answer every row of the data. With b rows that only the model gets right and c that only the rival does,

        p = 2 * P(X <= min(b, c)) - P(X = min(b, c)),   X ~ Binomial(b + c, 1/2)        McNemar, mid-p

    for right and wrong answers; for losses and shares the signs of the paired differences are flipped at random. The verdict
    (better, worse, cannot separate) is p against `level`. Beside it: the mean difference with a bootstrap interval, and the
    smallest true difference that this many rows would find four times in five. Domains, where the data name them, are tested
    each, their p corrected together (Holm).

    `five_by_two` (5x2cv F test of two training recipes), `cochran_q` (several models), `hierarchical_interval` (seeds and rows)
    and `sign_flip` are plain functions in `trainlore.primitives.statistics`.

    ## Claim
    A review: on small data prefer paired tests on one test set, bootstrap intervals, and for two algorithms the combined 5x2cv F
    test or nested cross-validation, over a holdout and a difference of averages.

    ## Cost
    One pass of each model over the rows; resampling takes under a second.

    ## Fields worth tuning
    More rows. `metric` loss separates sooner than accuracy, and speaks of something else.

    ## Watch out
    It compares these two models, not the recipes that made them: another seed may turn the verdict. Rows that share a document
    are not independent, and p is then too small. "Cannot separate" is not "equal": read `detectable`.

    ## Differs from the paper
    Mid-p instead of its chi-square with continuity correction (exact binomial below 25 discordant rows): one rule for all
    counts, less conservative. The .632+ bootstrap and nested cross-validation need retraining and are not here.

    ## See also
    lifelong
    """

    rival: Model
    """The model to beat."""
    metric: str = "accuracy"
    """accuracy or loss."""
    level: float = 0.05
    """p below which a difference counts."""

    tiny = {"world": "digits", "rival": "$teacher"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if not 0 < self.level < 1:
            raise Bad(f"level must be between 0 and 1, not {self.level}")
        mine, theirs = (outcomes(run, m, data, self.metric)[0] for m in (model, self.rival))
        better = "higher" if self.metric == "accuracy" else "lower"
        notes = paired(mine, theirs, better, run.numpy("compare"), self.level)
        notes |= {
            "verdict": verdict(notes["p"], notes["difference"], self.level),
            "model": float(mine.mean()),
            "rival": float(theirs.mean()),
        }
        groups = {}
        if "domain" in data.columns:
            groups["domain"] = names = np.asarray(data["domain"]).astype(str).tolist()
            kinds = sorted(set(names))
            each = [
                paired(mine[here], theirs[here], better, run.numpy("compare", kind), self.level)
                for kind in kinds
                if (here := np.array(names) == kind).any()
            ]
            for found, p in zip(each, holm([e["p"] for e in each]).tolist(), strict=True):
                found |= {"p": p, "verdict": verdict(p, found["difference"], self.level)}
            notes["domains"] = dict(zip(kinds, each, strict=True))
        difference = (mine - theirs) * (1 if better == "higher" else -1)
        return Report.of(f"{self.metric} advantage", difference, rows=data.ids, groups=groups, notes=notes)
