"""Reading curves: who leads at equal work, how long each arm takes to a target, and performance profiles."""

from __future__ import annotations

from typing import Any

import numpy as np

UNITS = ("steps", "work", "seconds")


def curve(arm: dict[str, Any], seed: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Amounts (P,) of a unit and scores (P,) along one training, what the arm spent before it counted in."""
    points = [p for p in arm["tracks"].get(seed, []) if p["score"] is not None]
    if not points:
        return np.empty(0), np.empty(0)
    key = {"steps": "t"}.get(unit, unit)
    along = np.array([p[key] for p in points], float)
    before = max(0.0, arm["bill"][unit] - along[-1]) if unit != "seconds" else 0.0
    if unit == "seconds":  # a training that was paused is timed by its share of the whole bill
        along = np.array([p["done"] for p in points]) * arm["bill"]["seconds"]
    return along + before, np.array([p["score"] for p in points])


def score_at(arm: dict[str, Any], unit: str, amount: float) -> float | None:
    """The arm's mean score over seeds when it has spent this much, between two looks in a straight line; None before the first."""
    found = []
    for seed in arm["scores"]:
        x, y = curve(arm, seed, unit)
        if not len(x) or amount < x[0] * (1 - 1e-9):
            return None
        found.append(float(np.interp(amount, x, y)))
    return float(np.mean(found)) if found else None


def orders(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The arms from best to worst at equal steps and at equal work, and those whose place differs between the two.

    Equal is the smallest amount that any of them spent in all, so that every curve reaches it.
    """
    have = {n: a for n, a in arms.items() if a["scores"] and any(a["tracks"].values())}
    if len(have) < 2:
        return {"steps": [], "work": [], "differ": []}
    sign = 1.0 if next(iter(have.values()))["better"] == "higher" else -1.0
    out: dict[str, Any] = {}
    for unit in ("steps", "work"):
        least = min(a["bill"][unit] for a in have.values())
        scores = {n: score_at(a, unit, least) for n, a in have.items()}
        known = {n: s for n, s in scores.items() if s is not None}
        out[unit] = sorted(known, key=lambda n: -sign * known[n]) + [n for n in scores if n not in known]
        out[f"{unit}_at"] = least
        out[f"{unit}_scores"] = scores
    out["differ"] = [n for n in have if out["steps"].index(n) != out["work"].index(n)]
    return out


def targets(arms: dict[str, dict[str, Any]], baseline: str) -> dict[str, Any]:
    """How much each arm needs to where the baseline ends: the median of its seeds' last validation scores.

    {"target": score, "arms": {name: {"steps" | "work" | "seconds": [amount a seed, None where it is never reached]}}}
    """
    base = arms.get(baseline)
    if base is None:
        return {}
    ends = [points[-1]["score"] for points in base["tracks"].values() if points and points[-1]["score"] is not None]
    if not ends:
        return {}
    target, sign = float(np.median(ends)), 1.0 if base["better"] == "higher" else -1.0
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        found[name] = {u: [reaches(*curve(arm, s, u), target, sign) for s in arm["scores"]] for u in UNITS}
    return {"target": target, "arms": found}


def reaches(amounts: np.ndarray, scores: np.ndarray, target: float, sign: float) -> float | None:
    """The first amount at which the curve is at the target or better, between two looks in a straight line; None: never."""
    good = sign * scores >= sign * target
    if not good.any():
        return None
    at = int(good.argmax())
    if at == 0:
        return float(amounts[0])
    share = (target - scores[at - 1]) / (scores[at] - scores[at - 1])
    return float(amounts[at - 1] + share * (amounts[at] - amounts[at - 1]))


def profile(times: dict[str, list[float | None]], grid: np.ndarray) -> dict[str, np.ndarray]:
    """Performance profiles (Dolan and More): the share of problems an arm solves within `grid` times the best arm's time.

    times: per arm one time a problem, in the same order, None where it never got there.
    """
    names = list(times)
    table = np.array([[np.inf if t is None else t for t in times[n]] for n in names], float)
    best = table.min(0)
    ratio = np.where(np.isfinite(table), table / np.where(np.isfinite(best), best, 1.0), np.inf)
    return {n: (ratio[i][:, None] <= grid).mean(0) for i, n in enumerate(names)}
