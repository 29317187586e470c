from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.adaquant import AdaQuant
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.nouns import Model
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.grids import Grid
from trainlore.primitives.masks import matrices, weight_of, write
from trainlore.primitives.teaching import kl
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_biases_take_away_the_mean_and_steps_make_it_better():
    at = world("digits")
    first = next(iter(matrices(at["teacher"].net)))
    x, errors = at["data"], []
    for steps in (0, 50):
        model = at["teacher"].copy()
        before = model.net.get_submodule(first)
        after = AdaQuant(bits=3, steps=steps, rows=400, size=100, tolerance=9.0)(model.copy(), x).net.get_submodule(
            first
        )
        rows = torch.from_numpy(x["features"])
        with torch.no_grad():
            gap = after(rows) - before(rows)
        torch.testing.assert_close(gap.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
        errors.append(float(gap.square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_steps_that_lead_astray_are_not_kept():
    at = world("digits")
    wild, still = (
        AdaQuant(steps=steps, lr=lr, rows=64, tolerance=9.0)(at["teacher"].copy(), at["data"])
        for steps, lr in ((3, 50.0), (0, 0.01))
    )
    for a, b in zip(wild.net.parameters(), still.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_and_what_is_read_lie_on_their_grids():
    at = world("digits")
    after = AdaQuant(reads=4, steps=20, rows=64, tolerance=9.0)(at["teacher"].copy(), at["data"])
    for path, layer in matrices(after.net).items():
        assert after.grids[path].bits == 4 and after.grids[path].holds(weight_of(layer))
        read = layer.reads(torch.linspace(-9, 9, 1000))
        steps = (read / layer.reads.scale).round().unique()
        assert len(steps) == 16 and layer.reads.scale.numel() == 1 and 0.0 in steps


def test_bits_are_shared_out_as_no_other_way_is_better():
    at, run = world("digits"), Run(0)
    method = AdaQuant(bits=3, choices=(2, 3, 4, 8), steps=0, rows=64, size=32, tolerance=9.0)
    after = run.step(method, at["teacher"].copy(), at["data"])
    layers = matrices(at["teacher"].net)
    size = {path: weight_of(layer).numel() for path, layer in layers.items()}
    lost = {}
    batches = batches_of(run, at["teacher"], at["data"], 64, 32, "adaquant")
    for path, k in product(layers, method.choices):
        one = at["teacher"].copy()
        layer = one.net.get_submodule(path)
        write(layer, Grid.of(weight_of(layer), f"uint{k}").round(weight_of(layer)))
        with torch.no_grad():
            lost[path, k] = sum(float(kl(one(b), at["teacher"](b)).mean()) for b in batches)
    ways = [dict(zip(layers, way, strict=True)) for way in product(method.choices, repeat=len(layers))]
    fits = [way for way in ways if sum(size[p] * k for p, k in way.items()) <= 3 * sum(size.values())]
    best = min(sum(lost[p, k] for p, k in way.items()) for way in fits)
    taken = {path: grid.bits for path, grid in after.grids.items()}
    assert taken in fits
    assert sum(lost[p, k] for p, k in taken.items()) == pytest.approx(best, rel=1e-3)


def test_convolutions_and_language_models():
    net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    after = AdaQuant(bits=3, reads=8, steps=5, rows=16)(Model(net), world("digits")["data"])
    assert after.grids["1"].holds(after.net[1].weight)
    at = world("text")
    after = AdaQuant(choices=(3, 8), steps=3, rows=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    assert {grid.bits for grid in after.grids.values()} <= {3, 8}


def test_bad_input_is_named():
    at = world("digits")
    bad = ({"bits": 1}, {"steps": -1}, {"places": 0}, {"rows": 0})
    for fields, said in [(f, f"{next(iter(f))}={next(iter(f.values()))}") for f in bad] + [
        ({"reads": 9}, "bits=9"),
        ({"bits": 3, "choices": (4, 8)}, "budget"),
    ]:
        with pytest.raises(ValueError, match=said):
            AdaQuant(**fields)(at["teacher"].copy(), at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits"), Run(seed)
    before = run.infer(at["teacher"], at["test"], lambda b, out: out)
    if arm == "method":
        model = run.step(AdaQuant(bits=3, rows=256, size=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=3, tolerance=9.0), at["teacher"].copy())
    after = run.infer(model, at["test"], lambda b, out: out)
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="adaquant",
    world="digits",
    rival="round to nearest",
    quantity="relative distance of the outputs on unseen rows at 3 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
