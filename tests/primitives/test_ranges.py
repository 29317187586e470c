from __future__ import annotations

import pytest
import torch

from trainlore.primitives.grids import Grid
from trainlore.primitives.ranges import clip_rounded, clipped, clipping, tight


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_tight_grid_is_the_best_of_all():
    w = rand(5, 40)
    w[:, 0] *= 6
    for per in ("channel", "tensor", 8):
        grid = tight(w, "uint2", per)
        gap = float((grid.round(w) - w).abs().pow(2.4).sum())
        tries = [float((Grid.of(w, "uint2", per, c / 20).round(w) - w).abs().pow(2.4).sum()) for c in range(4, 21)]
        assert gap <= min(tries) + 1e-3 and gap < 0.9 * tries[-1]


@pytest.mark.parametrize("per", ["channel", 4, 5])
def test_clipping_against_a_loop_over_tokens(per):
    x, w = rand(60, 8) @ rand(8, 8, seed=1), rand(3, 8, seed=2)
    got = clipped(w, x.T @ x / 60, "uint3", per)
    for o in range(3):
        for start in range(0, 8, 8 if per == "channel" else per):
            run = slice(start, 8 if per == "channel" else start + per)
            lane, errors = w[o : o + 1, run], []
            for i in range(10):
                bound = float(lane.abs().max()) * (1 - i / 20)
                held = lane.clamp(-bound, bound)
                errors.append(
                    (float(((lane - Grid.of(held, "uint3").round(lane)) @ x[:, run].T).square().mean()), held)
                )
            best = min(range(10), key=lambda i: errors[i][0])
            torch.testing.assert_close(got[o : o + 1, run], errors[best][1])


@pytest.mark.parametrize("per", ["channel", 4])
def test_clipped_rounding_against_a_loop(per):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 8, generator=g)
    lanes = 3 if per == "channel" else 6
    low, high = torch.randn(lanes, 1, generator=g), torch.randn(lanes, 1, generator=g)
    scale, zero = clipping(w, low, high, 2, per)
    got = clip_rounded(w, low, high, 2, per)
    width = 8 if per == "channel" else 4
    for lane in range(lanes):
        own = w.flatten()[lane * width : (lane + 1) * width]
        least = min(0.0, float(own.min())) / (1 + float((-low[lane]).exp()))
        most = max(0.0, float(own.max())) / (1 + float((-high[lane]).exp()))
        step = (most - least) / 3
        middle = round(-least / step)
        for i, value in enumerate(own.tolist()):
            want = (min(3, max(0, round(value / step) + middle)) - middle) * step
            assert float(got.flatten()[lane * width + i]) == pytest.approx(want, abs=1e-6)
    grid = Grid("uint2", per, scale, zero.int())
    torch.testing.assert_close(grid.round(w), got)
