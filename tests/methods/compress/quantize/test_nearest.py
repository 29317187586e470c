from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.grids import Grid, integers
from trainlore.primitives.masks import matrices
from trainlore.primitives.numbers import scales
from trainlore.runs import Run
from trainlore.worlds.tiny import world


@pytest.mark.parametrize("fields", [{}, {"symmetric": True}, {"per": "tensor"}, {"per": 8, "bits": 3}])
def test_the_layers_hold_what_their_integers_say(fields):
    at, method = world("text"), Nearest(**fields, tolerance=9.0)
    before = {n: m.weight.detach().clone() for n, m in matrices(at["teacher"].net).items()}
    after = Run(0).step(method, at["teacher"])
    for n, m in matrices(after.net).items():
        grid = Grid.of(before[n], integers(method.bits, method.symmetric), method.per)
        assert torch.equal(m.weight, grid.back(grid.codes(before[n])))
        lanes = (
            m.weight.reshape(1, -1)
            if method.per == "tensor"
            else m.weight.reshape(-1, 8)
            if method.per == 8
            else m.weight
        )
        assert max(len(lane.unique()) for lane in lanes) <= 2**method.bits


def test_embedding_and_head_stay():
    at = world("text")
    before = at["teacher"].net.lm_head.weight.detach().clone()
    assert torch.equal(Run(0).step(Nearest(bits=8), at["teacher"]).net.lm_head.weight, before)


def test_turned_layers_are_rounded_by_output_channel():
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    after = Nearest(bits=2)(net).net
    weight = after.transformer.h[0].mlp.c_fc.weight  # (in, out)
    assert max(len(column.unique()) for column in weight.T) <= 4 < len(weight[0].unique())


@pytest.mark.parametrize("fields", [{"bits": 1}, {"per": "row"}, {"per": 0}, {"targets": ("nothing",)}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Nearest(**fields)(world("digits")["teacher"])


def measure(seed: int, arm: str) -> float:
    """Distance of the outputs: rounded to the nearest value of the grid, or up and down by chance."""
    at, run = world("digits"), Run(seed)
    before, model = run.infer(at["teacher"], at["test"], lambda b, out: out), at["teacher"].copy()
    if arm == "method":
        model = run.step(Nearest(bits=4), model)
    else:
        for n, m in matrices(model.net).items():
            scale, zero = scales(m.weight, 4, "channel", False)
            noise = torch.rand(m.weight.shape, generator=run.rng("chance", n))
            m.weight.data = (((m.weight / scale + noise).floor() + zero).clamp(0, 15) - zero) * scale
    after = run.infer(model, at["test"], lambda b, out: out)
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="nearest",
    world="digits",
    rival="rounding up or down by chance, right on average",
    quantity="relative distance of the outputs at 4 bits",
    better="lower",
    measure=measure,
    seeds=20,
    quick=4,
)
