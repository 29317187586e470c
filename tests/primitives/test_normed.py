from __future__ import annotations

import torch

from trainlore.primitives.calibrating import Unit
from trainlore.primitives.normed import corrected
from trainlore.runs import Run


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_correction_brings_the_statistics_back():
    with Run(0).global_rng("weights"):
        block = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1), torch.nn.BatchNorm2d(2)).eval().requires_grad_(False)
    unit, x = Unit("0", block, {}, [], [None]), rand(6, 4, 5, 5)
    h = block[0](x)
    block[1].running_mean.copy_(h.mean((0, 2, 3)) + 0.5)
    block[1].running_var.copy_(2 * h.var((0, 2, 3)))

    def off(h):
        mean, spread = h.flatten(2).mean(2), h.flatten(2).std(2)
        gaps = mean - block[1].running_mean, spread - block[1].running_var.sqrt()
        return float(sum(gap.square().sum(1).mean() for gap in gaps))

    (moved,), _ = corrected(unit, ((x,), {}), 200, 0.01, 100.0)
    assert off(block[0](moved)) < 0.2 * off(h) and not moved.requires_grad
    (held,), _ = corrected(unit, ((x,), {}), 200, 0.01, 1e-4)
    assert float((held - x).norm()) < 0.1 * float((moved - x).norm())
    call = ((x,), {})
    assert corrected(unit, call, 0, 0.01, 1.0) is call
    assert corrected(Unit("0", block[0], {}, [], [None]), call, 9, 0.01, 1.0) is call
