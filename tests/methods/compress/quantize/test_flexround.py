from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.flexround import FlexRound, divided
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives import numbers
from trainlore.primitives.grids import Grid
from trainlore.primitives.masks import matrices
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
def test_division_against_a_loop(symmetric):
    w, each, bits = rand(3, 6), 0.2 * rand(3, 6, seed=1), 3
    step, zero = numbers.scales(w, bits, "channel", symmetric)
    low, high = numbers.limits(bits, symmetric)
    got = divided(w, step.log(), each, zero, bits, "channel", symmetric)
    for i in range(3):
        for j in range(6):
            ints = torch.round(w[i, j] / (step[i, 0] * each[i, j].exp())) + zero[i, 0]
            torch.testing.assert_close(got[i, j], (ints.clamp(low, high) - zero[i, 0]) * step[i, 0])


def test_it_starts_at_the_nearest_grid():
    w = rand(4, 10)
    for per in ("tensor", "channel", 4):
        step, zero = numbers.scales(w, 4, per, False)
        got = divided(w, step.log(), torch.zeros_like(w), zero, 4, per, False)
        torch.testing.assert_close(got, Grid.of(w, "uint4", per).round(w))


def test_large_weights_feel_the_division_more():
    w = torch.tensor([[0.1, 1.0, -2.0]])
    each = torch.zeros(1, 3, requires_grad=True)
    divided(w, torch.tensor([[-1.0]]), each, torch.zeros(1, 1), 8, "channel", True).sum().backward()
    torch.testing.assert_close(each.grad, -w)  # d/dS of w / S at S = 1, straight through the rounding


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_the_result_lies_on_few_values_and_moves_the_outputs_less(unit):
    at, run = world("text"), Run(0)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    shift = []
    for method, nouns in (
        (Nearest(bits=3, tolerance=9.0), ()),
        (FlexRound(bits=3, unit=unit, steps=60, rows=64, tolerance=9.0), (at["data"],)),
    ):
        after = run.step(method, at["teacher"].copy(), *nouns)
        assert all(p.requires_grad for p in after.net.parameters())
        for m in matrices(after.net).values():
            assert max(len(row.unique()) for row in m.weight) <= 8
        shift.append(float((run.infer(after, at["held_out"], lambda b, out: out[:, :8]) - before).norm()))
    assert shift[1] < shift[0]


def test_convolutions_learn_a_scale_for_each_input_channel():
    net = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 10)
    )
    after = Run(0).step(
        FlexRound(bits=3, steps=5, rows=16), __import__("trainlore.nouns").nouns.Model(net), world("digits")["data"]
    )
    assert len(after.net[1].weight[0].unique()) <= 8


@pytest.mark.parametrize("fields", [{"bits": 1}, {"unit": "row"}, {"rows": 0}])
def test_bad_input_is_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        FlexRound(**fields)(at["teacher"], at["data"])
    with pytest.raises(ValueError, match="rows"):
        FlexRound()(at["teacher"], at["data"].take([]))


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    if arm == "method":
        model = run.step(FlexRound(bits=3, steps=60, rows=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=3, tolerance=9.0), at["teacher"].copy())
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="flexround",
    world="text",
    rival="round to nearest",
    quantity="relative distance of the logits on unseen rows at 3 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
