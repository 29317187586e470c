from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.methods.compress.quantize.pd_quant import PDQuant
from trainlore.nouns import Data, Model
from trainlore.primitives.activations import Rounder, read_rounded
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


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
