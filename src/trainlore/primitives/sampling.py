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
        self.cumulated: tuple[Any, np.ndarray, int] | None = None

    def draw(self, t: int, n: int, odds: Tensor | None) -> np.ndarray:
        """Positions (n,) of step t. Without odds: shuffled epochs. With odds (N,) >= 0: successive sampling."""
        if odds is None:
            return self._shuffled(t, n)
        return successive(*self._sums(odds), n, self.rng("draw", t))

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

    def _sums(self, odds: Tensor) -> tuple[np.ndarray, int]:
        """Cumulated odds, made again only when a part hands over another tensor."""
        if self.cumulated is None or self.cumulated[0] is not odds:
            if len(odds) != self.rows:
                raise ValueError(f"odds for {len(odds)} rows, but there are {self.rows}")
            mass = odds.detach().cpu().double().clamp(min=0).numpy()
            if not np.isfinite(mass).all() or mass.sum() <= 0:
                raise ValueError("odds must be finite and not all zero")
            self.cumulated = odds, np.cumsum(mass), int((mass > 0).sum())
        return self.cumulated[1], self.cumulated[2]


def successive(cumulated: np.ndarray, possible: int, n: int, generator: torch.Generator) -> np.ndarray:
    """Draw up to n different rows one after another, each by its odds among those left.

    Drawing with replacement and passing over what was drawn before has that very law, so one sorted look-up serves
    (`cumulated` float64 (N,) of the odds, `possible` rows above zero)."""
    n, got = min(n, possible), np.zeros(0, np.int64)
    for _ in range(64):
        fresh = torch.rand(2 * n + 16, generator=generator, dtype=torch.float64).numpy() * cumulated[-1]
        got = np.concatenate([got, np.searchsorted(cumulated, fresh, side="right").clip(max=len(cumulated) - 1)])
        _, first = np.unique(got, return_index=True)
        got = got[np.sort(first)]
        if len(got) >= n:
            return got[:n]
    rest = np.setdiff1d(np.flatnonzero(np.diff(cumulated, prepend=0.0)), got)  # a few rows hold nearly all the odds
    mass = np.diff(cumulated, prepend=0.0)[rest]
    key = np.log(mass) - np.log(
        -np.log(torch.rand(len(rest), generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16).numpy())
    )
    return np.concatenate([got, rest[np.argsort(-key)][: n - len(got)]])


def gumbel(n: int, generator: torch.Generator) -> Tensor:
    """Noise (n,) float64 by Gumbel's law: the k rows highest in log odds + noise are k draws without replacement by the odds."""
    return -torch.empty(n, dtype=torch.float64).exponential_(generator=generator).log()
