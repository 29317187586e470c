"""How wide a grid should be: ranges narrower than a lane's own, searched one by one or learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.primitives.grids import Grid
from trainlore.primitives.numbers import lanes, limits, stepped, unlanes

SHARES = [step / 20 for step in range(4, 21)]  # of a whole range, that a grid is tried at


def tight(weight: Tensor, form: str, per: str | int) -> Grid:
    """The grid of each lane that moves its weights least, in the power 2.4, of those that hold 20% to 100% of its range."""
    grids = [Grid.of(weight, form, per, clip) for clip in SHARES]
    gaps = torch.stack([lanes((g.round(weight) - weight).abs() ** 2.4, per).sum(1) for g in grids])
    best, lane = gaps.argmin(0), torch.arange(gaps.shape[1], device=gaps.device)
    return Grid(form, per, *(torch.stack([getattr(g, n) for g in grids])[best, lane] for n in ("scale", "zero")))


def clipped(weight: Tensor, moments: Tensor, form: str, per: str | int, shrinks: int = 10, grid: int = 20) -> Tensor:
    """A weight (out, in) held within +-m of its own in each lane; m costs the lane's outputs least once it is rounded.

    moments (in, in): X'X / n. m runs over max|w| * (1 - i / grid), i < shrinks; the largest of equals stays.
    """
    rows = lanes(weight.float(), per)
    most = rows.abs().amax(1, keepdim=True)
    best, least = most.clone(), torch.full_like(most, torch.inf)
    for i in range(shrinks):
        bound = most * (1 - i / grid)
        held = unlanes(rows.clamp(-bound, bound), weight.shape, per)
        error = _lane_errors(weight.float() - Grid.of(held, form, per).round(weight), moments, per)
        better = error < least
        best, least = best.where(~better, bound), least.where(~better, error)
    return unlanes(rows.clamp(-best, best), weight.shape, per)


def _lane_errors(gap: Tensor, moments: Tensor, per: str | int) -> Tensor:
    """Mean square of what each lane alone adds to its output, (lanes, 1): d H_gg d' of its run of inputs g."""
    if not isinstance(per, int):
        error = ((gap @ moments) * gap).sum(1, keepdim=True)
        return error if per == "channel" else error.sum(0, keepdim=True)
    out, width = gap.shape
    more = -width % per
    wide = nn.functional.pad(moments, (0, more, 0, more)).unflatten(1, (-1, per)).unflatten(0, (-1, per))
    own = wide.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (groups, per, per): inputs of one group with each other
    parts = lanes(gap, per).view(out, -1, per)
    return (torch.einsum("ogi,gij->ogj", parts, own) * parts).sum(-1).view(-1, 1)


def clipping(weight: Tensor, low: Tensor, high: Tensor, bits: int, per: str | int) -> tuple[Tensor, Tensor]:
    """Scale and zero point (lanes, 1) of the range from sigmoid(low) min w to sigmoid(high) max w, which holds 0."""
    limits(bits, False)
    rows = lanes(weight.float(), per)
    least = low.sigmoid() * rows.amin(1, keepdim=True).clamp(max=0)
    most = high.sigmoid() * rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((most - least) / (2**bits - 1)).clamp(min=1e-5)
    return scale, (-least / scale).round().clamp(0, 2**bits - 1)


def clip_rounded(weight: Tensor, low: Tensor, high: Tensor, bits: int, per: str | int) -> Tensor:
    """A weight (out, in) on the grid of that range, float32; gradients go to low and high, and straight to the weight."""
    scale, zero = clipping(weight, low, high, bits, per)
    return unlanes(stepped(lanes(weight.float(), per), scale, zero, bits), weight.shape, per)
