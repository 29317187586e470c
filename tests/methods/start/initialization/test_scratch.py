from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.start.initialization.scratch import Scratch, redrawn
from trainlore.nouns import Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def test_the_seed_names_the_weights_and_nothing_of_the_old_ones_stays():
    model = llama(0)
    made = [Scratch()(Run(s), model.copy()) for s in (1, 1, 2)]
    states = [m.net.state_dict() for m in made]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    drawn = [k for k in states[0] if "norm" not in k]
    assert drawn and not any(torch.equal(states[0][k], states[2][k]) for k in drawn)
    assert not any(torch.equal(states[0][k], v) for k, v in model.net.state_dict().items() if k in drawn)
    assert made[0].tokenizer is model.tokenizer and made[0].net.config.to_dict() == model.net.config.to_dict()


def test_plain_modules_are_reset_layer_by_layer():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    with Run(0).global_rng("scratch"):
        torch_says = nn.Linear(4, 3)
    made = Scratch()(Run(0), Model(net, "classifier")).net
    assert torch.equal(made[0].weight, torch_says.weight) and not (made[3].weight == 7).any()
    assert torch.equal(made[2].weight, torch.ones(3)) and (net[0].weight == 7).all()


def test_what_cannot_be_drawn_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match="no rule to draw"):
        redrawn(Odd())
    model = llama(0)
    model.net.model.layers = model.net.model.layers[:1]
    with pytest.raises(ValueError, match="no longer what its config says"):
        redrawn(model.net)


def measure(seed: int, arm: str) -> float:
    """How far the loss is from that of knowing nothing, log V, after the step."""
    nouns, run = world("text"), Run(seed)
    model = run.fit(nouns["model"], nouns["data"], steps=20, **HOW["text"])
    if arm == "method":
        model = Scratch()(run, model)
    loss = run.infer(model, nouns["held_out"], lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean()
    return abs(float(loss) - math.log(len(model.tokenizer)))


CLAIM = Claim(
    method="scratch",
    world="text",
    rival="the trained weights kept",
    quantity="distance of the held-out loss from that of knowing nothing",
    better="lower",
    measure=measure,
    seeds=5,
    quick=2,
)
