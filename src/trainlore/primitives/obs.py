"""Optimal brain surgery: what a weight costs when it is moved, and how the others make up for it.

A layer y = W x over calibration rows has the loss tr(dW H dW') with H = X'X / n, the same H for each of its rows. Moving
one column of W by e and the columns after it by the best answer to that is a step of Gaussian elimination on the inverse
of H: `sweep` takes all columns in order so, `Surgeon` takes out groups of columns wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainlore.errors import Bad


def damped(moments: Tensor, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """H (in, in) with `damp` times its mean diagonal added, and bool (in,) of the inputs that were never on.

    An input that was always 0 gets 1 on its diagonal: its weights cost nothing, and their answers move nobody.
    """
    if not damp > 0:
        raise Bad(f"damp={damp} must be above 0: without it H of few rows has no inverse")
    h = moments.clone().float()
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damp * diagonal.mean()
    return h, dead


def upper(h: Tensor) -> Tensor:
    """U (in, in), upper triangular, with U'U = H^-1: row j holds the answers of the columns after j to a move of column j.

    More damping is tried (10 times, up to three times) where rounding leaves H indefinite.
    """
    eye, more = torch.eye(len(h), device=h.device, dtype=h.dtype), 0.0
    for _ in range(4):
        low, failed = torch.linalg.cholesky_ex(h + more * h.diagonal().mean() * eye)
        if not failed:
            found, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(low), upper=True)
            if not failed:
                return found
        more = 0.01 if not more else 10 * more
    raise Bad("the calibration rows give a second moment without an inverse: raise `damp` or give more rows")


def sweep(
    weight: Tensor,
    factor: Tensor,
    settle: Callable[[int, Tensor], Tensor],
    begin: Callable[[int, int, Tensor], None] = lambda start, stop, weight: None,
    block: int = 128,
) -> Tensor:
    """Settle the columns of W (out, in) one after the other, the later ones making up for each: the new W, float32.

    factor: `upper(H)`. settle(j, w (out,)) gives the final values of column j. begin(start, stop, W[:, start:stop]) is told
    before the columns start ... stop - 1, which are answered among themselves first and passed on to the rest at once.
    """
    w = weight.detach().float().clone()
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        here, u = w[:, start:stop], factor[start:stop, start:stop]
        begin(start, stop, here)
        moved = torch.empty_like(here)
        for j in range(stop - start):
            column = here[:, j].clone()
            final = settle(start + j, column)
            moved[:, j] = (column - final) / u[j, j]
            here[:, j + 1 :].addr_(moved[:, j], u[j, j + 1 :], alpha=-1)
            here[:, j] = final
        w[:, stop:].addmm_(moved, factor[start:stop, stop:], alpha=-1)
    return w


class Surgeon:
    """A layer whose columns are taken out in groups (a head, a neuron), the cheapest first, the others making up for it.

    weight (out, in), h (in, in) damped, groups int64 (groups, columns of one). Everything in float32 on their device.
    """

    def __init__(self, weight: Tensor, h: Tensor, groups: Tensor) -> None:
        if groups.unique().numel() != groups.numel():
            raise Bad("a column belongs to one group only")
        self.weight, self.groups = weight.detach().float().clone(), groups
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(h.float()))
        self.left = torch.ones(len(groups), dtype=torch.bool, device=weight.device)
        self.error = 0.0  # tr(dW H dW') of all that was taken out so far

    def costs(self) -> Tensor:
        """What taking out each group would add to the error: (groups,), infinite for those that are gone.

        tr( W_S ((H^-1)_SS)^-1 W_S' )
        """
        at = self.groups
        if at.shape[1] == 1:  # of groups of one input no systems of equations, which is ten times faster
            least = self.inverse.diagonal()[at[:, 0]].clamp(min=torch.finfo(torch.float32).tiny)
            return (self.weight[:, at[:, 0]].square().sum(0) / least).masked_fill(~self.left, torch.inf)
        inside = self.inverse[at[:, :, None], at[:, None, :]]  # (groups, c, c)
        inside[~self.left] = torch.eye(at.shape[1], device=inside.device)
        part = self.weight[:, at].permute(1, 2, 0)  # (groups, c, out)
        return (part * torch.linalg.solve(inside, part)).sum((1, 2)).masked_fill(~self.left, torch.inf)

    def take(self, group: int) -> None:
        """Take out a group: W -= W_S ((H^-1)_SS)^-1 (H^-1)_S, and its columns leave H^-1 by elimination."""
        at = self.groups[group]
        rows = self.inverse[at]
        answer = torch.linalg.solve(rows[:, at], rows)  # (c, in)
        part = self.weight[:, at]
        self.error += float((part * torch.linalg.solve(rows[:, at], part.T).T).sum())
        self.weight -= part @ answer
        self.inverse -= rows.T @ answer
        self.weight[:, at] = 0.0
        self.inverse[at] = 0.0
        self.inverse[:, at] = 0.0
        self.left[group] = False

    def cheapest(self) -> int:
        """Take out the group that costs least; its number."""
        group = int(self.costs().argmin())
        self.take(group)
        return group
