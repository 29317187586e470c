"""Curves of learning: power laws fitted with bounds and weights, their uncertainty, and smoothing.

A power law is the triple (scale, exponent, floor) of

    error(n) = scale * n^-exponent + floor

Given the exponent the law is linear in the other two, so every exponent of a grid is solved exactly and the best one polished: no
start values, no local minima, and many curves at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Model

EXPONENTS = np.geomspace(0.01, 5, 320)


def smooth(values, window: int) -> np.ndarray:
    """Moving average (T,) of values (T,) over `window` steps, the ends mirrored so that the length stays."""
    values = np.asarray(values, dtype=np.float64)
    window = min(int(window), len(values))
    if window < 2:
        return values.copy()
    before = window // 2
    padded = np.pad(values, (before, window - 1 - before), mode="reflect" if len(values) > 1 else "edge")
    sums = np.cumsum(np.concatenate([[0.0], padded]))
    return (sums[window:] - sums[:-window]) / window


def _checked(sizes, values, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes, values = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    weights = np.ones_like(sizes) if weights is None else np.asarray(weights, dtype=np.float64)
    if sizes.ndim != 1 or values.shape[-1:] != sizes.shape or weights.shape != sizes.shape:
        raise ValueError(
            f"sizes {sizes.shape}, values {values.shape} and weights {weights.shape} must end in the same length"
        )
    if not (sizes > 0).all() or len(np.unique(sizes)) < 3:
        raise ValueError(f"a power law needs three different sizes above 0 or more; there are {len(np.unique(sizes))}")
    if not np.isfinite(values).all() or not (weights >= 0).all() or not weights.any():
        raise ValueError("values must be finite, weights 0 or more and not all 0")
    return sizes, values, weights / weights.max()


def fit_power(sizes, errors, weights=None, floor: tuple[float, float] = (0.0, np.inf)) -> np.ndarray:
    """Weighted least-squares power laws (..., 3) of errors (..., N) at sizes (N,): scale >= 0, the floor inside its bounds.

    `weights` (N,) are inverse variances. Leading axes are fitted all at once.
    """
    sizes, errors, weights = _checked(sizes, errors, weights)
    if not floor[0] <= floor[1]:
        raise ValueError(f"floor's bounds are {floor}: the first must not exceed the second")
    middle = np.exp(np.mean(np.log(sizes)))  # sizes around 1 keep the scale and the exponent apart
    x = (sizes / middle) ** -EXPONENTS[:, None]  # (E, N)
    flat = errors.reshape(-1, len(sizes))
    total, mx = weights.sum(), (x * weights).sum(1) / weights.sum()
    xx = (x**2 * weights).sum(1)
    spread = np.maximum(xx - total * mx**2, 1e-300)
    best = np.empty((len(flat), 3))
    for start in range(0, len(flat), 1024):  # memory stays bounded however many curves are asked for
        y = flat[start : start + 1024]
        my, yy, xy = (y * weights).sum(1) / total, (y**2 * weights).sum(1), np.einsum("en,dn,n->de", x, y, weights)

        def cost(a, c, yy=yy, xy=xy, my=my):
            return (
                yy[:, None]
                + a**2 * xx
                + c**2 * total
                - 2 * a * xy
                - 2 * c * total * my[:, None]
                + 2 * a * c * total * mx
            )

        free = np.maximum((xy - total * mx * my[:, None]) / spread, 0.0)
        pairs = [
            (free, my[:, None] - free * mx)
        ]  # the optimum of a convex bowl over a box: inside, or on one of its edges
        pairs += [(np.maximum((xy - b * total * mx) / xx, 0.0), np.full_like(xy, b)) for b in floor if np.isfinite(b)]
        scored = np.stack([np.where((c >= floor[0]) & (c <= floor[1]), cost(a, c), np.inf) for a, c in pairs], 1)
        edge, exponent = np.unravel_index(scored.reshape(len(y), -1).argmin(1), (len(pairs), len(EXPONENTS)))
        rows = np.arange(len(y))
        a, c = (
            np.stack([p[0] for p in pairs])[edge, rows, exponent],
            np.stack([p[1] for p in pairs])[edge, rows, exponent],
        )
        best[start : start + 1024] = np.stack([a, EXPONENTS[exponent], c], 1)
    if len(best) == 1:
        best = _polish(best, sizes / middle, flat, weights, floor)
    best[:, 0] *= middle ** best[:, 1]
    return best.reshape(*errors.shape[:-1], 3)


def _polish(
    best: np.ndarray, x: np.ndarray, errors: np.ndarray, weights: np.ndarray, floor: tuple[float, float]
) -> np.ndarray:
    found = least_squares(
        lambda p: p[0] * x ** -p[1] + p[2],
        best,
        errors[0],
        lower=[0.0, EXPONENTS[0], floor[0]],
        upper=[np.inf, EXPONENTS[-1], floor[1]],
        weights=weights,
    )
    return found[None]


def power_at(law, sizes) -> np.ndarray:
    """Errors (..., N) of laws (..., 3) at sizes (N,)."""
    scale, exponent, floor = np.moveaxis(np.asarray(law, dtype=np.float64)[..., None, :], -1, 0)
    return scale * np.asarray(sizes, dtype=np.float64) ** -exponent + floor


def power_size(law, error) -> np.ndarray:
    """Sizes (...) at which laws (..., 3) reach an error; infinite at or below their floor."""
    scale, exponent, floor = np.moveaxis(np.asarray(law, dtype=np.float64), -1, 0)
    above = error - floor
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(above > 0, (scale / np.where(above > 0, above, 1.0)) ** (1 / exponent), np.inf)


def draw_power(
    sizes, errors, generator: np.random.Generator, spread=None, weights=None, floor=(0.0, np.inf), draws: int = 400
) -> np.ndarray:
    """Laws (draws, 3) refitted to errors (N,) as they might have been: the fitted curve plus fresh noise.

    `spread` (N,) is the standard error of each point where it is known (several seeds); otherwise it comes from the residuals, with
    three degrees of freedom taken by the fit.
    """
    sizes, errors, weights = _checked(sizes, errors, weights)
    curve = power_at(fit_power(sizes, errors, weights, floor), sizes)
    if spread is None:
        left = (weights * (errors - curve) ** 2).sum() / max(1, len(sizes) - 3)
        spread = np.sqrt(left / np.maximum(weights, 1e-12))
    noisy = curve + np.asarray(spread) * generator.standard_normal((draws, len(sizes)))
    return fit_power(sizes, noisy, weights, floor)


def least_squares(
    predict: Callable[[np.ndarray], np.ndarray],
    starts: Sequence[Sequence[float]] | np.ndarray,
    seen,
    lower: Sequence[float],
    upper: Sequence[float],
    weights=None,
    huber: float | None = None,
    log: bool = False,
) -> np.ndarray:
    """Parameters (P,) inside [lower, upper] that make predict(parameters) (N,) fit seen (N,) best over all starts (S, P).

    `log` compares logarithms, as laws of losses do; `huber` is where a residual stops counting squared and counts straight.
    """
    from scipy import optimize

    seen, low, high = np.asarray(seen, dtype=np.float64), np.asarray(lower, float), np.asarray(upper, float)
    root = np.ones_like(seen) if weights is None else np.sqrt(np.asarray(weights, dtype=np.float64))
    if log and not (seen > 0).all():
        raise ValueError("log residuals need values above 0")

    def residuals(parameters):
        values = predict(parameters)
        return root * (np.log(np.maximum(values, 1e-12)) - np.log(seen) if log else values - seen)

    best = None
    for start in np.asarray(starts, dtype=np.float64):
        found = optimize.least_squares(
            residuals,
            np.clip(start, low, high),
            bounds=(low, np.maximum(high, np.nextafter(low, np.inf))),
            x_scale="jac",
            loss="linear" if huber is None else "huber",
            f_scale=huber or 1.0,
        )
        if np.isfinite(found.cost) and (best is None or found.cost < best.cost):
            best = found
    if best is None:
        raise ValueError("no start led to a finite fit; check the values for infinities")
    return best.x


def curve_of(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, losses and learning rates (T,) of the model's last fit, the rates as shares of their peak."""
    curve: dict[str, Any] = model.about.get("curve") or {}
    if len(curve.get("t", ())) < 16:
        raise Bad(
            "the model remembers no training curve of 16 steps or more: measure the model that a fit gave, or set `steps`"
        )
    t, loss, rate = (np.asarray(curve[k], dtype=np.float64) for k in ("t", "loss", "rate"))
    return t.astype(int), loss, rate


# ---- a learning curve beside that of an expert


def relative_performance(curve, expert) -> float:
    """Area under a learning curve (N,) over that of a single-task expert (M,), both cut to the shorter; 1 is on a par."""
    n = min(len(curve), len(expert))
    return float(
        np.nansum(np.asarray(curve, dtype=np.float64)[:n]) / np.nansum(np.asarray(expert, dtype=np.float64)[:n])
    )


def saturation(curve) -> tuple[float, int]:
    """The highest value of the smoothed curve (N,) and the experiences before it; smoothed over a fifth of it, 100 at most."""
    curve = np.asarray(curve, dtype=np.float64)
    window = min(int(0.2 * len(curve)), 100)
    smoothed = smooth(curve, window if window >= 3 else 1)
    return float(smoothed.max()), int(smoothed.argmax())


def sample_efficiency(curve, expert) -> float:
    """(saturation / expert's) * (expert's experiences to it / experiences to it), from learning curves (N,) and (M,).

    0 where the curve falls, or saturates below a fifth of the expert's; NaN where either starts at its saturation.
    """
    (top, steps), (best, fast) = saturation(curve), saturation(expert)
    if not steps or not fast:
        return float("nan")
    slope = np.polyfit(np.arange(len(curve)), np.asarray(curve, dtype=np.float64), 1)[0]
    return 0.0 if top < 0.2 * best or slope < 0 else (top / best) * (fast / steps)
