"""Which rows come next: by odds, without replacement inside a step, at a cost that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Sampler:
    """Draws rows by name of the step, so that nothing has to be saved to go on."""

    def __init__(self, rows: int, rng: Callable[..., torch.Generator]) -> None:
        self.rows, self.rng = rows, rng
        self.epoch: tuple[int, np.ndarray] | None = None
        self.sums: tuple[Any, Sums] | None = None

    def draw(self, t: int, n: int, odds: Tensor | None) -> np.ndarray:
        """Positions (n,) of step t. Without odds: shuffled epochs. With odds (N,) >= 0: successive sampling."""
        if odds is None:
            return self._shuffled(t, n)
        return successive(self._sums(odds), n, self.rng("draw", t))

    def _shuffled(self, t: int, n: int) -> np.ndarray:
        picked: list[np.ndarray] = []
        at, left = t * n, n
        while left:
            epoch, start = divmod(at, self.rows)
            piece = self._order(epoch)[start : start + left]
            picked.append(piece)
            at, left = at + len(piece), left - len(piece)
        return np.concatenate(picked)

    def _order(self, epoch: int) -> np.ndarray:
        held = self.epoch  # read once: batches are made in several threads
        if held is None or held[0] != epoch:
            held = epoch, torch.randperm(self.rows, generator=self.rng("epoch", epoch)).numpy()
            self.epoch = held
        return held[1]

    def _sums(self, odds: Tensor) -> Sums:
        """Cumulated odds, made again only when a part hands over another tensor."""
        held = self.sums
        if held is None or held[0] is not odds:
            if len(odds) != self.rows:
                raise ValueError(f"odds for {len(odds)} rows, but there are {self.rows}")
            self.sums = held = odds, Sums(odds.detach().cpu().double().clamp(min=0).numpy())
        return held[1]


class Sums:
    """Odds (N,) float64 cumulated, so that a number up to their total is the row it falls on.

    Looked up in two: the last of every 32 sums stay together in the processor's cache, and of the others a draw reads one
    run of 32. One search over all would wait for memory at every halving, the longer the more rows there are.
    """

    WIDE = 32

    def __init__(self, odds: np.ndarray) -> None:
        self.rows, self.possible = len(odds), int(np.count_nonzero(odds > 0))
        self.runs = np.full((-(-len(odds) // self.WIDE), self.WIDE), np.inf)
        np.cumsum(odds, out=self.runs.reshape(-1)[: len(odds)])
        self.total = float(self.runs.reshape(-1)[len(odds) - 1]) if len(odds) else 0.0
        if not np.isfinite(self.total) or self.total <= 0:
            raise ValueError("odds must be finite and not all zero")
        self.ends = self.runs[:, -1].copy()

    def rows_at(self, at: np.ndarray) -> np.ndarray:
        """The rows int64 (M,) that the numbers `at` (M,) in [0, total) fall on."""
        run = np.searchsorted(self.ends, at, side="right").clip(max=len(self.ends) - 1)
        return (run * self.WIDE + (self.runs[run] <= at[:, None]).sum(1)).clip(max=self.rows - 1)

    def odds(self) -> np.ndarray:
        """The odds (N,), as far as their sums tell."""
        return np.diff(self.runs.reshape(-1)[: self.rows], prepend=0.0)


def successive(sums: Sums, n: int, generator: torch.Generator) -> np.ndarray:
    """Draw up to n different rows one after another, each by its odds among those left: int64 (at most n,).

    Drawing with replacement and passing over what was drawn before has that very law."""
    n, got = min(n, sums.possible), np.zeros(0, np.int64)
    for _ in range(64):
        at = torch.rand(2 * n + 16, generator=generator, dtype=torch.float64).numpy() * sums.total
        for some in (at[: n + 8], at[n + 8 :]):  # rows are seldom drawn twice: most of the time the first are enough
            got = np.concatenate([got, sums.rows_at(some)])
            _, first = np.unique(got, return_index=True)
            got = got[np.sort(first)]
            if len(got) >= n:
                return got[:n]
    mass = sums.odds()  # a few rows hold nearly all the odds
    rest = np.setdiff1d(np.flatnonzero(mass), got)
    key = np.log(mass[rest]) - np.log(
        -np.log(torch.rand(len(rest), generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16).numpy())
    )
    return np.concatenate([got, rest[np.argsort(-key)][: n - len(got)]])


def gumbel(n: int, generator: torch.Generator) -> Tensor:
    """Noise (n,) float64 by Gumbel's law: the k rows highest in log odds + noise are k draws without replacement by the odds."""
    return -torch.empty(n, dtype=torch.float64).exponential_(generator=generator).log()
