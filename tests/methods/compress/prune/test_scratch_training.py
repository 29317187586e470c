from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.prune.scratch_training import ScratchTraining, fresh
from trainlore.methods.train.objective.ema import EMA
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.masks import matrices, top
from trainlore.primitives.shrinking import LAYERS, chain, cut_units, shrink
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def halved(model: Model) -> Model:
    """Every hidden layer of the MLP with half of its units: those with the largest sum of |w|."""
    modules = list(chain(model.net).values())
    inner = [m for m in modules if isinstance(m, LAYERS)][:-1]
    cut_units(modules, [top(m.weight.detach().abs().sum(1), 0.5) for m in inner])
    return Model.of(model.net)


def test_nothing_of_the_weights_is_left_but_their_shape():
    torch.manual_seed(0)
    for model in (world("digits")["teacher"], shrink(world("text")["teacher"], [[0], []], [[1, 5, 6], None])):
        anew = fresh(model.net)
        for (name, old), new in zip(model.net.named_parameters(), anew.parameters(), strict=True):
            assert old.shape == new.shape
            if old.dim() == 2 and old.numel():
                assert not (old == new).any(), name
    assert 0.01 < fresh(model.net).model.layers[0].mlp.up_proj.weight.std() < 0.04  # the family's own 0.02


@pytest.mark.parametrize("spend", ["steps", "work"])
def test_steps_are_those_of_the_large_one_or_as_many_as_its_work_pays_for(spend):
    at, run = world("digits"), Run(0)
    small = halved(at["teacher"].copy())
    after = run.step(ScratchTraining(large=at["teacher"], spend=spend, steps=30, lr=1e-2), small, at["data"])
    large, little = 64 * 64 * 3 + 640, 64 * 32 + 32 * 32 * 2 + 320
    assert run.meter.steps == (30 if spend == "steps" else int(30 * large / little))
    assert after.about["scratch_training"] == {"steps": run.meter.steps, "masked": 0}
    assert [m.out_features for m in matrices(after.net).values()] == [32, 32, 32]


def test_the_weights_it_was_given_do_not_matter_and_the_seed_does():
    at, found = world("digits"), []
    for seed, noise in ((0, 0.0), (0, 1.0), (1, 0.0)):
        small = halved(at["teacher"].copy())
        for weight in small.net.parameters():
            weight.data += noise
        after = Run(seed).step(ScratchTraining(spend="steps", steps=5), small, at["data"])
        found.append(torch.cat([w.detach().flatten() for w in after.net.parameters()]))
    assert torch.equal(found[0], found[1]) and not (found[0] == found[2]).any()


def test_single_zeros_stay():
    at, run = world("digits"), Run(0)
    pruned = run.step(Magnitude(keep=0.3), at["teacher"])
    holes = {k: (m.weight == 0).clone() for k, m in matrices(pruned.net).items()}
    after = run.step(ScratchTraining(spend="steps", steps=20, lr=1e-2, inner=(EMA(decay=0.9),)), pruned, at["data"])
    assert all(torch.equal(m.weight == 0, holes[k]) for k, m in matrices(after.net).items())
    assert after.about["scratch_training"]["masked"] == 3


def test_bad_input_is_named():
    at = world("digits")
    for fields, said in (({}, "large"), ({"spend": "time"}, "spend"), ({"spend": "steps", "steps": 0}, "steps=0")):
        with pytest.raises(ValueError, match=said):
            ScratchTraining(**fields)(at["teacher"], at["data"])

    normed = at["teacher"].copy()
    nn.utils.parametrize.register_parametrization(normed.net[0], "weight", nn.Identity())
    with pytest.raises(ValueError, match="`fold` the model first"):
        ScratchTraining(spend="steps")(normed, at["data"])

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10, 64))

        def forward(self, x):
            return x @ self.scale.T

    with pytest.raises(ValueError, match="Odd has weights"):
        ScratchTraining(spend="steps")(Model.of(Odd()), at["data"])


@cache
def trained(seed: int) -> Model:
    return Run(seed).fit(preset("mlp", seed=seed, width=64), world("digits")["data"], steps=150, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Half of the units by magnitude; a quarter of the steps at a tenth of the rate, as the authors fine-tune."""
    at, run = world("digits"), Run(seed)
    dense = trained(seed)
    small = halved(dense.copy())
    if arm == "method":
        model = run.step(ScratchTraining(large=dense, steps=150, lr=1e-2), small, at["data"])
    else:
        model = run.fit(small, at["data"], steps=38, **{**HOW["digits"], "lr": 1e-3})
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="scratch_training",
    world="digits",
    rival="fine-tuning the half of the units that magnitude kept",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
