"""What small trainings tell of a large one: rules and laws fitted to their losses, and where these are lowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from trainlore.errors import Bad
from trainlore.primitives.curves import least_squares

__all__ = ["Law", "best_mixture", "cheapest", "fit_linear", "fit_mixing_law", "mixing_law", "tried_mixtures"]

FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995)  # of the lowest loss seen: where the search for c starts
STEEP = 30.0  # no t is beyond it: a share of one tenth would multiply the loss by 20
Law = tuple[float, float, np.ndarray]


def fit_linear(indicators: np.ndarray, values: np.ndarray, level: float = 0.05) -> tuple[float, np.ndarray]:
    """Intercept and weights (K,) of values (P,) ~ intercept + indicators (P, K) @ weights, by least squares.

    One after another the indicator of largest p-value (t-test) is dropped while that is above `level`; its weight is 0.
    """
    from scipy import stats

    probes, held, weights = len(values), list(range(indicators.shape[1])), np.zeros(indicators.shape[1])
    while held:
        x = np.column_stack([np.ones(probes), indicators[:, held]])
        if (free := probes - x.shape[1]) < 1:
            raise Bad(f"{probes} probes are too few for {len(held)} indicators: give {len(held) + 2} or more")
        beta, *_ = np.linalg.lstsq(x, values, rcond=None)
        error = np.square(values - x @ beta).sum() / free
        t = beta / np.sqrt(np.maximum(error * np.diag(np.linalg.pinv(x.T @ x)), 1e-300))
        p = 2 * stats.t.sf(np.abs(t), free)[1:]
        if p.max() <= level:
            weights[held] = beta[1:]
            return float(beta[0]), weights
        held.pop(int(p.argmax()))
    raise Bad(f"no indicator tells the probes apart at level={level}: give more probes, or raise level")


def cheapest(cost: Callable[[int], float], low: int, high: int, trials: int) -> int:
    """The amount from low to high of least cost among at most `trials` tried, the smallest of equals.

    Half of them lie evenly over the logarithm of the amount; each of the others halves the wider gap beside the best.
    """
    first = min(trials, max(2, -(-trials // 2)))
    seen = {n: cost(n) for n in np.unique(np.geomspace(low, high, first).round().astype(int)).tolist()}
    while len(seen) < trials:
        order = sorted(seen)
        at = order.index(min(order, key=seen.__getitem__))
        gaps = [(a, b) for a, b in pairwise(order[max(0, at - 1) : at + 2]) if b - a > 1]
        if not gaps:
            break
        a, b = max(gaps, key=lambda gap: gap[1] / gap[0])
        between = round((a * b) ** 0.5)
        seen[between] = cost(between)
    return min(sorted(seen), key=seen.__getitem__)


def mixing_law(shares: np.ndarray, c: float, k: float, t: np.ndarray) -> np.ndarray:
    """Losses (...) at shares (..., K): c + k * exp(sum_j t_j r_j), with t (K,)."""
    return c + k * np.exp(np.asarray(shares, np.float64) @ np.asarray(t, np.float64))


def fit_mixing_law(shares: np.ndarray, losses: np.ndarray, huber: float = 0.02) -> Law:
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
    starts.sort(key=lambda p: np.abs(mixing_law(x, p[0], 1.0, np.array(p[1:])) - y).sum())
    low, high = [0.0, *[-STEEP] * k], [y.min() * (1 - 1e-9), *[STEEP] * k]
    c, *t = least_squares(lambda p: mixing_law(x, p[0], 1.0, p[1:]), starts[:3], y, low, high, huber=huber)
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


def tried_mixtures(k: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """n mixtures (n, k) to train on: the even one; each domain 16 times the others; then random ones.

    In those each domain has one of 1, 1/2, ... 1/16 before they are made to sum to 1.
    """
    raw = 2.0 ** -generator.integers(0, 5, (n, k))
    lead = np.concatenate([np.ones((1, k)), np.where(np.eye(k, dtype=bool), 1.0, 1 / 16)])[:n]
    raw[: len(lead)] = lead
    return raw / raw.sum(1, keepdims=True)
