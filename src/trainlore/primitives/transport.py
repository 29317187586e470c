"""Optimal transport between two weighted sets of points, entropic, in the log domain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trainlore.errors import Bad

__all__ = ["Transport", "calibrated", "extended", "sinkhorn"]

CELLS = 2**24  # costs held at once when they are made from features


class Transport(NamedTuple):
    """Potentials f (N,) and g (M,), the cost <a, f> + <b, g>, and how far the plan's rows are from `a` (sum of shares)."""

    f: Tensor
    g: Tensor
    cost: float
    error: float


class _Costs:
    """Costs by blocks of source rows: sliced from a matrix, or made from two sets of features."""

    def __init__(self, cost: Tensor | tuple[Tensor, Tensor], power: float) -> None:
        self.given, self.power = cost, power
        if isinstance(cost, Tensor):
            self.shape, self.like = (cost.shape[0], cost.shape[1]), cost
        else:
            if cost[0].shape[1:] != cost[1].shape[1:]:
                raise Bad(f"features of {tuple(cost[0].shape)} and {tuple(cost[1].shape)} differ in width")
            self.shape, self.like = (len(cost[0]), len(cost[1])), cost[0]
        self.step = max(1, CELLS // max(1, self.shape[1]))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(slice of rows, costs (rows, M)) from the first row to the last."""
        for at in range(0, self.shape[0], self.step):
            some = slice(at, at + self.step)
            if isinstance(self.given, Tensor):
                yield some, self.given[some]
            else:
                apart = torch.cdist(self.given[0][some], self.given[1])
                yield some, apart if self.power == 1 else apart**self.power


def sinkhorn(
    cost: Tensor | tuple[Tensor, Tensor],
    a: Tensor | None = None,
    b: Tensor | None = None,
    epsilon: float = 0.05,
    iterations: int = 200,
    tolerance: float = 1e-4,
    power: float = 1.0,
) -> Transport:
    """Potentials of min_P <P, C> + epsilon KL(P || a b^T) over plans P with marginals a (N,) and b (M,), uniform without.

    `cost` (N, M), or two sets of features (N, D), (M, D) whose distance to the `power` is the cost; then no more than
    `CELLS` costs are held, and made anew at every turn. `epsilon` is in the unit of the cost. It starts at the largest
    cost and halves every turn until it is there; then at most `iterations` turns, fewer once `error` <= `tolerance`.

        f_i = -eps log sum_j b_j exp((g_j - C_ij) / eps),    g_j the same with the sides exchanged
    """
    costs = _Costs(cost, power)
    (n, m), like = costs.shape, costs.like
    if not n or not m:
        raise Bad(f"there is nothing to transport: {n} source and {m} target rows")
    if not epsilon > 0 or iterations < 1:
        raise Bad(f"epsilon={epsilon}, iterations={iterations}: both must be above 0")
    a, b = (_shares(w, k, name, like) for w, k, name in ((a, n, "a"), (b, m, "b")))
    log_a, log_b = a.log(), b.log()
    high = max(float(c.max()) for _, c in costs.blocks())
    if not (high < float("inf") and min(float(c.min()) for _, c in costs.blocks()) > -float("inf")):
        raise Bad("the costs are not finite: check the features for NaN and infinity")
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    now, left, error = max(high, epsilon), iterations, float("inf")
    while left > 0 and error > tolerance:
        now = max(epsilon, now / 2)
        left -= now == epsilon
        old, (f, g) = f, _turn(costs, g, log_a, log_b, now)
        if now == epsilon:  # how far the rows of the last turn's plan were from their masses
            error = float((a * torch.expm1(((old - f) / epsilon).clamp(max=50)).abs()).sum())
    return Transport(f, g, float((a * f).sum() + (b * g).sum()), error)


def _turn(costs: _Costs, g: Tensor, log_a: Tensor, log_b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """New potentials of the rows from those of the columns, and of the columns from these: one pass over the costs."""
    f, columns = torch.empty_like(log_a), torch.full_like(log_b, -torch.inf)
    for some, c in costs.blocks():
        f[some] = -epsilon * torch.logsumexp((g - c) / epsilon + log_b, 1)
        columns = torch.logaddexp(columns, torch.logsumexp((f[some] / epsilon + log_a[some])[:, None] - c / epsilon, 0))
    return f, -epsilon * columns


def extended(
    cost: Tensor | tuple[Tensor, Tensor], g: Tensor, b: Tensor | None = None, epsilon: float = 0.05, power: float = 1.0
) -> Tensor:
    """The potential of further source rows (K,), from their costs (K, M) or features and the potentials g of the targets.

    Of a row that was transported it is the potential it has; of any other what a little mass there would have.
    """
    costs = _Costs(cost, power)
    log_b = _shares(b, costs.shape[1], "b", costs.like).log()
    return torch.cat([-epsilon * torch.logsumexp((g - c) / epsilon + log_b, 1) for _, c in costs.blocks()])


def calibrated(f: Tensor) -> Tensor:
    """The gradient of the distance by the mass of each source row, from its potentials (N,): f_i - mean of the others'.

    Potentials are known up to a constant, and mass put on one row is taken from the others alike.
    """
    if len(f) < 2:
        return torch.zeros_like(f)
    return (f - f.mean()) * (len(f) / (len(f) - 1))


def _shares(weights: Tensor | None, n: int, name: str, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_full((n,), 1 / n)
    if weights.shape != (n,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise Bad(f"{name} must be {n} masses of at least 0, not all of them 0")
    return weights.to(like) / weights.sum().to(like)
