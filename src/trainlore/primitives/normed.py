"""What batch norms counted in training, as a witness: inputs are moved until the norms behind them read that again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.primitives.calibrating import Call, Unit

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def corrected(unit: Unit, call: Call, steps: int, lr: float, hold: float) -> Call:
    """The same call with an input moved so that the unit's batch norms read what they counted in training.

    Minimizes the squared distances of their inputs' mean and deviation (for each row, over its places) from the counted
    ones, plus || X' - X ||^2 / `hold`, by Adam. Without batch norms: the call itself.
    """
    norms = [m for m in unit.module.modules() if isinstance(m, NORMS) and m.running_mean is not None]
    if not norms or not steps:
        return call
    args, kwargs = call
    x = args[0].detach()
    moved = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=lr)
    read: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: read.update({m: args[0]})) for m in norms]
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            unit.run(((moved, *args[1:]), kwargs))
            loss = (moved - x).square().sum(1).mean() / hold
            for m, h in read.items():
                places = h.flatten(2) if h.dim() > 2 else h.T[None]  # rows without places are looked at together
                loss = loss + (places.mean(2) - m.running_mean).square().sum(1).mean()
                spread = (places.var(2) + 1e-6).sqrt()
                loss = loss + (spread - (m.running_var + 1e-6).sqrt()).square().sum(1).mean()
            loss.backward()
            optimizer.step()
    for hook in hooks:
        hook.remove()
    return (moved.detach(), *args[1:]), kwargs
