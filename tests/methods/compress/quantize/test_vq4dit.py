from __future__ import annotations

import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.vq4dit import VQ4DiT
from trainlore.nouns import Model
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


@pytest.mark.parametrize(("name", "unseen"), [("text", "held_out"), ("digits", "test")])
def test_the_model_holds_its_codewords_and_moves_less_than_its_clusters(name, unseen):
    at, run = world(name), Run(0)
    before = run.infer(at["teacher"], at[unseen], lambda b, out: out[:, :8])
    shift = []
    for steps in (0, 20):
        method = VQ4DiT(steps=steps, rows=16, lr=2e-3, tolerance=9.0)
        after = run.step(method, at["teacher"].copy(), at["data"])
        assert all(p.requires_grad for p in after.net.parameters())
        for path, layer in matrices(after.net).items():
            runs = weight_of(layer).numel() / 4
            assert after.grids[path].holds(weight_of(layer))
            assert len(after.grids[path].book) == min(256, 2 ** int(math.log2(runs / 4)))  # a quarter of the runs
        shift.append(float((run.infer(after, at[unseen], lambda b, out: out[:, :8]) - before).norm()))
    assert shift[1] < shift[0]


def test_convolutions_and_a_length_that_does_not_divide():
    net = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    model = Run(0).step(VQ4DiT(codewords=4, steps=5, rows=16, tolerance=9.0), Model(net), world("digits")["data"])
    assert model.grids["1"].assigned.shape == (8, 3) and model.grids["1"].holds(weight_of(net[1]))


@pytest.mark.parametrize(
    "fields",
    [{"codewords": 300}, {"length": 0}, {"candidates": 0}, {"steps": -1}, {"beyond": 0.4}, {"until": 1.5}, {"rows": 0}],
)
def test_bad_input_is_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        VQ4DiT(**fields)(at["teacher"], at["data"])


def test_a_broken_model_and_a_quantized_one_are_refused():
    at = world("digits")
    once = VQ4DiT(steps=0, rows=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):
        VQ4DiT(steps=0, rows=8)(once, at["data"])
    with torch.no_grad():
        at["teacher"].net[0].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"infinities|finite"):
        VQ4DiT(steps=0, rows=8, tolerance=9.0)(at["teacher"], at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    method = VQ4DiT(steps=30 if arm == "method" else 0, rows=32, lr=1e-3, tolerance=9.0)
    after = run.infer(run.step(method, at["teacher"].copy(), at["data"]), at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="vq4dit",
    world="text",
    rival="k-means codewords, the nearest of them for each run",
    quantity="relative distance of the logits on unseen rows at 2 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
