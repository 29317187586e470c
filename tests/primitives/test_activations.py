from __future__ import annotations

import copy

import pytest
import torch

from trainlore.nouns import Model
from trainlore.primitives.activations import Regions, Rounder, fitted, found, read_rounded, regions
from trainlore.primitives.grids import snap


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(x, bits, zero_point):
    """One vector in `bits`, number by number."""
    if zero_point:
        low, high = min(0.0, *x), max(0.0, *x)
        step = (high - low) / (2**bits - 1)
        z = round(-low / step)
        return [(max(0, min(2**bits - 1, round(v / step) + z)) - z) * step for v in x]
    step = max(abs(v) for v in x) / (2 ** (bits - 1) - 1)
    return [max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(v / step))) * step for v in x]


@pytest.mark.parametrize(("form", "zero_point"), [("int8", False), ("uint4", True), ("int4", False)])
def test_every_token_by_its_own_scale(form, zero_point):
    x = rand(2, 3, 8)
    got = Rounder(form)(x)
    for i in range(2):
        for j in range(3):
            want = by_hand(x[i, j].tolist(), int(form.lstrip("uint")), zero_point)
            torch.testing.assert_close(got[i, j], torch.tensor(want))


def test_fixed_scales_do_not_look_at_what_comes():
    x = rand(4, 6)
    scale, zero = found(x, "uint8", "channel")
    fixed = Rounder("uint8", "channel", scale, zero)
    torch.testing.assert_close(fixed(x), snap(x, "uint8", scale, zero))
    assert float(fixed(100 * x).max()) <= float((scale * 255).max())
    assert float((Rounder("e4m3", "tensor")(x) - x).abs().max()) < 0.07 * float(x.abs().max())


def test_gradients_go_straight_through():
    x = rand(3, 4).requires_grad_()
    (Rounder("int4")(x) * 3).sum().backward()
    assert (x.grad == 3).all()


def test_a_layer_reads_rounded_in_every_copy_and_says_so():
    model = Model.of(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)))
    x = {"features": rand(7, 6)}
    plain = model(x)
    read_rounded(model.net[0], Rounder("int2", "tensor", torch.tensor([0.5])))
    rounded = model(x)
    want = model.net[2](
        torch.relu(
            torch.nn.functional.linear(
                (x["features"] / 0.5).round().clamp(-2, 1) * 0.5, model.net[0].weight, model.net[0].bias
            )
        )
    )
    torch.testing.assert_close(rounded, want)
    assert not torch.equal(rounded, plain)
    other = copy.deepcopy(model.net)
    torch.testing.assert_close(other(x["features"]), rounded)
    other[0].reads.scale.fill_(0.1)
    assert not torch.equal(other(x["features"]), rounded) and torch.equal(model(x), rounded)
    assert any(".reads." in name for name in model.net.state_dict())
    read_rounded(model.net[0], Rounder("int8"))  # in the place of the other, not after it
    assert float((model(x) - plain).detach().abs().max()) < 0.1


def test_bad_input_is_named():
    for wrong in (
        lambda: Rounder("int9"),
        lambda: Rounder("int8", "row"),
        lambda: Rounder("int8", scale=torch.ones(1)),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize("signed", [True, False])
def test_two_regions_against_a_loop(signed):
    x = 2 * rand(60) if signed else rand(60).softmax(0)
    coarse, bits, ratio = 0.4 if signed else 0.05, 3, 2
    fine = coarse / 4
    for value, got in zip(x.tolist(), regions(x, coarse, ratio, bits, signed).tolist(), strict=True):
        if value < (0 if signed else 4 * fine):
            want = (max(-4, min(0, round(value / fine))) if signed else min(3, round(value / fine))) * fine
        else:
            want = max(0, min(3, round(value / coarse))) * coarse
        assert got == pytest.approx(want, abs=1e-6)
    assert len(regions(x, coarse, ratio, bits, signed).unique()) <= 2**bits


def test_the_ratio_is_the_best_of_all():
    x, weight = torch.nn.functional.gelu(rand(200, 6)), rand(4, 6, seed=1)
    one = Regions.of(x, weight, 4, True, 6)
    gaps = [float(((regions(x, one.coarse, m, 4, True) - x) @ weight.T).square().mean()) for m in range(7)]
    assert gaps[one.ratio] == min(gaps) and one.ratio > 0
    inputs = x.clone().requires_grad_()
    one(inputs).sum().backward()
    assert (inputs.grad == 1).all()
    whole = Rounder("int4", "tensor")(x)
    assert ((fitted(x, weight, 4)(x) - x) @ weight.T).norm() <= ((whole - x) @ weight.T).norm()
