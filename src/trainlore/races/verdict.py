"""From outcomes to verdicts: per-row values of every arm and seed in, better, worse or cannot separate out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.primitives import statistics as st
from trainlore.randomness import number

BETTER, WORSE, CANNOT = "better", "worse", "cannot separate"
DRAWS = 4000


@dataclass(frozen=True)
class Outcomes:
    """What one arm answered: `values` (S, N), a row a seed and a column a test row; `weights` (N,) of the rows or None."""

    values: np.ndarray
    seeds: tuple[int, ...]
    rows: np.ndarray  # ids (N,)
    better: str  # "higher" or "lower"
    weights: np.ndarray | None = None

    def score(self) -> np.ndarray:
        """The value of each seed (S,)."""
        return np.average(self.values, axis=1, weights=self.weights)


@dataclass(frozen=True)
class Effect:
    """One arm against one rival, both on the same seeds and rows. `difference` is positive where the arm is better."""

    arm: str
    rival: str
    difference: float
    interval: tuple[float, float]
    p: float
    detectable: float  # smallest true difference that this race would have found four times in five
    seeds: int
    rows: int
    size: float | None  # mean over standard deviation of the seeds' differences; None where seeds do not differ
    sign_flip: float  # p over seeds alone
    mcnemar: float | None  # p over rows of the first seed, where outcomes are right or wrong
    by_seed: tuple[float, ...] = ()
    holm: float = 1.0
    verdict: str = CANNOT
    level: float = 0.05
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The verdict as people say it."""
        how = f"{self.difference:+.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        if self.verdict == CANNOT:
            return f"{self.arm} cannot be told from {self.rival} ({how}; a difference of {self.detectable:.3g} would have shown)"
        return f"{self.arm} is {self.verdict} than {self.rival} ({how}, p = {self.holm:.2g})"


def effect(arm: str, mine: Outcomes, rival: str, theirs: Outcomes, level: float = 0.05, comparisons: int = 1) -> Effect:
    """The paired effect on the seeds that both finished. `comparisons`: how many tests share the level."""
    if mine.better != theirs.better or not np.array_equal(mine.rows, theirs.rows):
        raise Bad(f"{arm} and {rival} were not measured on the same rows by the same metric")
    both = [s for s in mine.seeds if s in theirs.seeds]
    if not both:
        raise Bad(f"{arm} and {rival} have no seed in common that both finished")
    sign = 1.0 if mine.better == "higher" else -1.0
    first = mine.values[[mine.seeds.index(s) for s in both]]
    second = theirs.values[[theirs.seeds.index(s) for s in both]]
    table = sign * (first - second)
    mean, stderr, df = st.crossed(table, mine.weights)
    by_seed = np.average(table, axis=1, weights=mine.weights)
    spread = float(by_seed.std(ddof=1)) if len(both) > 1 else 0.0
    binary = np.isin(np.concatenate([first[0], second[0]]), (0.0, 1.0)).all()
    return Effect(
        arm,
        rival,
        mean,
        interval(table, mine.weights, mean, stderr, df, 1 - level, seed=number(0, "interval", arm, rival)),
        st.two_sided(mean, stderr, df) if table.any() else 1.0,
        st.smallest(stderr, df, level / comparisons) if table.any() else 0.0,
        len(both),
        table.shape[1],
        mean / spread if spread > 0 else None,
        st.sign_flip(by_seed) if by_seed.any() else 1.0,
        _mcnemar(first[0] > 0, second[0] > 0) if binary else None,
        tuple(by_seed.tolist()),
        level=level,
    )


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    return float(st.mcnemar(int((first & ~second).sum()), int((second & ~first).sum())))


def interval(
    table: np.ndarray,
    weights: np.ndarray | None,
    mean: float,
    stderr: float,
    df: float,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Hierarchical bootstrap of the mean of `table` (S, N): seeds and rows redrawn together, (low, high).

    The form of the interval is the bootstrap's, its width is not: drawn from five seeds it would be too narrow by a
    fifth. So the draws are stretched about the mean until they spread as Student's t does at `df` degrees of freedom.
    """
    from scipy.special import stdtrit

    if not table.any():
        return 0.0, 0.0
    seeds, rows = table.shape
    rng = np.random.default_rng(seed)
    each = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    means, step = [], max(1, st.CELLS // max(rows, seeds))
    for at in range(0, DRAWS, step):
        n = min(step, DRAWS - at)
        share = rng.multinomial(rows, np.full(rows, 1 / rows), size=n) / rows
        if weights is not None:
            share = share * weights
            share = share / share.sum(1, keepdims=True).clip(min=1e-300)
        means.append((each[at : at + n] * (share @ table.T)).sum(1))
    drawn = np.concatenate(means)
    off = drawn - drawn.mean()
    spread = off.std()
    if spread == 0:
        return mean, mean
    tail = (1 - level) / 2
    low, high = np.quantile(off / spread, [tail, 1 - tail])
    wide = stdtrit(df, 1 - tail) / (0.5 * (high - low)) * stderr
    return float(mean + low * wide), float(mean + high * wide)


def judge(outcomes: dict[str, Outcomes], baseline: str, level: float = 0.05, pairs: str = "baseline") -> list[Effect]:
    """Every arm against the baseline (or `pairs="all"`), corrected together by Holm. In the order of the arms."""
    if baseline not in outcomes:
        raise Bad(f"the baseline {baseline!r} finished no seed: nothing can be judged")
    if not 0 < level < 1:
        raise Bad(f"level must be between 0 and 1, not {level}")
    names = list(outcomes)
    asked = (
        [(a, baseline) for a in names if a != baseline]
        if pairs == "baseline"
        else list(itertools.combinations(names, 2))
    )
    found = [
        effect(a, outcomes[a], b, outcomes[b], level, max(1, len(asked)))
        for a, b in asked
        if set(outcomes[a].seeds) & set(outcomes[b].seeds)
    ]
    import dataclasses

    done = []
    for e, p in zip(found, st.holm([e.p for e in found]).tolist() if found else [], strict=True):
        said = CANNOT if p >= level or e.difference == 0 else BETTER if e.difference > 0 else WORSE
        done.append(dataclasses.replace(e, holm=p, verdict=said if e.seeds > 1 else CANNOT))
    return done


def headline(effects: list[Effect], baseline: str, metric: str) -> str:
    """The race in one sentence."""
    won = sorted((e for e in effects if e.verdict == BETTER), key=lambda e: -e.difference)
    if not effects:
        return f"{baseline} ran alone: there is nothing to compare."
    if not won:
        lost = [e.arm for e in effects if e.verdict == WORSE]
        said = f"Nothing here beats {baseline} on {metric}"
        said += f"; {', '.join(lost)} {'is' if len(lost) == 1 else 'are'} worse" if lost else ""
        rest = [e for e in effects if e.verdict == CANNOT]
        if rest:
            most = max(e.detectable for e in rest)
            said += f"; {', '.join(e.arm for e in rest)} cannot be told from it (a difference of {most:.2g} would have shown)"
        return said + "."
    best = won[0]
    also = [e.arm for e in won[1:]]
    said = f"{best.arm} beats {baseline} on {metric} by {best.difference:.3g} [{best.interval[0]:.3g}, {best.interval[1]:.3g}]"
    said += f"; so {'does' if len(also) == 1 else 'do'} {', '.join(also)}" if also else ""
    none = [e.arm for e in effects if e.verdict == CANNOT]
    said += f"; {', '.join(none)} cannot be told from {baseline}" if none else ""
    bad = [e.arm for e in effects if e.verdict == WORSE]
    return said + (f"; {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} worse" if bad else "") + "."


def least_rows(comparisons: int, level: float = 0.05) -> int:
    """The fewest test rows on which right-or-wrong outcomes can separate anything: all of them must then point one way."""
    return int(np.ceil(1 + np.log2(max(1, comparisons) / level)))
