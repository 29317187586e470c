"""Stopping early: at rungs of the training the worse half of the arms is dropped, and the risk of each is stated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlore.races import heat as heats

if TYPE_CHECKING:
    from trainlore.races.conduct import Conductor
    from trainlore.races.spec import Arm

RUNGS = (0.25, 0.5)  # shares of the training after which half of the arms stay (successive halving)


def reached(track: dict[str, Any]) -> float:
    """The share of the training that was done at the last look."""
    return float(track["at"]["done"]) if track["at"] else 0.0


def halve(made: Conductor, run: Any, arms: list[Arm]) -> list[Arm]:
    """Run all arms rung by rung and drop the worse half of those that are not the baseline; give those that stay."""
    race = made.race
    for rung in RUNGS:
        challengers = [a for a in arms if a.name != race.baseline]
        if len(challengers) < 2:
            break
        made.heats(run, arms, race.seeds, rung, f"to {rung:.0%}")
        curves = {a.name: curves_of(made, a.name, rung) for a in challengers}
        better = heats.ended(made.place(race.baseline, race.seeds[0])) or {}
        sign = 1.0 if direction(made, better) == "higher" else -1.0
        stay, dropped = judged(curves, sign)
        for name, said in dropped.items():
            made.dropped[name] = {"rung": rung, **said}
            made.tell(
                f"{name} is dropped at {rung:.0%}: it would have beaten {said['leader']} with a chance of {said['chance']:.0%}"
            )
        arms = [a for a in arms if a.name == race.baseline or a.name in stay]
    return arms


def judged(curves: dict[str, list], sign: float) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """The better half of the arms with curves at a rung, and of each other its score, the leader and the chance to win.

    curves: by arm, of every seed [(share done, score), ...]; sign: 1 where higher scores are better, else -1."""
    alive = {name: c for name, c in curves.items() if c}
    order = sorted(alive, key=lambda name: -sign * last(alive[name]))
    stay = set(order[: math.ceil(len(order) / 2)])
    told = lambda name: {
        "leader": order[0],
        "chance": chance(alive[name], alive[order[0]], sign),
        "score": last(alive[name]),
    }
    return stay, {name: told(name) for name in alive if name not in stay}


def direction(made: Conductor, ended: dict[str, Any]) -> str:
    """Whether higher or lower is better: what the validation says of itself."""
    if "better" in ended:
        return str(ended["better"])
    for arm in made.race.arms:
        for seed in made.race.seeds:
            if said := heats.track(made.place(arm, seed)).get("better"):
                return str(said)
    return "higher"


def curves_of(made: Conductor, arm: str, rung: float) -> list[list[tuple[float, float]]]:
    """(share done, score) of every seed of an arm, as far as the rung."""
    found = []
    for seed in made.race.seeds:
        points = heats.track(made.place(arm, seed))["points"]
        curve = [(p["done"], p["score"]) for p in points if p["score"] is not None and p["done"] <= rung + 0.02]
        if curve:
            found.append(curve)
    return found


def last(curves: list[list[tuple[float, float]]]) -> float:
    """The mean over seeds of where the curves are now."""
    return float(np.mean([c[-1][1] for c in curves]))


def chance(mine: list, leaders: list, sign: float) -> float:
    """The chance that an arm would have ended above the leader: `mine`, `leaders` are (share, score) curves of the same seeds.

    The gap at the rung is carried on by each curve's own power law where both have four points (of a quantity that
    falls), else as it is. Its uncertainty is that of the seeds, and a walk in the logarithm of time whose step is what
    the gap moved between the looks so far.
    """
    from scipy.special import stdtr

    n = min(len(mine), len(leaders))
    gaps = np.array([sign * (m[-1][1] - b[-1][1]) for m, b in zip(mine[:n], leaders[:n], strict=True)])
    gap, rung = float(gaps.mean()), mine[0][-1][0]
    ahead = _carried(mine[:n], sign), _carried(leaders[:n], sign)
    if ahead[0] is not None and ahead[1] is not None:
        gap = sign * (ahead[0] - ahead[1])
    paths = [
        [sign * (p[1] - q[1]) for p, q in zip(m, b, strict=False)] for m, b in zip(mine[:n], leaders[:n], strict=True)
    ]
    shares = [p[0] for p in mine[0]]
    moves = [
        (path[k + 1] - path[k]) / max(0.2, math.log2(shares[k + 1] / max(shares[k], 1e-6))) ** 0.5
        for path in paths
        for k in range(min(len(path), len(shares)) - 1)
    ]
    drift = float(np.sqrt(np.mean(np.square(moves)))) if moves else float(np.abs(gaps).mean())
    spread = float(gaps.std(ddof=1)) / n**0.5 if n > 1 else float(np.abs(gaps).mean())
    whole = math.hypot(spread, drift * math.log2(1 / max(rung, 1e-3)) ** 0.5)
    return 0.5 if whole == 0 else float(stdtr(max(1, n - 1), gap / whole))


def _carried(curves: list, sign: float) -> float | None:
    """Where a power law through the mean curve ends; None for too few points or a quantity that does not fall."""
    from trainlore.primitives.curves import fit_power, power_at

    points = min(len(c) for c in curves)
    if points < 4 or sign > 0:
        return None
    x = np.array([p[0] for p in curves[0][:points]])
    y = np.mean([[p[1] for p in c[:points]] for c in curves], 0)
    if (y <= 0).any() or y[-1] >= y[0]:
        return None
    try:
        return float(power_at(fit_power(x, y), np.array([1.0]))[0])
    except (ValueError, RuntimeError):
        return None
