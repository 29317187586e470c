from __future__ import annotations

import copy

import pytest
import torch

from trainlore.nouns import Model
from trainlore.primitives.activations import Rounder, found, read_rounded
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
