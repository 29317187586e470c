from __future__ import annotations

import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.methods.compress.quantize.pd_quant import PDQuant, Rounding, Step, corrected, tight
from trainlore.nouns import Data, Model
from trainlore.primitives.activations import Rounder, read_rounded
from trainlore.primitives.calibrating import Unit
from trainlore.primitives.grids import Grid
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(data):
    return Data.of({"features": data["features"].reshape(-1, 1, 8, 8), "label": data["label"]})


def convolutions():
    """Three blocks of convolution, batch norm and ReLU, trained for a moment on digits."""

    def block(inside):
        return torch.nn.Sequential(torch.nn.Conv2d(inside, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())

    with Run(0).global_rng("weights"):
        blocks = torch.nn.Sequential(block(8), block(8), block(8))
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), blocks, torch.nn.Flatten(), torch.nn.Linear(512, 10))
    return Run(0).fit(Model(net), images(world("digits")["data"]), steps=20, batch_size=32, lr=3e-3, precision="fp32")


@pytest.mark.parametrize("form", ["int3", "uint3"])
def test_rounding_against_a_loop(form):
    layer = torch.nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(rand(3, 6))
    grid = Grid.of(layer.weight, form)
    one = Rounding(layer, grid)
    torch.testing.assert_close(one(layer.weight), layer.weight, atol=float(grid.scale.max()), rtol=0)  # but the clipped
    with torch.no_grad():
        one.up.copy_(3 * rand(*one.up.shape, seed=1))
    low, high = (-4, 3) if form == "int3" else (0, 7)
    for hard in (False, True):
        got = one.hard(layer.weight.shape) if hard else one(layer.weight)
        for i in range(3):
            s, z = float(grid.scale[i]), int(grid.zero[i])
            for j in range(6):
                v = float(one.up[i, j].detach())
                h = float(v >= 0) if hard else min(1.0, max(0.0, 1.2 / (1 + math.exp(-v)) - 0.1))
                want = s * (min(high, max(low, float((layer.weight.detach()[i, j] / s).floor()) + h + z)) - z)
                assert float(got[i, j].detach()) == pytest.approx(want, abs=1e-5)
    assert grid.holds(one.hard(layer.weight.shape))
    layer.weight.requires_grad_(False)


def test_the_tight_grid_is_the_best_of_all():
    w = rand(5, 40)
    w[:, 0] *= 6
    for per in ("channel", "tensor", 8):
        grid = tight(w, "uint2", per)
        gap = float((grid.round(w) - w).abs().pow(2.4).sum())
        tries = [float((Grid.of(w, "uint2", per, c / 20).round(w) - w).abs().pow(2.4).sum()) for c in range(4, 21)]
        assert gap <= min(tries) + 1e-3 and gap < 0.9 * tries[-1]


def test_a_step_lets_a_share_pass_and_learns_its_scale():
    x = rand(400, 5).abs()
    one = Step(x, 3, 0.5, torch.Generator().manual_seed(0))
    kept = (one(x) == x).float().mean()
    assert 0.45 < float(kept) < 0.55
    one.keep = 0.0
    fixed = Rounder("uint3", "tensor", one.scale.detach(), one.zero)
    torch.testing.assert_close(one(x), fixed(x))
    one(10 * x).sum().backward()  # all beyond the range: each adds 7 - z steps
    assert float(one.scale.grad) == pytest.approx(float((10 * x / one.scale > 7).sum() * 7), rel=0.1)


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


def test_blocks_with_batch_norms():
    model, data = convolutions(), images(world("digits")["data"])
    run = Run(0)
    counted = model.net[1][0][1].running_mean.clone()
    after = run.step(
        PDQuant(steps=8, rows=32, correct=15, lr_correct=0.1, hold=100.0, tolerance=9.0), model.copy(), data
    )
    assert after.grids.keys() == {"0", "1.0.0", "1.1.0", "1.2.0"}
    for path, grid in after.grids.items():
        layer = after.net.get_submodule(path)
        assert grid.holds(weight_of(layer)) and type(layer.reads) is Rounder and len(layer.weight[0].unique()) <= 16
    assert torch.equal(after.net[1][0][1].running_mean, counted)
    assert all(p.requires_grad for p in after.net.parameters())
    one = run.step(PDQuant(steps=8, rows=32, correct=0, tolerance=9.0), model.copy(), data)
    assert any(not torch.equal(one.net.get_submodule(p).weight, after.net.get_submodule(p).weight) for p in after.grids)


def test_text_with_padding():
    at = world("text")
    after = PDQuant(steps=3, rows=16, size=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    assert all(grid.holds(weight_of(after.net.get_submodule(path))) for path, grid in after.grids.items())


@pytest.mark.parametrize(
    "fields",
    [{"bits": 1}, {"bits_weight": 9}, {"steps": 0}, {"lam": 0.0}, {"temperature": -1.0}, {"keep": 1.5}, {"rows": 0}],
)
def test_bad_input_is_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields)).partition("_")[0]):
        PDQuant(**fields)(at["teacher"], at["data"])


def test_what_cannot_be_rounded_is_refused():
    at = world("digits")
    once = PDQuant(steps=1, rows=32, tolerance=9.0)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):
        PDQuant(steps=1, rows=32)(once, at["data"])
    with pytest.raises(ValueError, match="regressor"):
        PDQuant()(Model(at["teacher"].net, "regressor"), at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits"), Run(seed)
    if arm == "method":
        method = PDQuant(bits_weight=2, bits=2, steps=150, rows=256, lr=1e-2, lr_scales=1e-3, tolerance=9.0)
        model = run.step(method, at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=2, tolerance=9.0), at["teacher"].copy())
        for layer in matrices(model.net).values():
            read_rounded(layer, Rounder("uint2", "tensor"))
    right = run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float())
    return float(right.mean())


CLAIM = Claim(
    method="pd_quant",
    world="digits",
    rival="weights and inputs to the nearest",
    quantity="test accuracy with weights and inputs in 2 bits",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
