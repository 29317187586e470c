from __future__ import annotations

import math

import pytest
import torch

from trainlore.primitives.activations import Rounder, found
from trainlore.primitives.calibrating import Unit
from trainlore.primitives.grids import Grid
from trainlore.primitives.rounding import Moved, Partly, Raised, descend, put_on, reconstruct, take_off
from trainlore.runs import Run


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_module_is_put_on_learns_and_is_taken_off():
    layers = {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 2)}
    with torch.no_grad():
        for i, layer in enumerate(layers.values()):
            layer.weight.copy_(rand(*layer.weight.shape, seed=i))
    made = put_on(layers, lambda path, layer: Raised(layer, Grid.of(layer.weight, "uint4")))
    before, goal, seen = {p: m.up.clone() for p, m in made.items()}, rand(5, 4), []
    optimizers = [torch.optim.SGD([m.up], lr=0.1) for m in made.values()]
    falls = [torch.optim.lr_scheduler.StepLR(one, 2) for one in optimizers]

    def loss(step: int, at: int) -> torch.Tensor:
        seen.append((step, at))
        return sum(layer(goal[at]).square().sum() for layer in layers.values())

    with torch.no_grad():  # gradients are on where they are needed
        descend([3, 0, 3], loss, optimizers, falls, lambda step: seen.append(step))
    assert seen == [(0, 3), 0, (1, 0), 1, (2, 3), 2] and optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(not torch.equal(m.up, before[p]) for p, m in made.items())
    said = {p: layer.weight.detach().clone() for p, layer in layers.items()}
    take_off(layers)
    assert all(torch.equal(layer.weight, said[p]) and not layer.weight.requires_grad for p, layer in layers.items())


@pytest.mark.parametrize("form", ["int3", "uint3"])
def test_rounding_against_a_loop(form):
    layer = torch.nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(rand(3, 6))
    grid = Grid.of(layer.weight, form)
    one = Raised(layer, grid)
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


def test_a_step_lets_a_share_pass_and_learns_its_scale():
    x = rand(400, 5).abs()
    one = Partly(x, 3, 0.5, torch.Generator().manual_seed(0))
    kept = (one(x) == x).float().mean()
    assert 0.45 < float(kept) < 0.55
    one.keep = 0.0
    fixed = Rounder("uint3", "tensor", one.scale.detach(), one.zero)
    torch.testing.assert_close(one(x), fixed(x))
    one(10 * x).sum().backward()  # all beyond the range: each adds 7 - z steps
    assert float(one.scale.grad) == pytest.approx(float((10 * x / one.scale > 7).sum() * 7), rel=0.1)


@pytest.mark.parametrize("form", ["int3", "uint3"])
def test_moved_weights_and_inputs_against_their_grids(form):
    weight, x = rand(3, 6), rand(50, 6, seed=1).abs()
    grid = Grid.of(weight, form)
    plain, reading = Moved(weight, grid, None, 0), Moved(weight, grid, found(x, "uint4"), 4)
    torch.testing.assert_close(plain(x), x @ grid.round(weight).T)  # nothing is learned yet: to the nearest
    torch.testing.assert_close(reading(x), Rounder("uint4", "tensor")(x) @ grid.round(weight).T)
    with torch.no_grad():
        plain.moved[0, 0] = 1.0  # a whole step
        plain.log[1] = math.log(1.1)
    settled, last, reads = plain.settled()
    assert last.holds(settled) and reads is None and reading.settled()[2][0] == found(x, "uint4")[0]
    assert float(last.scale[1]) == pytest.approx(1.1 * float(grid.scale[1]))
    torch.testing.assert_close(plain(x), x @ settled.T)
    reading(x).sum().backward()
    assert reading.moved.grad.abs().sum() > 0 and reading.log_in.grad.abs() > 0
    assert (reading.zero.grad is None) == (form == "int3")


def test_a_unit_is_reconstructed_and_plain_layers_may_be_taken_off():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    unit = Unit("0", net[0], {"0": net[0]}, [((rand(5, 4, seed=s),), {}) for s in range(3)], [None] * 3)
    unit.goals = [rand(5, 3, seed=9 + s) for s in range(3)]
    before = sum(float(unit.error(at).detach()) for at in range(3))
    made, run, seen = put_on(unit.layers, lambda path, layer: Raised(layer, Grid.of(layer.weight, "uint2"))), Run(0), []
    optimizer = torch.optim.Adam([made["0"].up], lr=0.1)
    reconstruct(run, "test", unit, 30, [optimizer])
    assert sum(float(unit.error(at).detach()) for at in range(3)) < before
    reconstruct(run, "test", unit, 8, [], loss=lambda step, at: seen.append(at) or unit.error(at))
    assert seen == run.numpy("test", "0").integers(3, size=8).tolist()
    take_off({"0": net[0], "plain": torch.nn.Linear(2, 2)})
    assert not torch.nn.utils.parametrize.is_parametrized(net[0])
