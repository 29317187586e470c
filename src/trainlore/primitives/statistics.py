"""Tests and intervals for paired measurements: thin, vectorised, distributions from scipy.

A *difference* is one paired value: method minus rival on the same seed, or on the same row. A *generator* is a numpy Generator; where
it is left out a fixed one is made, so that the same numbers always give the same verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run

EXACT = 16  # all 2^16 sign patterns are tried up to this many differences
CELLS = 1 << 22  # values held at once while resampling: 32 MB


def _flat(values, name: str = "differences") -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a non-empty list of numbers; its shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} holds {int((~np.isfinite(values)).sum())} values that are not finite; drop those pairs"
        )
    return values


def _inside(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1; it is {value}")


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def standardized(values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Values (N,) in standard deviations from their mean, or from the mean of their group (N,); 0 where all are alike."""
    values = np.asarray(values, np.float64)
    _, place, count = np.unique(
        np.zeros(len(values)) if groups is None else groups, return_inverse=True, return_counts=True
    )
    away = values - (np.bincount(place, values) / count)[place]
    deviation = np.sqrt(np.bincount(place, away**2) / count)
    return away / np.where(deviation > 0, deviation, 1.0)[place]


def surprise(logprob: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How much likelier each label (N,) is by its share of the labels than by its model's logprob (N,): (N,).

    It is minus the pointwise V-information, where what a model knows without the input is those shares.
    """
    _, place, count = np.unique(label, return_inverse=True, return_counts=True)
    return np.log(count / len(label))[place] - logprob


def sign_flip(differences, generator: np.random.Generator | None = None, draws: int = 1 << 16) -> float:
    """Two-sided p of the mean of differences (N,) when every sign is a coin flip.

    Exact over all 2^N patterns up to N = 16, else from `draws` random ones, counting the observed one (so never 0).
    """
    values = _flat(differences)
    size = np.abs(values[values != 0])
    seen = abs(values.sum()) - 1e-9 * size.sum()  # ties count as extreme whatever the order of summation
    if not len(size):
        return 1.0
    if len(size) <= EXACT:
        sums = np.zeros(1)
        for value in size:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= seen).mean())
    generator = generator or np.random.default_rng(0)
    groups, count = np.unique(size, return_counts=True)
    few = 4 * len(groups) <= len(size)  # equal sizes (0/1 outcomes) flip together: one binomial, not many coins
    cells = groups if few else size
    extreme, step = 0, max(1, CELLS // len(cells))
    for start in range(0, draws, step):
        shape = (min(step, draws - start), len(cells))
        heads = generator.binomial(count, 0.5, size=shape) if few else generator.integers(2, size=shape, dtype=np.int8)
        extreme += int((np.abs((2.0 * heads - (count if few else 1)) @ cells) >= seen).sum())
    return (1 + extreme) / (1 + draws)


def bootstrap_means(differences, generator: np.random.Generator | None = None, draws: int = 10_000) -> np.ndarray:
    """Means (draws,) of differences (N,) redrawn with replacement."""
    values = _flat(differences)
    generator = generator or np.random.default_rng(0)
    means, step = [], max(1, CELLS // len(values))
    for start in range(0, draws, step):
        rows = generator.integers(len(values), size=(min(step, draws - start), len(values)))
        means.append(values[rows].mean(1))
    return np.concatenate(means)


def bootstrap_interval(
    differences, generator: np.random.Generator | None = None, level: float = 0.95, draws: int = 10_000
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of differences (N,); too narrow by about a tenth at N = 10."""
    _inside(level, "level")
    return _percentiles(bootstrap_means(differences, generator, draws), level)


def hierarchical_interval(
    differences,
    generator: np.random.Generator | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    shared: bool = True,
) -> tuple[float, float]:
    """Percentile interval of the mean of differences (S, N): seeds redrawn, and rows redrawn too.

    `shared`: the N rows are the same ones under every seed, so one draw of rows serves all seeds. Otherwise rows are drawn anew within
    every drawn seed, which is right only when each seed was measured on rows of its own.
    """
    _inside(level, "level")
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"differences must be a finite table of seeds by rows; its shape is {table.shape}")
    generator, (seeds, rows) = generator or np.random.default_rng(0), table.shape
    means, step = [], max(1, CELLS // (rows * (1 if shared else seeds)))
    for start in range(0, draws, step):
        n = min(step, draws - start)
        seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds  # (n, S): share of each seed
        if shared:
            row = generator.multinomial(rows, np.full(rows, 1 / rows), size=n) / rows
            means.append(np.einsum("ns,nr,sr->n", seed, row, table, optimize=True))
        else:
            picked = generator.integers(seeds, size=(n, seeds))
            row = generator.integers(rows, size=(n, seeds, rows))
            means.append(table[picked[..., None], row].mean((1, 2)))
    return _percentiles(np.concatenate(means), level)


def crossed(differences, weights=None, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, standard error and degrees of freedom of differences (S, N) whose seeds and rows are both samples.

    Seeds and rows are crossed random effects: with the mean squares of seeds, rows and what is left,

        variance = (MS_seed + MS_row - MS_left) / (S N),    df by Satterthwaite

    as in the analysis of many readers and cases. With few seeds that df is itself a guess, and errs to the bold side where
    seeds matter; so whichever is wider at `level`, this or the seeds' own t interval (df = S - 1), is what is given.
    `weights` (N,): the mean is sum w d / sum w, a ratio, and each row enters by its linear share in it. Of one seed or one
    row only the other kind of chance can be seen.
    """
    from scipy.special import stdtrit

    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"differences must be a finite table of seeds by rows; its shape is {table.shape}")
    seeds, rows = table.shape
    if weights is None:
        mean = float(table.mean())
    else:
        share = np.asarray(weights, np.float64) * rows / np.sum(weights)
        mean = float((table * share).mean())
        table = mean + share * (table - mean)
    by_seed, by_row = table.mean(1) - mean, table.mean(0) - mean
    left = table - mean - by_seed[:, None] - by_row
    ms_seed = rows * (by_seed**2).sum() / (seeds - 1) if seeds > 1 else 0.0
    ms_row = seeds * (by_row**2).sum() / (rows - 1) if rows > 1 else 0.0
    ms_left = (left**2).sum() / ((seeds - 1) * (rows - 1)) if min(seeds, rows) > 1 else 0.0
    total = max(ms_seed + ms_row - ms_left, ms_left, 1e-300)
    parts = ms_seed**2 / max(1, seeds - 1) + ms_row**2 / max(1, rows - 1)
    df = max(1.0, total**2 / parts) if parts > 0 else float(max(1, seeds * rows - 1))
    both = [(float(np.sqrt(total / (seeds * rows))), float(df))]
    if seeds > 1:
        both.append((float(np.sqrt(ms_seed / (seeds * rows))), float(seeds - 1)))
    stderr, df = max(both, key=lambda b: b[0] * stdtrit(b[1], (1 + level) / 2))
    return mean, stderr, df


def two_sided(mean: float, stderr: float, df: float) -> float:
    """p of a mean that is zero, by Student's t; 1 where nothing differs."""
    from scipy.special import stdtr

    return 1.0 if mean == 0 else float(2 * stdtr(df, -abs(mean) / max(stderr, 1e-300)))


def smallest(stderr: float, df: float, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean that a two-sided t test with this standard error finds with the power wanted."""
    from scipy.special import nctdtrinc, stdtrit

    _inside(level, "level")
    _inside(power, "power")
    return float(nctdtrinc(df, 1 - power, stdtrit(df, 1 - level / 2)) * stderr)


def holm(pvalues) -> np.ndarray:
    """Holm's step-down adjusted p (K,) of pvalues (K,): reject where at most the level wanted over the whole family."""
    values = np.asarray(pvalues, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("pvalues must be a list of numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(np.minimum(1.0, (len(values) - np.arange(len(values))) * values[order]))
    adjusted = np.empty_like(values)
    adjusted[order] = steps
    return adjusted


def mcnemar(first, second, mid: bool = True):
    """Two-sided p of McNemar's test from the discordant counts: rows only the first got right, rows only the second did.

    Exact binomial, or its mid-p form (half the weight of the count seen: less conservative, level kept nearly always). Takes whole
    numbers or arrays of them that broadcast.
    """
    from scipy.stats import binom

    first, second = np.asarray(first), np.asarray(second)
    n, low = first + second, np.minimum(first, second)
    p = np.minimum(1.0, 2 * binom.cdf(low, n, 0.5))
    if mid:  # at a tie both tails hold the middle count: half of it is counted once
        p = np.where(first == second, 1 - 0.5 * binom.pmf(low, n, 0.5), p - binom.pmf(low, n, 0.5))
    p = np.where(n == 0, 1.0, p)
    return float(p) if p.ndim == 0 else p


def cochran_q(right) -> tuple[float, float]:
    """Q and its p for outcomes right (models, rows) of 0 and 1: do K models on the same rows differ at all?"""
    from scipy.stats import chi2

    table = np.asarray(right, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or not np.isin(table, (0, 1)).all():
        raise ValueError("right must be a table of 0 and 1, two models or more by rows")
    k, model, row = len(table), table.sum(1), table.sum(0)
    spread = (row * (k - row)).sum()
    if not spread:
        return 0.0, 1.0
    q = (k - 1) * (k * (model**2).sum() - model.sum() ** 2) / spread
    return float(q), float(chi2.sf(q, k - 1))


def five_by_two(differences) -> tuple[float, float]:
    """F and its p from differences (5, 2): the two folds of five halvings of the data, retrained each time (F with 10 and 5 d.o.f.)."""
    from scipy.stats import f

    table = np.asarray(differences, dtype=np.float64)
    if table.shape != (5, 2):
        raise ValueError(f"differences must be five halvings by two folds, (5, 2); its shape is {table.shape}")
    above, spread = (table**2).sum(), 2 * ((table - table.mean(1, keepdims=True)) ** 2).sum()
    if not spread:
        return (0.0, 1.0) if not above else (float("inf"), 0.0)
    return float(above / spread), float(f.sf(above / spread, 10, 5))


def detectable(differences, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest true mean difference that a two-sided paired t-test on this many pairs, spread like these, finds with this power."""
    from scipy.special import nctdtrinc, stdtrit

    _inside(level, "level")
    _inside(power, "power")
    values = _flat(differences)
    if len(values) < 2:
        return float("inf")
    critical = stdtrit(len(values) - 1, 1 - level / 2)
    return float(nctdtrinc(len(values) - 1, 1 - power, critical) * values.std(ddof=1) / np.sqrt(len(values)))


def outcomes(run: Run, model: Model, data: Data, metric: str = "accuracy") -> tuple[np.ndarray, np.ndarray | None]:
    """What tests compare, one value a row (N,): the share of right answers, or the loss. And how many tokens each row counts for (N,).

    A classifier answers once a row, and then there are no counts. Rows without a single target count 0.
    """
    import torch

    from trainlore.primitives import losses as L

    if metric not in ("accuracy", "loss"):
        raise Bad(f"metric is accuracy or loss, not {metric!r}")
    if metric == "accuracy" and model.kind == "regressor":
        raise Bad("a regressor has no accuracy: measure its loss")
    data.need(who=f"measuring {metric}")

    def look(batch, out):
        y = L.targets(model.kind, batch)
        by_token = y.dim() == 2 and not y.is_floating_point()
        tokens = (y != -100).sum(1) if by_token else torch.ones(len(y), device=y.device)
        if metric == "loss":
            value = L.per_row(L.rowwise(model.kind, batch, out), batch, model.kind)
        else:
            right = L.aligned(model.kind, out).argmax(-1) == (y.argmax(-1) if y.is_floating_point() else y)
            value = right.sum(1) / tokens.clamp(min=1) if by_token else right
        return torch.stack([value.float(), tokens.float()], 1)

    values, counts = run.infer(model, data, look).double().numpy().T
    return values, (None if model.kind in ("classifier", "regressor") else counts)
