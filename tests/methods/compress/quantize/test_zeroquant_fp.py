from __future__ import annotations

import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.methods.compress.quantize.zeroquant_fp import ZeroQuantFP, constrained, low_rank
from trainlore.primitives.activations import Rounder, found, read_rounded
from trainlore.primitives.grids import snap
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world

READER = "model.layers.0.mlp.down_proj"


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_constraints_against_a_loop():
    scale = rand(12, 1).exp()
    scale[5], scale[6] = 0.25, 8 * scale[7]  # powers of two stay what they are
    first, second = constrained(scale, "m1", 4), constrained(scale, "m2", 4)
    for i in range(12):
        row = scale[i // 3 * 3 : i // 3 * 3 + 3]
        most = float(row.max())
        assert float(first[i]) == 2.0 ** math.ceil(math.log2(float(scale[i])))
        want = most / 2.0 ** math.floor(math.log2(float(row.max() / scale[i])))
        assert float(second[i]) == pytest.approx(want, rel=1e-6)
    assert (first >= scale).all() and (second >= scale).all()
    assert torch.equal(constrained(scale, "m2", 12), scale)  # one scale a row is its own largest
    assert torch.equal(constrained(scale[:1], "m2", 5), scale[:1])  # one scale for all


def test_low_rank_is_the_nearest_of_that_rank():
    lost = rand(6, 9)
    up, down = low_rank(lost, 2)
    s = torch.linalg.svdvals(lost)
    torch.testing.assert_close((lost - up @ down).norm(), s[2:].norm())
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


@pytest.mark.parametrize("form", ["e2m1", "e3m0"])
@pytest.mark.parametrize("constraint", ["", "m1", "m2"])
def test_weights_lie_on_grids_whose_scales_are_shifts(form, constraint):
    at = world("text")
    method = ZeroQuantFP(form=form, constraint=constraint, per=16, rows=16, tolerance=9.0)
    after = method(at["teacher"].copy(), at["data"])
    for path, layer in matrices(after.net).items():
        grid = after.grids[path]
        assert grid.form == form and grid.holds(weight_of(layer))
        rows = grid.scale.view(len(layer.weight), -1)
        shift = (rows / rows.amax(1, keepdim=True) if constraint == "m2" else rows).log2()
        assert not constraint or torch.equal(shift, shift.round())


def test_layers_read_floats_of_eight_bits_at_each_tokens_scale():
    at = world("text")
    after = ZeroQuantFP(rows=16, targets=("down_proj",), tolerance=9.0)(at["teacher"].copy(), at["data"])
    layer, x = after.net.get_submodule(READER), rand(2, 3, 64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), snap(x, "e4m3", *found(x, "e4m3", "token")) @ layer.weight.T)
    plain = ZeroQuantFP(rows=16, reads="", tolerance=9.0)(at["teacher"].copy(), at["data"])
    assert not any("reads" in name for name, _ in plain.net.named_modules())


def test_what_the_weights_lost_is_put_beside_them():
    at, run = world("text"), Run(0)
    outputs = [run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])]
    for rank in (0, 8):
        after = run.step(ZeroQuantFP(rank=rank, rows=16, tolerance=9.0), at["teacher"].copy(), at["data"])
        outputs.append(run.infer(after, at["held_out"], lambda b, out: out[:, :8]))
    assert (outputs[2] - outputs[0]).norm() < 0.9 * (outputs[1] - outputs[0]).norm()
    layer, was = after.net.get_submodule(READER), weight_of(at["teacher"].net.get_submodule(READER))
    assert after.grids[READER].holds(layer.make.weight) and layer.reads.form == "e4m3"
    up, down = low_rank(was - layer.make.weight, 8)
    torch.testing.assert_close(layer.make.up @ layer.make.down, up @ down, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"form": "uint4"}, {"form": "e1m2"}, {"constraint": "m3"}, {"rank": -1}, {"damp": 0.0}]
)
def test_bad_fields_are_named(fields):
    at = world("text")
    with pytest.raises(ValueError, match=next(iter(fields))):
        ZeroQuantFP(rows=8, **fields)(at["teacher"].copy(), at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    if arm == "method":
        model = run.step(ZeroQuantFP(rows=64, size=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=4, per=128, symmetric=True, tolerance=9.0), at["teacher"].copy())
        for layer in matrices(model.net).values():
            read_rounded(layer, Rounder("int8", "token"))
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="zeroquant_fp",
    world="text",
    rival="whole numbers to the nearest, 4 bits for weights and 8 for what layers read",
    quantity="relative distance of the logits on unseen rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
